"""The training steps that are held against each other."""
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torch.nn as nn
from timm.task import ClassificationTask

from ..errors import ICASCError, one_line
from ..task.icasc import ICASCTask
from ..task.public_approach import PublicApproachTask
from ..training.cuda_graph import CudaRecorder, RecordedStep
from ..training.step import TrainingStep

__all__ = ['COMPILED', 'PLAIN', 'STEPS', 'BenchmarkSetting', 'VARIANTS', 'create_model', 'make_step', 'plain_of']

PLAIN = 'cross-entropy'

STEPS = (PLAIN, 'ICASC order 1', 'ICASC order 2')

VARIANTS = (*STEPS, 'public approach')

CLASSES = 1000  # of a head, where the architecture's own weights have none

COMPILED = ', compiled'  # behind the name of a step


@dataclass(frozen=True)
class BenchmarkSetting:
    """What a step is measured under."""
    batch_size: int = 8
    img_size: int | None = None  # the model's own when None
    device: str = 'cpu'
    channels_last: bool = False
    amp: bool = False  # bfloat16
    fast: bool = False  # recorded as CUDA graphs
    share: float = 1.  # of the batch, that ICASC's terms are made of
    compiled: bool = False  # steps by torch.compile (inductor) beside the eager ones

    @property
    def warm_up(self) -> int:
        """Steps before the first that is like all that follow."""
        if self.compiled:
            return 3  # the first step shows what comes before the inner layer, the second compiles it
        return RecordedStep.WARM_UP + 1 if self.fast else 1

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the steps that are measured."""
        return tuple(f'{step}{how}' for step in STEPS for how in ('', COMPILED)) if self.compiled else VARIANTS

    def __str__(self) -> str:
        return ', '.join([
            self.device, f'batch {self.batch_size}', *['channels last'] * self.channels_last,
            *['bfloat16 autocast'] * self.amp, *['recorded'] * self.fast,
            *[f'terms of {self.share:g} of it'] * (self.share < 1)])


def plain_of(variant: str) -> str:
    """The plain step that a step is held against: an eager or a compiled one, as it is itself."""
    return PLAIN + COMPILED * variant.endswith(COMPILED)


def create_model(name: str, setting: BenchmarkSetting) -> tuple[nn.Module, tuple[int, int, int]]:
    """The model in training mode with seeded weights, and its images' channels, height and width."""
    torch.manual_seed(0)
    size = setting.img_size
    config = timm.get_pretrained_cfg(name)
    options = {'img_size': size} if size and config.fixed_input_size else {}
    if not config.num_classes:  # weights without a head: a step needs one
        options['num_classes'] = CLASSES
    try:
        with torch.device('meta') if setting.device == 'meta' else nullcontext():
            model = timm.create_model(name, **options)
    except (AssertionError, ValueError) as e:
        raise ICASCError(f'`img_size={size}` does not fit {name}: {one_line(e)}') from e
    channels, height, width = model.pretrained_cfg['input_size']
    model.to(
        setting.device,
        memory_format=torch.channels_last if setting.channels_last else torch.preserve_format)
    return model.train(), (channels, size or height, size or width)


def create_task(
        model: nn.Module,
        variant: str,
        size: tuple[int, int, int],
        setting: BenchmarkSetting,
) -> ClassificationTask:
    """The timm task of a variant of the setting."""
    shared, step = {'device': torch.device(setting.device), 'verbose': False}, variant.removesuffix(COMPILED)
    if step == PLAIN:
        task = ClassificationTask(model, **shared)
    elif step.startswith('ICASC'):
        task = ICASCTask(model, order=int(step[-1]), share=setting.share, input_size=size, **shared)
    else:
        task = PublicApproachTask(model, input_size=size, **shared)
    if step != variant:
        task.compile()
    return task


def make_step(name: str, variant: str, setting: BenchmarkSetting) -> Callable[[], None]:
    """A training step on random images: forward, backward, SGD."""
    device = torch.device(setting.device)
    model, size = create_model(name, setting)
    images = torch.randn(setting.batch_size, *size, device=device)
    if setting.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    target = torch.randint(model.num_classes, (setting.batch_size,), device=device)
    task = create_task(model, variant, size, setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    autocast = nullcontext
    if setting.amp:
        autocast = partial(
            torch.autocast, device.type, torch.bfloat16, cache_enabled=not setting.fast)
    gradients = TrainingStep(task, autocast)
    if setting.fast:
        gradients = RecordedStep(gradients, CudaRecorder(device))

    def step() -> None:
        gradients(images, target)
        optimizer.step()
        optimizer.zero_grad()
    return step
