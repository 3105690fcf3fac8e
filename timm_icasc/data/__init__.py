"""Data sets and the transforms that timm does not have."""
from .dataset import class_names, create_dataset, evenly_spaced
from .digits import DigitsDataset
from .transforms import use_pad_crop

__all__ = ['DigitsDataset', 'class_names', 'create_dataset', 'evenly_spaced', 'use_pad_crop']
