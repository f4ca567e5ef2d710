"""How good, how fast, how faithful: metrics, the judge, certificates, comparisons and their records."""
