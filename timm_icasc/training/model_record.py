"""What a training run notes down of its model, so that its weights can be published without guessing anything."""
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data import is_stream
from ..features.wrappers import unwrap_model
from ..runs.folder import FINGERPRINT
from .arguments import icasc_config
from .job import TrainingJob

__all__ = ['model_record']


def _model_args(model) -> dict[str, Any] | None:
    """Arguments that build the architecture again; None where timm does not tell."""
    try:
        from timm.models._input import get_model_args
    except ImportError:  # a run must not be lost for a name that timm has moved
        return None
    return {name: value for name, value in get_model_args(model).items() if name != 'num_classes'}


def _source(args, config: dict[str, Any]) -> dict[str, Any] | None:
    """The weights that training started from; None for random ones."""
    file = args.initial_checkpoint or args.pretrained_path
    if file:
        return {'name': Path(file).name, 'license': None}
    if not args.pretrained:
        return None
    name = config.get('hf_hub_id') or '.'.join(filter(None, (config.get('architecture'), config.get('tag'))))
    return {'name': name, 'license': config.get('license')}


def model_record(job: TrainingJob) -> dict[str, Any]:
    """Everything that `config.json` of a published model says, from the run itself and not from its source weights.

    Args:
        job: The run; its options are settled.

    Returns:
        JSON values: architecture and its arguments, classes and their names, preprocessing, data set, the weights
        that training began with, the two layers, and the ICASC parameters (None for plain cross-entropy).
    """
    args, model = job.args, unwrap_model(job.model)
    config = getattr(model, 'pretrained_cfg', None) or {}
    icasc = None
    if args.icasc:
        icasc = {
            **asdict(icasc_config(args)), 'start_epoch': args.icasc_start_epoch,
            'ramp_epochs': args.icasc_ramp_epochs}
    return {
        'architecture': config.get('architecture') or args.model, 'model_args': _model_args(model),
        'num_classes': args.num_classes, 'label_names': job.names, 'ema': args.model_ema,
        'first_conv': config.get('first_conv'), 'classifier': config.get('classifier'),
        'fixed_input_size': bool(config.get('fixed_input_size')),
        'preprocessing': {name: job.data_config[name] for name in (
            'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')},
        'dataset': args.dataset or Path(args.data_dir).name,
        'train_images': len(job.train_set),
        'val_images': job.val_images if is_stream(job.val_set) else len(job.val_set),
        'val_split': args.val_split, FINGERPRINT: job.fingerprints['val'],
        'attention_images': 0 if job.attention_loader is None else len(job.attention_loader.dataset),
        'source': _source(args, config), 'icasc': icasc,
        'layers': None if job.layers is None else {'inner': job.layers.inner.path, 'last': job.layers.last.path},
    }
