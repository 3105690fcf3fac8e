"""ICASC as a timm training task: hand it a model, get a loss; everything else is timm's."""
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn as nn
from timm.task import ClassificationTask

from ..errors import ICASCError, check_version
from ..features.graph import graph_nodes
from ..features.images import Images, input_size
from ..features.layout import ICASCLayers
from ..features.module_state import one_survey
from ..features.outputs import scores_of, warn_of_probabilities
from ..features.resolve import check_layers, resolve_layers
from ..features.trunk import compile_modules, watch_trunk, why_eager
from ..features.wrappers import (
    DATA_PARALLEL,
    STATIC_GRAPH,
    check_model,
    is_compiled,
    unwrap_model,
)
from ..labels import MULTI, SINGLE, kind_by_flag
from ..losses import MultiLabelSoftMarginLoss
from ..objective.config import ICASCConfig
from ..objective.forward import ICASCOutput, icasc_forward
from ..version import TIMM_FOR_TRAINING

if TYPE_CHECKING:
    from ..metrics import MultiLabelEvaluator

__all__ = ['ICASCTask', 'MultiLabelICASCTask']

_logger = logging.getLogger(__name__)


class ICASCTask(ClassificationTask):
    """Classification with Attention Separability and Consistency (Wang et al., ICCV 2019).

    `L = L_C + w_as_inner L_AS_inner + w_as_last L_AS_last + w_ac L_AC` (Eq. 6), with `L_C` any timm classification
    loss. The model keeps its architecture and state_dict; the terms exist only where gradients are recorded, so
    evaluation runs the plain model.

    Args:
        model: The model to train. Not compiled: `task.compile()` compiles its evaluation, and the part of its training
            that comes before the inner layer.
        criterion: Classification loss. Created from criterion_kwargs when None.
        criterion_kwargs: Arguments for timm's create_classification_loss() when criterion is None.
        config: ICASC parameters (default: `default_config`); single ones can be given by name instead
            (`attention='grad_cam', order=1, ...`, see `ICASCConfig`), also on top of a config.
        layers: From `resolve_layers`, for images of every size, or module paths (inner, last), instead of the automatic
            choice.
        input_size: Channels, height, width of the images. Given, the layers are resolved (and errors raised) here,
            else at the first forward pass, for its images; a path that the model does not have is found out here.
        start_steps: Number of first training steps (forward passes) without the ICASC terms, and without their cost.
        ramp_steps: Number of steps after those over which the terms' common weight grows linearly to 1.
        device: Device for task tensors/buffers.
        dtype: Dtype for task tensors/buffers.
        verbose: Enable info logging.

    Raises:
        LayerResolutionError: The model has no usable layers.
        ICASCError: The model is already compiled.
        VersionError: timm is older than its tasks are that this one builds on. `icasc_forward` works with it.

    Examples:

        ```python
        task = ICASCTask(model, criterion_kwargs=dict(smoothing=0.1), order=1, device=torch.device('cuda'))
        result = task(input, target)
        result['loss'].backward()
        ```
    """
    default_config = ICASCConfig()

    def __init__(
            self,
            model: nn.Module,
            criterion: nn.Module | Callable | None = None,
            criterion_kwargs: dict[str, Any] | None = None,
            config: ICASCConfig | None = None,
            layers: ICASCLayers | Sequence[str] | None = None,
            input_size: tuple[int, int, int] | None = None,
            start_steps: int = 0,
            ramp_steps: int = 0,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
            verbose: bool = True,
            **parameters: Any,
    ):
        check_version('timm', timm.__version__, TIMM_FOR_TRAINING, type(self).__name__)
        check_model(model)
        if config is not None and not isinstance(config, ICASCConfig):
            raise ICASCError(
                f'config must be an ICASCConfig, got {type(config).__name__}; single parameters are arguments by name '
                f'(`order=1`).')
        if is_compiled(model):
            raise ICASCError(
                'ICASCTask needs gradients of inner features, which a compiled model does not give: pass the plain '
                'model (to `Accelerator.prepare` the task, not the model) and call task.compile(), which compiles what '
                'may be.')
        unknown = set(parameters) - set(ICASCConfig.names())
        if unknown:
            raise TypeError(
                f'{type(self).__name__} has no parameter {sorted(unknown)}; ICASC has {ICASCConfig.names()}.')
        if min(start_steps, ramp_steps) < 0:
            raise ValueError(f'start_steps and ramp_steps must be >= 0, got {start_steps} and {ramp_steps}.')
        super().__init__(
            model, criterion, criterion_kwargs=criterion_kwargs, device=device, dtype=dtype,
            verbose=verbose)
        self.config = replace(config or self.default_config, **parameters)
        self.config.check_trainable()
        self.layers = layers
        self.start_steps = start_steps
        self.ramp_steps = ramp_steps
        self.step = 0
        self._has_looked = False  # at its first step with terms
        self._compile_options: dict[str, Any] | None = None  # of a trunk that is to be compiled at the next step
        if layers is not None:
            check_layers(unwrap_model(model), layers)
        if input_size is not None:
            resolved = self.resolve_layers(input_size)
            if self.verbose:
                _logger.info(f'{type(self).__name__}: {self.config}, inner={resolved.inner}, last={resolved.last}')

    def resolve_layers(self, input_size: tuple[int, int, int] | None = None) -> ICASCLayers:
        """The inner and last layer for images of `input_size` (channels, height, width)."""
        return resolve_layers(unwrap_model(self.trainable_module), self.layers, input_size)

    @property
    def term_scale(self) -> float:
        """Common factor of the ICASC terms at the current step, in [0, 1]."""
        if self.step < self.start_steps:
            return 0.
        return min(1., (self.step - self.start_steps + 1) / max(self.ramp_steps, 1))

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs) -> 'ICASCTask':
        """Wrap the model in DistributedDataParallel (DDP).

        Raises:
            ICASCError: `static_graph=True`, with which DDP leaves gradients unsynchronised in silence.
        """
        if ddp_kwargs.get('static_graph'):
            raise ICASCError(STATIC_GRAPH)
        return super().prepare_distributed(device_ids=device_ids, **ddp_kwargs)

    def compile(self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs) -> nn.Module:
        """Compile the evaluation, and of the training what comes before the inner layer.

        The training is compiled when its first step has shown what that is: the modules with children, each by itself
        and in place. What follows stays eager, see `features.trunk`; so does all of it with gradient checkpointing and
        FSDP2, and a module that the compiler fails at, each with a warning.
        """
        self._compile_options = {'backend': backend, 'mode': mode, **compile_kwargs}
        self.eval_model = torch.compile(
            unwrap_model(self.trainable_module), backend=backend, mode=mode, **compile_kwargs)
        return self.eval_model

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        return {} if ema else {'step': self.step}

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        if state and not ema:
            self.step = state['step']

    # timm keeps the step beside the model's weights (above); whoever saves `task.state_dict()`, as Lightning and
    # Accelerate do, finds it in there: as a tensor, which is all that safetensors can hold.
    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.step)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.step = int(state)

    def _load_from_state_dict(
            self, state_dict, prefix, local_metadata, strict, missing_keys, *args) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args)
        # A file of before the step was kept, or of another task: the step stays where it is.
        if f'{prefix}_extra_state' in missing_keys:
            missing_keys.remove(f'{prefix}_extra_state')
            if self.start_steps or self.ramp_steps:
                _logger.warning(
                    f'{type(self).__name__}: this state_dict has no step; `start_steps` and `ramp_steps` count on '
                    f'from {self.step}. Set task.step to the number of steps done.')

    @contextmanager
    def _compiling_trunk(self, input: Images) -> Iterator[None]:
        """A forward pass of the training; compiles the trunk behind it, where that is asked for and not yet done."""
        if self._compile_options is None or not (torch.is_grad_enabled() and self.training):
            yield
            return
        options, self._compile_options = self._compile_options, None
        model = unwrap_model(self.trainable_module)
        reason = why_eager(model)
        if reason is not None:
            warnings.warn(f'The training is not compiled: {reason}.', stacklevel=4)
            yield
            return
        with watch_trunk(model, self.resolve_layers(input_size(input)).inner) as trunk:
            yield
        compile_modules(trunk, **options)

    def check_target(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Raise TargetError where the target does not fit the model's output."""
        SINGLE.check(logits, target)

    def icasc_forward(self, input: Images, target: torch.Tensor) -> ICASCOutput:
        """Logits and per-sample terms of one batch (`objective.icasc_forward`)."""
        return icasc_forward(
            self.trainable_module, input, target, self.resolve_layers(input_size(input)),
            self.config, multilabel=self.multi_label)

    # Trainers of other libraries compile what they are given. In pieces between its gradients that takes minutes, and
    # gains nothing; what `compile` has compiled runs so in here too.
    @torch.compiler.disable
    def forward(self, input: Images, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Forward pass and the ICASC loss.

        Args:
            input: Images `[B, 3, height, width]`, or a dictionary of NaFlex patches.
            target: Class indices `[B]`, or class probabilities `[B, C]` with a soft-target criterion.

        Returns:
            Dictionary containing:
                - 'loss': Classification loss plus the weighted ICASC terms, a scalar
                - 'output': Model logits `[B, C]`
                - 'loss_cls': Classification loss, detached
                - 'loss_as_inner', 'loss_as_last', 'loss_ac': Batch means of the terms, unweighted and detached; a
                  term of weight 0, or not yet started, is absent
        """
        if getattr(self, '_is_replica', False):
            raise ICASCError(DATA_PARALLEL)
        with one_survey(self.trainable_module), self._compiling_trunk(input):
            result = self._forward(input, kind_by_flag(self.multi_label).for_criterion(target))
        if torch.is_grad_enabled() and self.training:
            self.step += 1
        return result

    def _look_at_first_step(self, logits: torch.Tensor, terms: torch.Tensor) -> None:
        """Warn where the model returns probabilities, or the gradient of the terms reaches no parameter."""
        if self._has_looked:
            return
        self._has_looked = True
        if not (logits.is_meta or logits.is_cuda and torch.cuda.is_current_stream_capturing()):
            warn_of_probabilities(logits.detach())
        if not any(isinstance(getattr(node, 'variable', None), nn.Parameter) for node in graph_nodes(terms)):
            _logger.warning(
                f'{type(self).__name__}: the terms train nothing. With `order=1` they act on what comes before the '
                f'last layer, and all of that is frozen: use `order=2`, or let more of the network be trained.')

    def _forward(self, input: Images, target: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = self.term_scale if torch.is_grad_enabled() else 0.
        if not scale or not any(self.config.weights.values()):
            logits = scores_of(self.trainable_module, input)
            self.check_target(logits, target)
            loss = self.criterion(logits, target)
            return {'loss': loss, 'output': logits, 'loss_cls': loss.detach()}
        icasc = self.icasc_forward(input, target)
        self.check_target(icasc.logits, target)
        loss_cls = self.criterion(icasc.logits, target)
        terms = icasc.weighted_sum(self.config)
        self._look_at_first_step(icasc.logits, terms)
        return {
            'loss': loss_cls + scale * terms,
            'output': icasc.logits,
            'loss_cls': loss_cls.detach(),
            **{f'loss_{name}': values.detach().mean() for name, values in icasc.terms.items()},
        }


class MultiLabelICASCTask(ICASCTask):
    """ICASC for images with any number of classes each (PASCAL VOC).

    Targets are `[B, C]`, of any type: 1 present, 0 absent, -1 ignored. `A^T` is the map of the present classes
    together (a multi-hot cotangent), or there is one of each (`multilabel_maps='per_class'`); `Conf` is the absent
    class of highest score. An ignored class is neither, and has no classification loss. A sample without a present or
    without an absent class has terms of 0. The weights of the terms are 0.03 by default: larger ones cost average
    precision.

    Args:
        model: The model to train.
        criterion: Classification loss; what it makes of -1 is its own affair. The multi-label soft-margin loss
            (`losses.multilabel_soft_margin`) when this and criterion_kwargs are None.
        criterion_kwargs: Arguments for timm's create_classification_loss(), multi-label; targets of -1 are refused.
        **kwargs: As `ICASCTask`.

    Examples:

        ```python
        task = MultiLabelICASCTask(model, order=1)
        result = task(input, torch.tensor([[1., 0., 0.], [1., 1., -1.]]))
        result['loss'].backward()
        ```
    """
    multi_label = True
    # The classification loss is a mean over the classes, beside which terms of weight 1 win by silencing the maps.
    default_config = ICASCConfig().with_weights(0.03)

    def __init__(
            self,
            model: nn.Module,
            criterion: nn.Module | Callable | None = None,
            criterion_kwargs: dict[str, Any] | None = None,
            **kwargs: Any,
    ):
        if criterion is None and criterion_kwargs is None:
            criterion = MultiLabelSoftMarginLoss()
        self.takes_ignored = criterion_kwargs is None
        super().__init__(model, criterion, criterion_kwargs=criterion_kwargs, **kwargs)

    def check_target(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        MULTI.check(logits, target, self.takes_ignored)

    def create_evaluator(
            self,
            max_samples: int | None = None,
            class_names: Sequence[str] | None = None,
    ) -> 'MultiLabelEvaluator':
        """Average precision and AUC; see `metrics.multilabel_metrics`."""
        from ..metrics import MultiLabelEvaluator  # loads scikit-learn
        return MultiLabelEvaluator(max_samples, class_names)
