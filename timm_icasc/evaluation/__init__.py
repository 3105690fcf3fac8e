"""Evaluation of trained checkpoints: loading, measuring image by image, localisation, comparison in pairs."""
