"""Which versions are at work."""

__version__ = '0.1.0'

# What parts of this package ask for beyond its own requirements; pyproject.toml has them as extras.
TIMM_FOR_TRAINING = '1.0.31'
HUB_FOR_TRANSFERS = '1.33'
