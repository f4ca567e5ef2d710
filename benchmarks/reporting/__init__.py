"""What report.py and check.py are made of: results files read, told in tables and pictures, set on a page."""
