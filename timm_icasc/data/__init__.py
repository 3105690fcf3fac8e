"""Data sets of the paper's protocols, users' lists, and the transforms that timm does not have."""
from .balanced_images import BalancedImages, balanced
from .caltech import Caltech256
from .cifar import cifar100
from .class_weights import BALANCED, class_weights
from .cub import CUB200
from .dataset_factory import (
    class_names,
    create_dataset,
    evenly_spaced,
    image_file,
    image_name,
    is_public,
    kind_of_set,
    labels_of,
    name_classes,
)
from .digits import DigitsDataset
from .few_images import FewImages, few_of_each_class
from .image_list import MultiLabelList, SingleLabelList
from .imagenet import ILSVRC2012
from .labelled_images import Box, LabelledImages, MultiLabelImages
from .resident import ResidentLoader
from .same_images import count_shared, fingerprint
from .streams import begin_epoch, check_shards, is_stream
from .transforms import use_pad_crop
from .voc import VOC_CLASSES, PackedVOC, VOCDevkit

__all__ = [
    'BALANCED', 'BalancedImages', 'Box', 'CUB200', 'Caltech256', 'DigitsDataset', 'FewImages', 'ILSVRC2012',
    'LabelledImages', 'MultiLabelImages', 'MultiLabelList', 'PackedVOC', 'ResidentLoader', 'SingleLabelList',
    'VOCDevkit', 'VOC_CLASSES', 'balanced', 'begin_epoch', 'check_shards', 'cifar100', 'class_names', 'class_weights',
    'count_shared', 'create_dataset', 'evenly_spaced', 'few_of_each_class', 'fingerprint', 'image_file', 'image_name',
    'is_public', 'is_stream', 'kind_of_set', 'labels_of', 'name_classes', 'use_pad_crop',
]
