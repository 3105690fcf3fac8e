"""What train_timm.py is made of: options, data, model, steps, and what it prints."""
