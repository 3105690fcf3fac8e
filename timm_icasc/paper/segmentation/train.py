"""The training of a segmentation network on cues, with SEC's three losses.

Shapes: `B` batch, `C` classes with the background first, `h w` grid of the network's scores.
"""
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from ...errors import ICASCError, NonFiniteLossError, first_of, one_line
from ...features.module_state import evaluation_mode
from ...runs.files import replacing
from ...runs.intact import check_intact
from .crf import CRFParameters, mean_field
from .deeplab import grid_scores, network_input
from .sec import boundary_loss, expansion_loss, seeding_loss
from .voc_masks import VOCSegmentation

__all__ = ['SegmentationConfig', 'read_checkpoint', 'train']

SAVE_EVERY = 200

KEPT_LOSSES = 100  # of the last updates, the mean of which is the result


@dataclass(frozen=True)
class SegmentationConfig:
    """Training of the segmentation network; the defaults are SEC's (Kolesnikov and Lampert, 2016, section 4.1).

    Attributes:
        network: 'deeplabv3_resnet50', 'deeplabv3_resnet101' or 'deeplabv3_mobilenet_v3_large'.
        image_size: Side of the square that images are resized to.
        iterations: Updates.
        batch_size: Images of an update.
        lr, lr_step: Learning rate, divided by 10 every `lr_step` updates.
        momentum, weight_decay: Of SGD.
        weight_seed, weight_expand, weight_boundary: Weights of the losses; 0 leaves one out.
        seed: Of the weights, the order of the images and their mirroring.
    """
    network: str = 'deeplabv3_resnet50'
    image_size: int = 321
    iterations: int = 8000
    batch_size: int = 15
    lr: float = 0.001
    lr_step: int = 2000
    momentum: float = 0.9
    weight_decay: float = 5e-4
    weight_seed: float = 1.
    weight_expand: float = 1.
    weight_boundary: float = 1.
    seed: int = 0


def _batch_indices(count: int, config: SegmentationConfig, iteration: int) -> list[int]:
    """Each epoch its own order; which images an update sees follows from seed and iteration alone."""
    indices = []
    for position in range(iteration * config.batch_size, (iteration + 1) * config.batch_size):
        epoch, place = divmod(position, count)
        order = np.random.default_rng((config.seed, epoch)).permutation(count)
        indices.append(int(order[place]))
    return indices


def sec_losses(
        scores: torch.Tensor,
        cues: torch.Tensor,
        labels: torch.Tensor,
        colors: torch.Tensor,
        config: SegmentationConfig,
        crf: CRFParameters,
) -> dict[str, torch.Tensor]:
    """The losses of weight > 0, batch means, and 'loss', their weighted sum.

    Args:
        scores: `[B, C, h, w]`.
        cues: `[B, C, h, w]`.
        labels: `[B, C - 1]` in {1, 0, -1}.
        colors: Images on the grid, `[B, 3, h, w]`, 0 to 255.
        config: Weights.
        crf: Parameters of the CRF behind the boundary loss.
    """
    probabilities = F.softmax(scores, 1)
    losses = {}
    if config.weight_seed:
        losses['seed'] = seeding_loss(probabilities, cues).mean()
    if config.weight_expand:
        losses['expand'] = expansion_loss(probabilities, labels).mean()
    if config.weight_boundary:
        refined = mean_field(F.log_softmax(scores, 1).detach(), colors, crf)
        losses['boundary'] = boundary_loss(probabilities, refined).mean()
    total = sum(getattr(config, f'weight_{name}') * value for name, value in losses.items())
    return {'loss': total, **losses}


def _make_batch(
        dataset: VOCSegmentation,
        cues: Callable[[int], torch.Tensor],
        config: SegmentationConfig,
        iteration: int,
) -> list[torch.Tensor]:
    """What an update sees, half of it mirrored: network inputs, colours, cues and labels, one row for each image."""
    indices = _batch_indices(len(dataset), config, iteration)
    flips = np.random.default_rng((config.seed, 1, iteration)).random(len(indices)) < 0.5
    rows = []
    for index, flip in zip(indices, flips, strict=True):
        item = dataset[index]
        pictures = [*network_input(item.image, config.image_size), cues(index)]
        rows.append([*(picture.flip(2) if flip else picture for picture in pictures), item.labels])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def read_checkpoint(
        checkpoint: Path,
        config: SegmentationConfig,
        origin: dict[str, Any],
        device: torch.device | str = 'cpu',
) -> dict[str, Any] | None:
    """What an interrupted training has left; None where there is nothing.

    Args:
        checkpoint: Its file.
        config: Schedule and weights.
        origin: What the cues are made with.
        device: Of the tensors.

    Raises:
        ICASCError: It cannot be read, or belongs to a training with other options or other cues.
    """
    if not checkpoint.is_file():
        return None
    check_intact(checkpoint)
    try:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        earlier = {**state['config'], **state['origin']}
        state['network'], state['optimizer'], state['iteration'], state['history']
    except Exception as e:  # whatever a foreign or an older file makes the unpickler say
        raise ICASCError(
            f"'{checkpoint}' is no checkpoint that tells its options and cues ({one_line(e)}): remove it, or write "
            f'elsewhere.') from e
    now = {**asdict(config), **origin}
    changed = [name for name in now if earlier.get(name) != now[name]]
    if changed:
        said = first_of((f'{name} was {earlier.get(name)!r}, is {now[name]!r}' for name in changed), 3)
        raise ICASCError(
            f"'{checkpoint}' belongs to a training with other options or cues ({said}): remove it, or write "
            f'elsewhere.')
    return state


def _load_checkpoint(
        checkpoint: Path,
        config: SegmentationConfig,
        origin: dict[str, Any],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
) -> tuple[int, list[dict[str, float]]]:
    """Take up a training where its checkpoint left it; returns the updates that are done, and the last losses."""
    state = read_checkpoint(checkpoint, config, origin, next(network.parameters()).device)
    if state is None:
        return 0, []
    network.load_state_dict(state['network'])
    optimizer.load_state_dict(state['optimizer'])
    return state['iteration'], state['history']


def _not_finite(what: str, iteration: int) -> NonFiniteLossError:
    return NonFiniteLossError(
        f'the segmentation {what} at update {iteration}: train anew with a lower `lr`, and write elsewhere, since a '
        f'checkpoint goes on with the options that it began with.')


def _save_checkpoint(
        checkpoint: Path,
        config: SegmentationConfig,
        origin: dict[str, Any],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        iteration: int,
        history: list[dict[str, float]],
        inputs: torch.Tensor,
) -> None:
    """Save, unless the scores of the last inputs say that the last update, or one before, has broken the network."""
    with torch.no_grad(), evaluation_mode(network):
        if not grid_scores(network, inputs).isfinite().all():
            raise _not_finite('scores became NaN or infinite', iteration)
    with replacing(checkpoint) as partial:
        torch.save({
            'config': asdict(config), 'origin': origin, 'iteration': iteration, 'history': history,
            'network': network.state_dict(), 'optimizer': optimizer.state_dict(),
        }, partial)


def train(
        network: nn.Module,
        dataset: VOCSegmentation,
        cues: Callable[[int], torch.Tensor],
        config: SegmentationConfig,
        checkpoint: Path,
        origin: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Train on cues; goes on from `checkpoint` where there is one, as if it had never stopped.

    Args:
        network: From `create_network`, on its device.
        dataset: Training images with image labels; masks are not looked at.
        cues: Position of an image -> `[C, h, w]` on the grid of `score_grid`.
        config: Schedule and weights.
        checkpoint: File to write every 200 updates and at the end.
        origin: What the cues are made with, JSON values by name; a checkpoint of other cues is refused.

    Returns:
        Means of the losses over the last updates (at most 100), also of those before an interruption.

    Raises:
        NonFiniteLossError: The loss, or the scores, became NaN or infinite; that is not saved.
        ICASCError: The checkpoint belongs to another training.
    """
    if not any((config.weight_seed, config.weight_expand, config.weight_boundary)):
        raise ICASCError('every loss has weight 0: there is nothing to train.')
    device = next(network.parameters()).device
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum,
        weight_decay=config.weight_decay)
    origin = origin or {}
    start, history = _load_checkpoint(checkpoint, config, origin, network, optimizer)
    network.train()
    bar = tqdm(
        range(start, config.iterations), desc='segmentation', initial=start, total=config.iterations,
        leave=False, disable=None)
    for iteration in bar:
        for group in optimizer.param_groups:
            group['lr'] = config.lr * 0.1 ** (iteration // config.lr_step)
        inputs, colors, seeds, labels = (
            x.to(device) for x in _make_batch(dataset, cues, config, iteration))
        torch.manual_seed(config.seed * 1_000_003 + iteration)  # dropout
        scores = grid_scores(network, inputs)
        small = F.interpolate(colors, size=scores.shape[-2:], mode='area')
        losses = sec_losses(scores, seeds.to(scores), labels, small, config, CRFParameters())
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not np.isfinite(values['loss']):
            raise _not_finite(f"loss became {values['loss']}", iteration + 1)
        optimizer.zero_grad()
        losses['loss'].backward()
        optimizer.step()
        history = [*history[1 - KEPT_LOSSES:], values]
        bar.set_postfix_str(f"loss {values['loss']:.3f}")
        if (iteration + 1) % SAVE_EVERY == 0 or iteration + 1 == config.iterations:
            _save_checkpoint(
                checkpoint, config, origin, network, optimizer, iteration + 1, history, inputs)
    names = history[0] if history else ()
    return {name: float(np.mean([values[name] for values in history])) for name in names}
