"""The folder that a run leaves: its files, its provenance, tables of runs."""
