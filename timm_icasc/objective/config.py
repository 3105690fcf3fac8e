"""The parameters of the ICASC objective, Eq. 6."""
import math
from dataclasses import dataclass, fields

from ..attention import trainable_methods
from ..losses import MASK_SCALES

__all__ = ['ICASCConfig']


@dataclass(frozen=True)
class ICASCConfig:
    """Parameters of the ICASC objective, Eq. 6: `L = L_C + L_AS_inner + L_AS_last + L_AC`.

    A term of weight 0 is not computed, nor is anything that it alone needs.

    Attributes:
        attention: 'ach' (Eq. 2), 'grad_cam' (Eq. 1), or another trainable method of `attention.METHODS`.
        order: 1 takes the channel weights as constants, at about a third of the extra cost; 2 lets them carry gradient
            (double backward). The paper does not say which. There are three readings: order 1, which the paper's claim
            to avoid higher-order derivatives in training favours; order 2; order 2 with `mask_grad`, the derivative of
            Eq. 6 as printed. With 'ach' and weights of 1 from the first step order 2 cost accuracy (docs/evidence.md).
        weight_as_inner: Weight of the separation term at the inner layer.
        weight_as_last: Weight of the separation term at the last layer.
        weight_ac: Weight of the consistency term.
        theta: Offset of the consistency term (Eq. 5).
        sigma: Threshold of the target mask as a fraction of the map's maximum (Eq. 4).
        omega: Steepness of the target mask (Eq. 4).
        mask_scale: 'max' divides the map by its maximum inside the mask, 'raw' does not (`losses.target_mask`).
        mask_grad: Whether the mask carries gradient; if not, it is a pseudo-label made by the last layer.
        share: Share of the batch, in (0, 1], that the terms are made of: its most confused samples (`hard_samples.py`).
            They run through the network twice; with order 2 that pays below about a third, with order 1 hardly.
    """
    attention: str = 'ach'
    order: int = 1
    weight_as_inner: float = 1.
    weight_as_last: float = 1.
    weight_ac: float = 1.
    theta: float = 0.8
    sigma: float = 0.55
    omega: float = 100.
    mask_scale: str = 'max'
    mask_grad: bool = False
    share: float = 1.

    def __post_init__(self):
        for name, choices in (
                ('attention', tuple(trainable_methods())),
                ('order', (1, 2)),
                ('mask_scale', MASK_SCALES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name} must be one of {choices}, got {getattr(self, name)!r}.')
        for name in ('weight_as_inner', 'weight_as_last', 'weight_ac', 'theta', 'sigma', 'omega', 'share'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f'{name} must be a finite number, got {value!r}.')
            if value < 0:
                raise ValueError(f'{name} must be >= 0, got {value}.')
        if self.sigma > 1:
            raise ValueError(f'sigma is a fraction of the maximum, at most 1, got {self.sigma}.')
        if not 0 < self.share <= 1:
            raise ValueError(f'share must be above 0 and at most 1, got {self.share}.')

    @property
    def weights(self) -> dict[str, float]:
        return {'as_inner': self.weight_as_inner, 'as_last': self.weight_as_last, 'ac': self.weight_ac}

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]
