"""Which class is the true one, which the most confusing, and which to draw a map of: `SINGLE` and `MULTI` labels.

Shapes: `B` batch, `C` classes, `K` chosen classes per image.
"""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ._precision import at_least_float32
from .errors import DataError, ICASCError, TargetError

__all__ = [
    'KINDS', 'MULTI', 'RIVALS', 'SINGLE', 'ClassPair', 'LabelKind', 'check_same_classes', 'class_indices',
    'kind_by_flag', 'kind_of', 'kind_of_measures',
]

RIVALS = ('confused', 'random')

# The classes that are in the image, and those that may be its most confusing one: bool `[B, C]` both.
Sides = tuple[torch.Tensor, torch.Tensor]


class ClassPair(NamedTuple):
    """Which scores to differentiate: the gradient of `(logits * cotangent).sum()` is that of the chosen scores.

    Attributes:
        target: Cotangent of the ground-truth class, `[B, C]`; of all of them at once for multi-label targets.
        confused: Cotangent of the most confusing class, `[B, C]`; zero where no class may be that.
        valid: Samples that have both, bool `[B]`.
    """
    target: torch.Tensor
    confused: torch.Tensor
    valid: torch.Tensor

    def one_by_one(self) -> list[torch.Tensor]:
        """`target` taken apart: the k-th `[B, C]` picks the k-th class of each image, none where it has fewer."""
        present = self.target > 0
        rank = present.cumsum(1) * present
        return [(rank == k).to(self.target.dtype) for k in range(1, max(1, int(rank.max())) + 1)]


class LabelKind:
    """What follows from how many classes an image can have; its two objects are `SINGLE` and `MULTI`.

    Attributes:
        name: What messages call such data, 'NAME-label'.
        score: What makes probabilities of scores, by its name in torch.
        activation: The same as code behind a model's output.
        measures: Measures of accuracy, the one that tables of epochs show first -> their titles.
        eval_metrics: Those by which the best epoch may be chosen, the default first.
    """
    name: str
    score: str
    activation: str
    measures: dict[str, str]
    eval_metrics: tuple[str, ...]

    def check(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Raise what a criterion would say from deep inside torch.

        Args:
            logits: Class scores, `[B, C]`.
            target: What the kind takes; see there.

        Raises:
            TargetError: Wrong shape, type or value, fewer than two classes.
        """
        raise NotImplementedError

    def for_criterion(self, target: torch.Tensor) -> torch.Tensor:
        """Targets that the kind takes as torch's losses take them; others as they are."""
        raise NotImplementedError

    def sides(self, scores: torch.Tensor, target: torch.Tensor) -> Sides:
        """`Sides` of each image."""
        raise NotImplementedError

    def cotangent(self, target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """1 for each class of which `A^T` is the map, else 0, `[B, C]`; `present` as from `sides`."""
        raise NotImplementedError

    def _with_rivals(self, scores: torch.Tensor, target: torch.Tensor) -> Sides:
        """As `sides`; a class that is switched off, whose score is -infinity, is nobody's rival."""
        present, absent = self.sides(scores, target)
        return present, absent & (scores.detach() != -torch.inf)

    def select(self, logits: torch.Tensor, target: torch.Tensor, rival: str = 'confused') -> ClassPair:
        """The ground truth of each sample, and the class of highest score that is not in it.

        Args:
            logits: Class scores, `[B, C]`.
            target: What the kind takes; see there.
            rival: Of `RIVALS`; 'random' takes any class that is not in the sample in place of that of highest score.

        Raises:
            TargetError: Wrong shape, type or value, fewer than two classes.
        """
        self.check(logits, target)
        present, absent = self._with_rivals(logits, target)
        has_rival = absent.any(1)
        # Draws in half precision are equal so often that the first classes would win.
        ranked = logits if rival == 'confused' else torch.rand_like(logits, dtype=torch.float32)
        confused = _highest(ranked, absent)
        return ClassPair(
            target=self.cotangent(target, present).to(logits.dtype),
            confused=torch.zeros_like(logits).scatter(
                1, confused[:, None], has_rival[:, None].to(logits.dtype)),
            valid=present.any(1) & has_rival)

    def most_confusing(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The class of highest score that is not in the image, `[N]`, -1 where there is none.

        Ignored classes are not considered.

        Args:
            scores: `[N, C]`; a head may have more outputs than multi-label targets have classes.
            targets: Class indices `[N]`, or `[N, C]`.
        """
        known = torch.as_tensor(scores)[:, :self.known(targets, scores.shape[1])]
        _, absent = self._with_rivals(known, torch.as_tensor(targets))
        return torch.where(absent.any(1), _highest(known, absent), -1).numpy()

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability of each class, `[B, C]`, in at least float32."""
        raise NotImplementedError

    def predicted(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Which classes a model says are in the image, bool `[B, C]`."""
        raise NotImplementedError

    def present(self, targets: torch.Tensor | np.ndarray) -> list[list[int]]:
        """The classes in each image, from a data set's targets."""
        raise NotImplementedError

    def contains(self, targets: np.ndarray, classes: np.ndarray | int) -> np.ndarray:
        """Whether a class, one for all or `[N]`, is in each image: bool `[N]`."""
        raise NotImplementedError

    def true_scores(self, scores: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The scores of all classes in the images `rows`, one after another."""
        raise NotImplementedError

    def known(self, targets: np.ndarray, outputs: int) -> int:
        """Of a model's outputs, the number of those whose classes the targets know."""
        raise NotImplementedError


def _highest(scores: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    return scores.detach().masked_fill(~among, -torch.inf).argmax(1)


def _check_logits(logits: torch.Tensor) -> None:
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TargetError(
            f'ICASC needs one score per class, [B, C]; the model returned {got} (a distilled head in '
            f'training mode?).')
    if logits.shape[1] < 2:
        raise TargetError(f'ICASC needs a second class to confuse the first with; the model has {logits.shape[1]}.')


def _is_integer(target: torch.Tensor) -> bool:
    return not target.is_floating_point() and target.dtype != torch.bool


def _check_tensor(target: torch.Tensor) -> None:
    if not isinstance(target, torch.Tensor):
        raise TargetError(f'target must be a tensor, got {type(target).__name__}: torch.as_tensor makes one.')


class _SingleLabel(LabelKind):
    """One class per image: indices `[B]` (integer) or, in training, class probabilities `[B, C]` (floating point).

    Soft targets (mixup, cutmix, label smoothing): the class of largest target mass is the ground truth, and every
    class with more than the smallest mass of its row, which is the smoothing floor, is kept from being the confused
    one. Rows without such a class (uniform targets) are not valid. With two classes in all, mixing both cannot be told
    from smoothing: the lesser one is the confused class.
    """
    name, score, activation = 'single', 'softmax', 'softmax(1)'
    measures = {'top1': 'top-1', 'top5': 'top-5'}
    eval_metrics = ('top1', 'top5')

    def check(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        _check_logits(logits)
        _check_tensor(target)
        num_classes = logits.shape[1]
        indices = _is_integer(target)
        fits = target.shape == logits.shape[:1] if indices else target.shape == logits.shape
        if not fits or target.dtype == torch.bool:
            remedy = ''
            if target.shape == logits.shape:
                remedy = ': `target.float()` makes probabilities of one-hot rows'
            elif target.numel() == len(logits):
                remedy = ': `target.long().flatten()` makes indices of one number an image'
            raise TargetError(
                f'target must be class indices [B] or class probabilities [B, C] for logits {tuple(logits.shape)}, '
                f'got {target.dtype} {tuple(target.shape)}{remedy}.')
        # On other devices the comparison would wait for the device at every step; the criterion checks there.
        if target.device.type != 'cpu' or not target.numel():
            return
        if not indices:
            if (target < 0).any() or ((target >= 1).sum(1) > 1).any():
                raise TargetError(
                    'target must be class probabilities, and has values below 0 or several of 1 for one image: where '
                    'images have several classes, take MultiLabelICASCTask (`multilabel=True`).')
        else:
            low, high = int(target.min()), int(target.max())
            if low < 0:
                raise TargetError(f'target holds class {low}, as of images without a label: take those that have one.')
            if high >= num_classes:
                raise TargetError(
                    f'target holds class {high}, but the model has classes 0 to {num_classes - 1}: set `num_classes` '
                    f"to the data set's number.")

    def for_criterion(self, target: torch.Tensor) -> torch.Tensor:
        return target.long() if isinstance(target, torch.Tensor) and _is_integer(target) else target

    def sides(self, scores: torch.Tensor, target: torch.Tensor) -> Sides:
        if target.is_floating_point():
            present = target > target.amin(1, keepdim=True)
        else:
            present = torch.zeros_like(scores, dtype=torch.bool).scatter(
                1, target.long()[:, None], True)
        return present, ~present

    def cotangent(self, target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        if not target.is_floating_point():
            return present
        return torch.zeros_like(present).scatter(1, target.argmax(1, keepdim=True), True)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return at_least_float32(logits).softmax(1)

    def predicted(self, probabilities: torch.Tensor) -> torch.Tensor:
        return probabilities == probabilities.amax(1, keepdim=True)

    def present(self, targets: torch.Tensor | np.ndarray) -> list[list[int]]:
        return [[c] for c in targets.tolist()]

    def contains(self, targets: np.ndarray, classes: np.ndarray | int) -> np.ndarray:
        return targets == classes

    def true_scores(self, scores: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return scores[rows, targets[rows]]

    def known(self, targets: np.ndarray, outputs: int) -> int:
        return outputs


class _MultiLabel(LabelKind):
    """Any number of classes per image: `[B, C]` in {1 present, 0 absent, -1 ignored}, of any type.

    All present classes together are the ground truth. An ignored class is on neither side. Samples without a present
    or without an absent class are not valid.
    """
    name, score, activation = 'multi', 'sigmoid', 'sigmoid()'
    measures = {'mAP': 'mAP', 'mAP_11point': 'mAP 11-point', 'mAP_sklearn': 'mAP sklearn', 'AUC': 'AUC'}
    eval_metrics = ('mAP', 'AUC')

    def check(self, logits: torch.Tensor, target: torch.Tensor, ignored: bool = True) -> None:
        """As `LabelKind.check`; `ignored` says whether -1 is allowed."""
        _check_logits(logits)
        _check_tensor(target)
        if target.shape != logits.shape:
            raise TargetError(
                f'a multi-label target must be [B, C] = {tuple(logits.shape)}, with 1 for present and 0 for absent '
                f'classes, got {target.dtype} {tuple(target.shape)}: torch.nn.functional.one_hot makes it of indices.')
        # On other devices the comparison would wait for the device at every step.
        if target.device.type == 'cpu':
            fits = (target == 0) | (target == 1) | ((target == -1) & ignored)
            if not fits.all():
                values = '1 (present), 0 (absent)' + ' or -1 (ignored)' * ignored
                raise TargetError(f'a multi-label target must be {values}, got {target[~fits][0].item()}.')

    def for_criterion(self, target: torch.Tensor) -> torch.Tensor:
        is_whole = isinstance(target, torch.Tensor) and not target.is_floating_point()
        return target.float() if is_whole and target.ndim == 2 else target

    def sides(self, scores: torch.Tensor, target: torch.Tensor) -> Sides:
        return target > 0, target == 0

    def cotangent(self, target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return present

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return at_least_float32(logits).sigmoid()

    def predicted(self, probabilities: torch.Tensor) -> torch.Tensor:
        return probabilities >= 0.5

    def present(self, targets: torch.Tensor | np.ndarray) -> list[list[int]]:
        return [row.nonzero().flatten().tolist() for row in torch.as_tensor(targets) > 0]

    def contains(self, targets: np.ndarray, classes: np.ndarray | int) -> np.ndarray:
        return targets[np.arange(len(targets)), classes] > 0

    def true_scores(self, scores: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return scores[rows, :targets.shape[1]][targets[rows] > 0]

    def known(self, targets: np.ndarray, outputs: int) -> int:
        return targets.shape[1]


SINGLE, MULTI = _SingleLabel(), _MultiLabel()

# By timm's flag `multi_label`, the public `multilabel` of `icasc_forward`.
KINDS: dict[bool, LabelKind] = {False: SINGLE, True: MULTI}


def kind_by_flag(multilabel: bool) -> LabelKind:
    """`MULTI` or `SINGLE`, by the argument `multilabel`."""
    if multilabel not in (False, True):
        raise ICASCError(f'`multilabel` must be True or False, got {multilabel!r}.')
    return KINDS[multilabel]


def kind_of_measures(measures: Any) -> LabelKind | None:
    """The kind whose measures of accuracy are among `measures`, by name; None of what has none, or is no mapping."""
    if not isinstance(measures, Mapping):
        return None
    kinds = [kind for kind in KINDS.values() if measures.keys() & kind.measures.keys()]
    return kinds[0] if kinds else None


def check_same_classes(
        names: Sequence[str] | None,
        others: Sequence[str] | None,
        where: str,
        elsewhere: str,
) -> None:
    """Raise DataError where two lists of classes differ; None, of who does not tell them, differs from nothing.

    Args:
        names: In the order of the logits.
        others: Likewise.
        where: Whose the names are.
        elsewhere: Whose the others are.
    """
    if names is None or others is None or list(names) == list(others):
        return
    for i, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            raise DataError(
                f"class {i} is '{name}' in {where}, and '{other}' in {elsewhere}: give both the same classes in the "
                f'same order.')
    raise DataError(f'{where} has {len(names)} classes, {elsewhere} {len(others)}: give both the same.')


def kind_of(targets: torch.Tensor | np.ndarray) -> LabelKind:
    """The kind of a data set's targets, class indices `[N]` or `[N, C]`, where nothing else tells."""
    return KINDS[targets.ndim == 2]


def class_indices(
        classes: torch.Tensor | Sequence[int] | int | None,
        topk: int,
        logits: torch.Tensor,
) -> torch.Tensor:
    """The classes that `attention_maps` draws, as `[B, K]`; see there."""
    batch, num_classes = logits.shape
    if classes is None:
        return logits.detach().topk(min(int(topk), num_classes), dim=1).indices
    try:
        classes = torch.as_tensor(classes, device=logits.device)
    except (RuntimeError, TypeError, ValueError) as e:  # names, or rows of different lengths
        raise TargetError(
            f'classes must be a class index, indices [K] for every image or [B, K] per image, got {classes!r}.') from e
    if not _is_integer(classes) or not classes.numel() or classes.ndim > 2 or (
        classes.ndim == 2 and classes.shape[0] != batch):
        raise TargetError(
            f'classes must be a class index, indices [K] for every image or [B, K] per image (B = {batch}), '
            f'got {classes.dtype} {tuple(classes.shape)}.')
    classes = classes.long()  # the smallest of unsigned integers is not implemented for all of their types
    if not 0 <= classes.min() <= classes.max() < num_classes:
        raise TargetError(f'classes must lie in 0 to {num_classes - 1}, got {classes.tolist()}.')
    return classes if classes.ndim == 2 else classes.reshape(1, -1).expand(batch, -1)
