"""Data sets of the paper's protocols, users' multi-label lists, and the transforms that timm does not have."""
from .caltech import Caltech256
from .cifar import cifar100
from .cub import CUB200
from .dataset import class_names, create_dataset, evenly_spaced, image_name, is_multilabel
from .digits import DigitsDataset
from .imagenet import ILSVRC2012
from .images import Box, LabelledImages, MultiLabelImages
from .multilabel import MultiLabelList
from .resident import ResidentLoader
from .stream import begin_epoch, check_shards, is_stream
from .transforms import use_pad_crop
from .voc import VOC_CLASSES, PackedVOC, VOCDevkit

__all__ = [
    'CUB200', 'ILSVRC2012', 'VOC_CLASSES', 'Box', 'Caltech256', 'DigitsDataset', 'LabelledImages', 'MultiLabelImages',
    'MultiLabelList', 'PackedVOC', 'ResidentLoader', 'VOCDevkit', 'begin_epoch', 'check_shards', 'cifar100',
    'class_names', 'create_dataset', 'evenly_spaced', 'image_name', 'is_multilabel', 'is_stream', 'use_pad_crop',
]
