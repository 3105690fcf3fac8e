"""The parameters of the objective, checked."""

import pytest

from timm_icasc import ICASCConfig


@pytest.mark.parametrize('field, value', [
    ('weight_ac', '1'), ('theta', float('nan')), ('omega', float('inf')), ('sigma', 1.5),
    ('attention', 'grad_cam_plus_plus'), ('order', 3), ('mask_scale', 'mean'), ('weight_ac', -1.),
    ('weight_as_last', float('nan'))])
def test_bad_parameters_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        ICASCConfig(**{field: value})

