"""Which versions are at work."""

__version__ = '0.1.0'
