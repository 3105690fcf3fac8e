"""The network of an exported folder as ONNX, by torch's exporter, and its outputs compared with torch's."""
import warnings
from importlib.util import find_spec
from pathlib import Path

import timm
import torch

from ..errors import ICASCError, VersionError, one_line
from ..runs.files import replacing

__all__ = ['ONNX', 'check_onnx_packages', 'write_onnx']

ONNX = 'model.onnx'
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
CLOSE = 1e-3  # of the largest logit


def check_onnx_packages() -> None:
    """Raise VersionError where a package is missing that writes or runs ONNX."""
    if any(find_spec(name) is None for name in PACKAGES):
        raise VersionError("`onnx` needs other packages: pip install 'timm_icasc[onnx]'.")


def _check_outputs(file: Path, model: torch.nn.Module, images: torch.Tensor) -> None:
    """Raise ICASCError where ONNX Runtime and torch give other logits `[B, C]` for images `[B, c, H, W]`."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    found, expected = torch.from_numpy(session.run(None, {'images': images.numpy()})[0]), model(images)
    largest = expected.abs().max().item()
    if found.shape != expected.shape or not torch.allclose(
            found, expected, rtol=0, atol=CLOSE * largest):
        raise ICASCError(
            f'`onnx`: the exported network gives other scores than the model (logits of up to {largest:.3g}); leave '
            f'it out, or try another version of torch.')


def write_onnx(folder: Path) -> None:
    """Write model.onnx beside config.json and model.safetensors: images `[B, c, H, W]` to logits `[B, C]`, any B.

    Images are as the configuration asks for, of its input size, normalised.

    Args:
        folder: Of `export`.

    Raises:
        ICASCError: torch cannot express the network in ONNX, or its outputs differ from the model's.
        WriteError: The file cannot be written.
    """
    model = timm.create_model(f'local-dir:{folder}', pretrained=True, exportable=True).eval()
    generator = torch.Generator().manual_seed(0)
    two, three = (
        torch.randn(count, *model.pretrained_cfg['input_size'], generator=generator) for count in (2, 3))
    with replacing(folder / ONNX) as partial, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of the exporter, about itself
        try:
            torch.onnx.export(
                model, (two,), partial, dynamo=True, external_data=False, input_names=['images'],
                output_names=['logits'], dynamic_shapes=({0: torch.export.Dim('batch')},), verbose=False)
            _check_outputs(partial, model, three)
        except (OSError, ICASCError):
            raise
        except Exception as e:  # whatever stands in the way of an architecture
            raise ICASCError(
                f"`onnx`: torch {torch.__version__} cannot export '{model.pretrained_cfg['architecture']}' "
                f'({one_line(e)}); leave it out.') from e
