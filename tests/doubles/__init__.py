"""Stand-ins for what a test cannot have: a GPU, a network with a closed form."""
