"""A batch for a network: images, or timm's NaFlex patches of them."""
from typing import Any, NamedTuple

import torch

from ..errors import ICASCError

__all__ = ['ImageSize', 'Images', 'PatchGrid', 'check_images', 'image_size_of', 'input_size', 'recordable']


class PatchGrid(NamedTuple):
    """Where the patches of a NaFlex batch lie, whose images differ in size and aspect."""
    coordinates: torch.Tensor  # row and column of each patch, [B, L, 2]
    valid: torch.Tensor  # False for padding, [B, L]

    def scatter(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, L, K]` to `[B, K, H, W]`, H and W the batch's largest; zero where an image has no patch."""
        valid = self.valid[..., None]
        coordinates = torch.where(valid, self.coordinates, 0)
        height, width = (int(n) + 1 for n in coordinates.amax((0, 1)))
        index = (coordinates[..., 0] * width + coordinates[..., 1])[:, :, None].expand_as(tokens)
        grid = tokens.new_zeros(len(tokens), height * width, tokens.shape[2])
        return grid.scatter_add(1, index, tokens * valid).transpose(1, 2).unflatten(
            2, (height, width))


# A batch `[B, 3, height, width]`, or timm's NaFlex dictionary of 'patches', 'patch_coord' and 'patch_valid'.
Images = torch.Tensor | dict[str, torch.Tensor]

PATCHES = ('patches', 'patch_coord', 'patch_valid')

ImageSize = tuple[int, int] | PatchGrid


def check_images(images: Images) -> None:
    """Raise ICASCError where `images` are no batch for a network."""
    if not isinstance(images, (torch.Tensor, dict)):
        raise ICASCError(
            f'images must be a tensor [B, channels, height, width], got {type(images).__name__}: torch.stack makes one '
            f'of a list of tensors, torch.as_tensor of an array.')
    missing = [name for name in PATCHES if name not in images] if isinstance(images, dict) else []
    if missing:
        raise ICASCError(
            f"images as a dictionary are timm's NaFlex patches, {', '.join(PATCHES)}, got {list(images)}: of another "
            f"library's batch, pass the images alone (transformers: `batch['pixel_values']`).")
    if 0 in (images['patches'] if isinstance(images, dict) else images).shape[:1]:
        raise ICASCError('images must hold at least one.')


def recordable(batch: Any) -> Any:
    """Images or a target; copies of tensors that were made in inference mode, of which autograd keeps none."""
    def copied(x: Any) -> Any:
        return x.clone() if isinstance(x, torch.Tensor) and x.is_inference() else x

    with torch.inference_mode(False):
        if isinstance(batch, dict):
            return {name: copied(x) for name, x in batch.items()}
        return copied(batch)


def input_size(images: Images) -> tuple[int, int, int] | None:
    """Channels, height and width of the images; None where each has a size of its own."""
    check_images(images)
    if isinstance(images, dict):
        return None
    if images.ndim != 4:
        raise ICASCError(f'images must be [B, channels, height, width], got {tuple(images.shape)}.')
    return tuple(images.shape[1:])


def image_size_of(images: Images) -> ImageSize:
    """What the grid of a token layer follows from: height and width of the images, or the patches' coordinates."""
    if isinstance(images, dict):
        return PatchGrid(images['patch_coord'], images['patch_valid'])
    return tuple(images.shape[-2:])
