"""The version of timm_icasc."""
__version__ = '0.1.0'
