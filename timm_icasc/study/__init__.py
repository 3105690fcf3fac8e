"""Studies: variants x seeds of train_timm.py from one YAML file, their records, and what follows from them."""
