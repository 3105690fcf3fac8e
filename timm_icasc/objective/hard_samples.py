"""The terms of ICASC on a part of the batch only, its most confused samples, at a part of their cost.

Shapes: `B` batch, `C` classes, `S` chosen samples.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .._precision import at_least_float32
from ..errors import ICASCError
from ..features.graph import graph_nodes, read_through_views
from ..features.images import Images
from ..features.layout import FeatureLayer
from ..features.module_state import hold_batch_norm_statistics, is_checkpointing, survey
from ..features.outputs import class_scores, scores_of
from ..features.tap import capture_features, check_batch
from ..features.wrappers import unwrap_model
from ..labels import ClassPair, LabelKind

__all__ = ['HardSamples', 'forward_most_confused', 'most_confused']


def _is_parameter(x: torch.Tensor) -> bool:
    """Whether it is a weight in another shape, as weight standardisation normalises it; features have a graph here."""
    nodes = list(read_through_views(x.grad_fn))
    return not nodes or hasattr(nodes[-1], 'variable')


class _BatchNormMode(TorchFunctionMode):
    """Lets `statistics_of` say what BatchNorm in training mode is run with."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (self._batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))

    def _batch_norm(
            self,
            input,
            running_mean,
            running_var,
            weight=None,
            bias=None,
            training=False,
            momentum=0.1,
            eps=1e-5,
    ):
        if training and not _is_parameter(input):
            running_mean, running_var, training = self.statistics_of(
                input, running_mean, running_var)
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)

    def statistics_of(
            self,
            x: torch.Tensor,
            mean: torch.Tensor,
            var: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Mean and variance for `x`, and whether to normalise by the batch nevertheless, given the running ones."""
        raise NotImplementedError


class _RecordStatistics(_BatchNormMode):
    """Keep mean and variance of what BatchNorm normalises by the batch, in the order of the calls."""

    def __init__(self):
        super().__init__()
        self.statistics: list[tuple[torch.Tensor, torch.Tensor]] = []

    def statistics_of(self, x, mean, var):
        axes = [d for d in range(x.ndim) if d != 1]
        self.statistics.append(torch.var_mean(at_least_float32(x.detach()), axes, correction=0))
        return mean, var, True


class _RepeatStatistics(_BatchNormMode):
    """Normalise by the recorded statistics, as constants, where BatchNorm would take those of the batch."""

    def __init__(self, statistics: Sequence[tuple[torch.Tensor, torch.Tensor]]):
        super().__init__()
        self.statistics = iter(statistics)

    def statistics_of(self, x, mean, var):
        var, mean = next(self.statistics)
        return mean, var, False


class HardSamples(NamedTuple):
    """One forward pass of the whole batch, and of the chosen samples behind the first layer.

    Attributes:
        all_logits: Class scores of the whole batch, `[B, C]`.
        images: The chosen images.
        logits: Their class scores, `[S, C]`, from the features below.
        classes: Their class pairs.
        features: Module path -> feature of the chosen images, with the graph of the whole network.
    """
    all_logits: torch.Tensor
    images: Images
    logits: torch.Tensor
    classes: ClassPair
    features: dict[str, torch.Tensor]


def most_confused(logits: torch.Tensor, classes: ClassPair, count: int) -> torch.Tensor:
    """Indices `[count]` of the samples whose true class leads the most confusing one by least, most confused first.

    Args:
        logits: Class scores, `[B, C]`.
        classes: From `LabelKind.select`; of several present classes the mean score counts. Samples that are not valid
            come last.
        count: How many, at most `B`.
    """
    logits = logits.detach().float()
    target, rival = (
        torch.where(cotangent != 0, logits, 0).sum(1)  # no product: a class switched off has -inf, and -inf * 0 is NaN
        for cotangent in (classes.target, classes.confused))
    lead = target / classes.target.sum(1).clamp(min=1) - rival
    return lead.masked_fill(~classes.valid, torch.inf).topk(count, largest=False).indices


def _process_count() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _kept_values(model: nn.Module) -> dict[str, tuple[torch.Tensor, int]]:
    """The buffers of all modules that are not BatchNorm, each with torch's count of its changes."""
    norms = {id(x) for norm in survey(model).norms for x in norm.buffers(recurse=False)}
    return {name: (x, x._version) for name, x in model.named_buffers() if id(x) not in norms}


def _check_kept(model: nn.Module, before: dict[str, tuple[torch.Tensor, int]]) -> None:
    for name, x in model.named_buffers():
        if name in before and (before[name][0] is not x or before[name][1] != x._version):
            raise ICASCError(
                f"share < 1 runs a part of the batch once more, and would count it twice: '{name}' changes with every "
                f'run in training mode. Leave `share` out.')


def _check_branches(logits: torch.Tensor, feature: torch.Tensor) -> None:
    """Raise where the scores also come from BatchNorm before the feature, by branches that go by it."""
    first = feature.grad_fn
    if first is None:  # frozen, and with it what is before
        return
    for node in graph_nodes(logits, cut=first):
        norm = 'BatchNorm' in node.name() and node._sequence_nr() < first._sequence_nr()
        if norm and getattr(node, '_saved_training', True):
            raise ICASCError(
                'share < 1 does not work with this model, whose class scores also come from branches beside the inner '
                'layer: their BatchNorm would normalise the chosen samples by themselves. Leave `share` out, or name '
                'a layer behind the place where they meet with `layers`.')


def _take(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    taken = x.index_select(0, indices)
    return taken.contiguous(memory_format=torch.channels_last) if channels_last else taken


@torch.inference_mode(False)
def forward_most_confused(
        model: nn.Module,
        images: Images,
        target: torch.Tensor,
        layers: Sequence[FeatureLayer],
        order: int,
        share: float,
        labels: LabelKind,
) -> HardSamples:
    """Run the model on the batch, and on its most confused samples again, with the features of `layers`.

    The second run takes the feature of the first layer from the first run, with its graph: what stands before that
    layer runs without a graph, for its output to be replaced. Behind it BatchNorm normalises by the statistics of the
    whole batch, as constants, so that the scores are those of the first run; dropout draws anew. Where a network leads
    past the first layer to what is behind it (parallel branches), gradients of the terms are not followed there; with
    BatchNorm in training mode there, it is refused.

    Args:
        model: Classifier, possibly wrapped in DistributedDataParallel.
        images: A batch of `B` images.
        target: Its target, of the kind `labels`.
        layers: Layers to tap, in the order in which they run.
        order: As in `capture_features`.
        share: Share of the batch, in (0, 1]; at least one sample.
        labels: `labels.SINGLE` or `labels.MULTI`.

    Raises:
        ICASCError: The model checkpoints activations, which would be computed again with other statistics; or has
            statistics that cannot be repeated.
    """
    if is_checkpointing(model):
        raise ICASCError('share < 1 does not work with gradient checkpointing: use one of the two.')
    if survey(model).synchronised and _process_count() > 1:
        raise ICASCError('share < 1 does not work with SyncBatchNorm: use one of the two.')
    kept = _kept_values(unwrap_model(model))
    first, recorded = layers[0].path, _RecordStatistics()
    with capture_features(model, layers, order=1, tail_mode=recorded) as first_run:
        all_logits = scores_of(model, images)
    check_batch(first_run, all_logits)
    _check_kept(unwrap_model(model), kept)
    _check_branches(all_logits, first_run[first])
    classes = labels.select(all_logits, target)
    chosen = most_confused(all_logits, classes, max(1, round(share * len(all_logits))))
    part = (
        {name: _take(x, chosen) for name, x in images.items()} if isinstance(images, dict)
        else _take(images, chosen))
    model = unwrap_model(model)
    with hold_batch_norm_statistics(model), capture_features(
            model, layers, order=order, tail_mode=_RepeatStatistics(recorded.statistics),
            first_feature=_take(first_run[first], chosen)) as features:
        logits = class_scores(model(part))
    return HardSamples(all_logits, part, logits, ClassPair(*(x[chosen] for x in classes)), features)
