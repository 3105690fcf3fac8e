"""The two forms that a batch of images comes in: one tensor, or the patches of images that differ in size (NaFlex)."""
from typing import Dict, NamedTuple, Optional, Tuple, Union

import torch

__all__ = ['ImagePlane', 'Images', 'PatchGrid', 'image_plane', 'input_size']


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
        plane = tokens.new_zeros(len(tokens), height * width, tokens.shape[2])
        return plane.scatter_add(1, index, tokens * valid).transpose(1, 2).unflatten(2, (height, width))


# A batch `[B, 3, height, width]`, or timm's NaFlex dictionary of 'patches', 'patch_coord' and 'patch_valid'.
Images = Union[torch.Tensor, Dict[str, torch.Tensor]]
ImagePlane = Union[Tuple[int, int], PatchGrid]


def input_size(images: Images) -> Optional[Tuple[int, int, int]]:
    """Channels, height and width of the images; None where each has a size of its own."""
    return None if isinstance(images, dict) else tuple(images.shape[1:])


def image_plane(images: Images) -> ImagePlane:
    """What the grid of a token layer follows from: height and width of the images, or the patches' coordinates."""
    if isinstance(images, dict):
        return PatchGrid(images['patch_coord'], images['patch_valid'])
    return tuple(images.shape[-2:])
