"""The tables of the paper beside runs of our own."""
