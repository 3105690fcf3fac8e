"""The parameters of the ICASC objective, Eq. 6."""
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, asdict, dataclass, fields, replace
from numbers import Real
from typing import Any, ClassVar

import torch

from ..attention import METHODS, trainable_methods
from ..labels import RIVALS
from ..losses import (
    MASK_SCALES,
    OMEGA,
    SIGMA,
    THETA,
    attention_consistency,
    attention_separation,
)

__all__ = ['MULTILABEL_MAPS', 'TERMS', 'ICASCConfig', 'Term']

MULTILABEL_MAPS = ('joint', 'per_class')


@dataclass(frozen=True)
class Term:
    """A row of `TERMS`: a loss of the attention maps of one layer.

    Attributes:
        name: Its key in every output; 'loss_NAME' in a task's results, `weight_NAME` in `ICASCConfig`.
        title: What tables call it.
        equation: Its number in the paper.
        layer: 'inner' or 'last': whose maps it is made of, and on whose grid its mask is.
        classes: Whose maps it needs: 'target', 'confused'.
        loss: Takes these maps, the mask, and the parameters; returns one value per sample, `[B]`.
        parameters: Fields of `ICASCConfig` that the loss takes besides.
    """
    name: str
    title: str
    equation: int
    layer: str
    classes: tuple[str, ...]
    loss: Callable[..., torch.Tensor]
    parameters: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The maps that it needs, as `ICASCOutput.maps` names them."""
        return tuple(f'{which}_{self.layer}' for which in self.classes)

    def values(
            self,
            maps: Mapping[str, torch.Tensor],
            masks: Mapping[str, torch.Tensor],
            config: 'ICASCConfig',
    ) -> torch.Tensor:
        """The loss of each sample, from the maps and each layer's mask."""
        parameters = (getattr(config, name) for name in self.parameters)
        return self.loss(*(maps[name] for name in self.needs), masks[self.layer], *parameters)


# Every term of the objective besides the classification loss, in the order of options and tables. A new one is a loss
# in losses.py, a row here and a weight in ICASCConfig.
TERMS = (
    Term('as_inner', 'L_AS inner', 3, 'inner', ('target', 'confused'), attention_separation),
    Term('as_last', 'L_AS last', 3, 'last', ('target', 'confused'), attention_separation),
    Term('ac', 'L_AC', 5, 'inner', ('target',), attention_consistency, ('theta',)),
)


@dataclass(unsafe_hash=True)
class ICASCConfig:
    """Parameters of the ICASC objective, Eq. 6: `L = L_C + L_AS_inner + L_AS_last + L_AC`.

    A term of weight 0 is not computed, nor is anything that it alone needs.

    Attributes:
        attention: 'ach' (Eq. 2), 'grad_cam' (Eq. 1), or another of `attention.METHODS`; in training a trainable one.
        order: 1 takes the channel weights as constants, at about a third of the extra cost; 2 lets them carry gradient
            (double backward). The paper does not say which. Three readings were tried: order 1, which the paper's
            claim to avoid higher-order derivatives in training favours; order 2; order 2 with `mask_grad`, the
            derivative of Eq. 6 as printed. With 'ach' and weights of 1 from the first step order 2 cost accuracy
            (docs/evidence.md).
        weight_as_inner: Weight of the separation term at the inner layer.
        weight_as_last: Weight of the separation term at the last layer.
        weight_ac: Weight of the consistency term.
        theta: Offset of the consistency term (Eq. 5).
        sigma: Threshold of the target mask as a fraction of the map's maximum (Eq. 4).
        omega: Steepness of the target mask (Eq. 4), above 0.
        mask_scale: 'max' divides the map by its maximum inside the mask, 'raw' does not (`losses.target_mask`).
        mask_grad: Whether the mask carries gradient; if not, it is a pseudo-label made by the last layer.
        multilabel_maps: Of images with several classes: 'joint' makes one map, of the sum of the present classes'
            scores; 'per_class' makes one of each, and the terms are means over an image's classes. The paper leaves it
            open. With 'per_class' a batch takes a backward pass for each class of the image that has most, and one for
            the confused class, instead of two in all; measures and figures are of joint maps all the same.
        share: Share of the batch, in (0, 1], that the terms are made of: its most confused samples (`hard_samples.py`).
            They run through the network twice, which pays below about a half with order 2, a quarter with order 1.
        rival: Which class the true one's map is pushed apart from: 'confused', that of the highest score (the paper);
            or 'random', any other: a control, in training alone.
    """
    attention: str = 'ach'
    order: int = 1
    weight_as_inner: float = 1.
    weight_as_last: float = 1.
    weight_ac: float = 1.
    theta: float = THETA
    sigma: float = SIGMA
    omega: float = OMEGA
    mask_scale: str = 'max'
    mask_grad: bool = False
    multilabel_maps: str = 'joint'
    share: float = 1.
    rival: str = 'confused'

    # Trainers of other libraries take a task's `config` for theirs. That of transformers asks for these; it writes
    # `use_cache` to it, and hands its reporters a dictionary or JSON.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ['loss_cls', *(f'loss_{term.name}' for term in TERMS)]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self) or name not in (*self.names(), 'use_cache'):
            raise FrozenInstanceError(
                f'cannot set {name}: an ICASCConfig does not change; dataclasses.replace(config, ...) makes another.')
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f'cannot delete {name}: an ICASCConfig does not change.')

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def __post_init__(self):
        for name, choices in (
                ('attention', tuple(METHODS)),
                ('order', (1, 2)),
                ('mask_scale', MASK_SCALES),
                ('multilabel_maps', MULTILABEL_MAPS),
                ('rival', RIVALS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name} must be one of {choices}, got {getattr(self, name)!r}.')
        for name in (*(f'weight_{term.name}' for term in TERMS), 'theta', 'sigma', 'omega', 'share'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f'{name} must be a finite number, got {value!r}.')
            if value < 0:
                raise ValueError(f'{name} must be >= 0, got {value}.')
            if not isinstance(value, (int, float)):  # NumPy's, which JSON does not know
                vars(self)[name] = float(value)
        if not isinstance(self.mask_grad, bool):
            raise ValueError(f'mask_grad must be True or False, got {self.mask_grad!r}.')
        if self.sigma > 1:
            raise ValueError(f'sigma is a fraction of the maximum, at most 1, got {self.sigma}.')
        if not self.omega:  # the mask would be 0.5 everywhere, and Eq. 4 and 5 mean nothing
            raise ValueError(f'omega must be above 0, got {self.omega}.')
        if not 0 < self.share <= 1:
            raise ValueError(f'share must be above 0 and at most 1, got {self.share}.')
        if self.share < 1 and self.rival == 'random':
            raise ValueError("share below 1 takes the most confused samples: leave it out, or rival='random'.")

    @property
    def weights(self) -> dict[str, float]:
        """Name of each term -> its weight."""
        return {term.name: getattr(self, f'weight_{term.name}') for term in TERMS}

    def with_weights(self, *weights: float) -> 'ICASCConfig':
        """The same with other weights: one for all terms, or one for each in the order of `TERMS`."""
        each = weights * len(TERMS) if len(weights) == 1 else weights
        return replace(self, **{f'weight_{term.name}': w for term, w in zip(TERMS, each, strict=True)})

    def check_trainable(self) -> None:
        """Raise ValueError where the attention method is for looking alone."""
        methods = tuple(trainable_methods())
        if self.attention not in methods:
            raise ValueError(
                f'attention must be one of {methods} in training, got {self.attention!r}, whose maps are to look at '
                f'and to measure.')

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]
