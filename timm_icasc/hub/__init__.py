"""Weights on the Hugging Face Hub: publishing a run, its card, and getting verified weights back."""
