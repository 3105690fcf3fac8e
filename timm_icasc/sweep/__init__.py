"""Studies: variants x seeds of train_timm.py, their records, and the page that says what follows from them."""
