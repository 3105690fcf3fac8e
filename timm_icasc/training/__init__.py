"""What `timm-icasc train` is made of: options, data, model, steps, and what it prints."""
