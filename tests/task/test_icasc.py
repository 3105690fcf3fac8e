"""ICASCTask as a timm training task: result, schedules, and every way timm scripts train."""
import copy
import warnings
from functools import partial

import pytest
import torch
from helpers.models import ToyNet, create
from helpers.processes import in_two_processes, save_gradients_of_half, small_convnext
from safetensors.torch import load_file, save_file
from timm.data import Mixup
from timm.loss import LOSS_TYPES
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, NativeScaler

from timm_icasc import (
    ICASCConfig,
    ICASCError,
    ICASCTask,
    LayerResolutionError,
    MultiLabelICASCTask,
    TargetError,
    attention_maps,
)
from timm_icasc.task import PublicApproachTask

TERMS = {'loss_as_inner', 'loss_as_last', 'loss_ac'}


def make_task(model, **kwargs):
    """At order 2, which asks for more."""
    return ICASCTask(model, **{'order': 2, 'verbose': False, **kwargs})


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])


def parameter_gradients(task, images, target):
    task.zero_grad()
    task(images, target)['loss'].backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def test_arguments_of_another_kind_are_named(toy, batch):
    with pytest.raises(ICASCError, match='config must be an ICASCConfig, got dict'):
        make_task(toy, config={'order': 1})
    with pytest.raises(ICASCError, match='`model` must be a torch.nn.Module, got None'):
        make_task(None)
    with pytest.raises(ICASCError, match='images must be a tensor .* got list'):
        make_task(toy)(list(batch[0]), batch[1])


def test_result_carries_all_components(toy, batch):
    result = make_task(toy, weight_as_inner=0.5, weight_as_last=2., weight_ac=3.)(*batch)
    assert set(result) == {'loss', 'output', 'loss_cls'} | TERMS
    total = result['loss_cls'] + 0.5 * result['loss_as_inner'] + 2 * result['loss_as_last'] + 3 * result['loss_ac']
    torch.testing.assert_close(result['loss'].detach(), total)
    torch.testing.assert_close(result['output'], toy(batch[0]))
    torch.testing.assert_close(result['loss_cls'], torch.nn.functional.cross_entropy(toy(batch[0]), batch[1]).detach())
    assert not any(result[name].requires_grad for name in TERMS)


def test_gradient_reaches_before_and_behind_the_inner_layer(family):
    model, images, _ = family
    target = torch.tensor([1, 2])
    plain = parameter_gradients(ClassificationTask(model, verbose=False), images, target)
    for order in (1, 2):
        with_icasc = parameter_gradients(make_task(model, order=order), images, target)
        changed = [
            name for name, grad in with_icasc.items() if not torch.allclose(grad, plain[name], rtol=1e-3, atol=1e-9)]
        assert all(g.isfinite().all() for g in with_icasc.values())
        assert changed[0] in list(with_icasc)[:2], 'the first layer learns from the terms'
        # At order 2 the classifier does as well: it is inside the channel weights.
        assert (changed[-1] in list(with_icasc)[-2:]) == (order == 2)
    model.zero_grad()


def test_without_gradients_it_is_the_plain_model(toy, batch):
    with torch.no_grad():
        result = make_task(toy)(*batch)
    assert set(result) == {'loss', 'output', 'loss_cls'}


def test_weights_of_zero_are_plain_cross_entropy(toy, batch):
    task = make_task(toy, weight_as_inner=0., weight_as_last=0., weight_ac=0.)
    plain = ClassificationTask(toy, verbose=False)
    assert set(task(*batch)) == {'loss', 'output', 'loss_cls'}
    for name, gradient in parameter_gradients(plain, *batch).items():
        assert torch.equal(parameter_gradients(task, *batch)[name], gradient)


def test_config_and_single_parameters_combine(toy):
    task = ICASCTask(toy, config=ICASCConfig(order=2, theta=0.7), attention='grad_cam', verbose=False)
    assert task.config == ICASCConfig(order=2, theta=0.7, attention='grad_cam')


class TestSchedule:

    def test_start_and_ramp(self, toy, batch):
        task = make_task(toy, start_steps=2, ramp_steps=4)
        scales = []
        for _ in range(8):
            scales.append(task.term_scale)
            task(*batch)
        assert scales == [0., 0., 0.25, 0.5, 0.75, 1., 1., 1.]

    def test_the_scale_multiplies_the_terms_and_skips_their_cost_at_zero(self, toy, batch):
        task = make_task(toy, start_steps=1, ramp_steps=2)
        assert TERMS.isdisjoint(task(*batch))
        result = task(*batch)
        terms = sum(result[name] for name in TERMS)
        torch.testing.assert_close(result['loss'].detach(), result['loss_cls'] + 0.5 * terms)

    def test_evaluation_does_not_advance_it(self, toy, batch):
        task = make_task(toy, start_steps=2)
        with torch.no_grad():
            task(*batch)
        task.eval()(*batch)
        assert task.step == 0


class TestCriteria:

    @pytest.mark.parametrize('loss_type', [name for name in LOSS_TYPES if name in ('ce', 'bce', 'asl', 'poly')])
    def test_single_label_losses(self, loss_type, toy, batch):
        images, target = batch
        kwargs = {'loss_type': loss_type}
        if loss_type == 'bce':
            target = torch.nn.functional.one_hot(target, 4).float()
        result = make_task(toy, criterion_kwargs=kwargs)(images, target)
        assert result['loss'].isfinite() and result.keys() >= TERMS

    def test_label_smoothing(self, toy, batch):
        result = make_task(toy, criterion_kwargs={'smoothing': 0.1})(*batch)
        expected = torch.nn.functional.cross_entropy(toy(batch[0]), batch[1], label_smoothing=0.1)
        torch.testing.assert_close(result['loss_cls'], expected.detach())

    def test_jsd_with_augmentation_splits(self, toy, batch):
        images, target = batch
        task = make_task(toy, criterion_kwargs={'loss_type': 'jsd', 'jsd_splits': 2})
        task = task.double() if images.dtype == torch.float64 else task
        result = task(torch.cat([images, images.flip(3)]), target.repeat(2))
        assert result['loss'].isfinite() and result.keys() >= TERMS

    @pytest.mark.parametrize('mode', ['batch', 'elem'])
    @pytest.mark.parametrize('mix', [{'mixup_alpha': 0.8, 'cutmix_alpha': 0.}, {'mixup_alpha': 0., 'cutmix_alpha': 1.}])
    def test_mixup_and_cutmix(self, mode, mix, toy, batch):
        images, target = Mixup(**mix, mode=mode, label_smoothing=0.1, num_classes=4)(*(x.clone() for x in batch))
        result = make_task(toy, criterion_kwargs={'soft_targets': True})(images, target)
        assert result['loss'].isfinite() and result.keys() >= TERMS


class TestTrainingFeatures:

    def test_gradient_accumulation_equals_the_whole_batch(self, toy, batch):
        """Every term is per sample, so halves of the batch average to the whole."""
        toy.double()
        images, target = batch[0].double(), batch[1]
        task = make_task(toy)
        whole = parameter_gradients(task, images, target)
        task.zero_grad()
        for part in (slice(0, 2), slice(2, 4)):
            (task(images[part], target[part])['loss'] / 2).backward()
        for name, p in task.named_parameters():
            torch.testing.assert_close(p.grad, whole[name], rtol=1e-10, atol=1e-14)

    def test_state_dict_is_the_models(self, batch):
        model = create('resnet20_cifar')
        keys = set(model.state_dict())
        task = make_task(model)
        task(*batch)['loss'].backward()
        assert set(task.get_checkpoint_state()['state_dict']) == keys
        assert not any(module._forward_hooks for module in model.modules())

    def test_ema_and_deepcopy(self, toy, batch):
        task = make_task(toy)
        task.setup_ema(decay=0.5)
        optimizer = torch.optim.SGD(toy.parameters(), lr=0.1)
        task(*batch)['loss'].backward()
        optimizer.step()
        before = copy.deepcopy(task.get_trainable_module(ema=True).module.state_dict())
        task.update_ema()
        for name, value in task.get_trainable_module(ema=True).module.state_dict().items():
            torch.testing.assert_close(value, 0.5 * before[name] + 0.5 * toy.state_dict()[name])
        other = copy.deepcopy(task)
        torch.testing.assert_close(other(*batch)['loss'], task(*batch)['loss'])

    def test_checkpoint_restores_weights_ema_and_schedule(self, toy, batch, tmp_path):
        task = make_task(toy, start_steps=3)
        task.setup_ema()
        optimizer = torch.optim.SGD(toy.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            task(*batch)['loss'].backward()
            optimizer.step()
        saver = CheckpointSaver(toy, optimizer, task=task, checkpoint_dir=str(tmp_path))
        saver.save_checkpoint(0)
        other = make_task(ToyNet(), start_steps=3)
        resume_task_checkpoint(other, str(tmp_path / 'last.pth.tar'), log_info=False)
        other.setup_ema()
        load_task_ema_checkpoint(other, str(tmp_path / 'last.pth.tar'))
        assert other.step == 2 and other.term_scale == 0
        for ours, theirs in zip(task.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)

    @pytest.mark.parametrize('save, load', [
        (torch.save, lambda path: torch.load(path, weights_only=True)), (save_file, load_file)])
    def test_the_steps_go_with_the_tasks_own_state_dict(self, save, load, toy, batch, tmp_path):
        """As Lightning and Accelerate save it, in a module of their own: the terms do not start anew."""
        task, other = make_task(toy, start_steps=3), make_task(ToyNet(), start_steps=3)
        for _ in range(4):
            task(*batch)
        save(torch.nn.ModuleDict({'task': task}).state_dict(), tmp_path / 'checkpoint')
        torch.nn.ModuleDict({'task': other}).load_state_dict(load(tmp_path / 'checkpoint'))
        assert other.step == 4 and other.term_scale == 1 and set(other(*batch)) > TERMS

    @pytest.mark.parametrize('start_steps', [0, 3])
    def test_a_state_dict_without_the_steps_is_loaded(self, start_steps, toy, caplog):
        """Of an earlier version, or of timm's own task; a warning where the position matters."""
        task = make_task(ToyNet(), start_steps=start_steps)
        task.step = 7
        task.load_state_dict(ClassificationTask(toy, verbose=False).state_dict())
        assert task.step == 7
        assert ('count on from 7. Set task.step' in caplog.text) == bool(start_steps)
        with pytest.raises(RuntimeError, match='Missing key'):
            task.load_state_dict({})

    def test_clipping_with_the_amp_scaler(self, toy, batch):
        task = make_task(toy)
        optimizer = torch.optim.SGD(toy.parameters(), lr=0.1)
        scaler = NativeScaler(device='cpu')
        with torch.autocast('cpu', dtype=torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
            loss = task(*batch)['loss']
            scaler(loss, optimizer, clip_grad=1e-3, parameters=task.get_clip_parameters())
        assert torch.nn.utils.get_total_norm([p.grad for p in toy.parameters()]) <= 1e-3 * 1.01

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize('order', [1, 2])
    def test_amp(self, order, dtype, batch):
        model = create('resnet20_cifar').eval()
        task = make_task(model, order=order)
        expected = task(*batch)
        with torch.autocast('cpu', dtype=dtype), torch.backends.mkldnn.flags(enabled=False):
            result = task(*batch)
            result['loss'].backward()
        assert result['loss'].dtype == torch.float32
        for name in TERMS:
            torch.testing.assert_close(result[name], expected[name], rtol=0, atol=0.05)
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_channels_last(self, batch):
        model = create('resnet20_cifar').double().eval()
        images, target = batch[0].double(), batch[1]
        expected = parameter_gradients(make_task(model), images, target)
        model.to(memory_format=torch.channels_last)
        actual = parameter_gradients(make_task(model), images.contiguous(memory_format=torch.channels_last), target)
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-8, atol=1e-12)

    @pytest.mark.parametrize('order', [1, 2])
    @pytest.mark.parametrize('name, kwargs', [('resnet20_cifar', {}), ('convnext_atto', {'depths': (1, 1, 2, 1)})])
    def test_gradient_checkpointing(self, name, kwargs, order):
        model = create(name, **kwargs).double().eval()
        size = 32 if name == 'resnet20_cifar' else 64
        images, target = torch.randn(2, 3, size, size, dtype=torch.float64), torch.tensor([1, 2])
        expected = parameter_gradients(make_task(model, order=order), images, target)
        model.set_grad_checkpointing(True)
        actual = parameter_gradients(make_task(model, order=order), images, target)
        for key, gradient in expected.items():
            torch.testing.assert_close(actual[key], gradient, rtol=1e-8, atol=1e-12)

    @pytest.mark.parametrize('order', [1, 2])
    def test_gradient_checkpointing_counts_a_batch_as_often_as_without_icasc(self, order, batch):
        statistics = []
        for task_class in (ClassificationTask, ICASCTask):
            model = create('resnet20_cifar').train()
            model.set_grad_checkpointing(True)
            kwargs = {'order': order} if task_class is ICASCTask else {}
            task_class(model, verbose=False, **kwargs)(*batch)['loss'].backward()
            statistics.append({k: v for k, v in model.state_dict().items() if 'running' in k or 'batches' in k})
        for name, value in statistics[0].items():
            torch.testing.assert_close(statistics[1][name], value)

    @pytest.mark.parametrize('order', [1, 2])
    def test_a_model_that_checkpoints_by_itself(self, order, batch):
        """No flag tells; a batch counts as often as without ICASC."""
        counts = []
        for task_class in (ClassificationTask, ICASCTask):
            model = create('resnet20_cifar').train()
            last = model.layer3[-1]
            last.forward = partial(torch.utils.checkpoint.checkpoint, last.forward, use_reentrant=False)
            kwargs = {'order': order} if task_class is ICASCTask else {}
            task = task_class(model, verbose=False, **kwargs)
            if order == 2 and task_class is ICASCTask:
                with pytest.raises(ICASCError, match='calls torch.utils.checkpoint by itself'):
                    task(*batch)
                return
            task(*batch)['loss'].backward()
            counts.append({k: v for k, v in model.state_dict().items() if 'running' in k or 'batches' in k})
        for name, value in counts[0].items():
            torch.testing.assert_close(counts[1][name], value)

    @pytest.mark.parametrize('around', [False, True])
    def test_reentrant_checkpoints_are_refused(self, around, batch):
        """Around a module, those of transformers take its hooks in, and are for training alone."""
        model = create('resnet20_cifar').train()
        checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=True)
        if around:
            trunk = torch.nn.Sequential(model.conv1, model.bn1, model.act1, model.layer1, model.layer2)
            model.forward_features = lambda x: (
                checkpoint(model.layer3, trunk(x)) if model.training else model.layer3(trunk(x)))
        else:
            model.layer3.forward = partial(checkpoint, model.layer3.forward)
        with pytest.raises(ICASCError, match='does not work with torch.utils.checkpoint.use_reentrant=True'):
            make_task(model, order=1)(*batch)

    def test_gradient_checkpointing_of_attention(self):
        model = create('vit_tiny_patch16_224').eval()
        model.set_grad_checkpointing(True)
        images, target = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
        make_task(model, order=1)(images, target)['loss'].backward()
        with pytest.raises(ICASCError, match='Use `order=1`, or turn checkpointing off'):
            make_task(model, order=2)(images, target)

    def test_frozen_trunk(self, batch):
        """Fine-tuning the head only."""
        model = create('resnet20_cifar').eval()
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
        gradients = parameter_gradients(make_task(model), *batch)
        assert set(gradients) == {'trainable_module.fc.weight', 'trainable_module.fc.bias'}

    @pytest.mark.parametrize('order, trained, warned', [(1, 'fc', True), (2, 'fc', False), (1, 'layer3', False)])
    def test_terms_that_train_nothing_are_warned_of_once(self, order, trained, warned, batch, caplog):
        model = create('resnet20_cifar').requires_grad_(False)
        getattr(model, trained).requires_grad_(True)
        task = make_task(model, order=order)
        for _ in range(2):
            task(*batch)
        assert caplog.text.count('ICASCTask: the terms train nothing. With `order=1`') == warned

    def test_a_model_that_returns_probabilities_is_warned_of_once(self, batch):
        model = create('resnet20_cifar')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            make_task(model)(*batch)
        model.fc = torch.nn.Sequential(model.fc, torch.nn.Softmax(1))
        task = make_task(model)
        with pytest.warns(UserWarning, match='`model` returns probabilities .* Let it return the scores') as told:
            for _ in range(2):
                task(*batch)
        assert len(told) == 1


@pytest.mark.parametrize('order', [1, 2])
def test_two_process_ddp_equals_one_process_on_the_joined_batch(order, tmp_path):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=generator)
    target = torch.tensor([0, 1, 2, 3])
    torch.save((images, target), tmp_path / 'batch.pt')
    in_two_processes(partial(
        save_gradients_of_half, num_classes=10, make_task=partial(make_task, order=order)), tmp_path)
    model = small_convnext(10)
    expected = parameter_gradients(make_task(model, order=order), images, target)
    for rank in range(2):
        actual = torch.load(tmp_path / f'gradients-{rank}.pt')
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient, expected[f'trainable_module.{name}'], rtol=1e-6, atol=1e-10)


def test_the_trainer_of_transformers(toy, tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    rows = [{'input': torch.randn(3, 32, 32), 'target': i % 4} for i in range(6)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, num_train_epochs=1, report_to=[],
        label_names=['target'], use_cpu=True)
    shapes = []

    def measure(prediction):
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {}

    task = make_task(toy, theta=0.7)
    trainer = transformers.Trainer(
        task, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=measure)
    trainer.train()
    trainer.evaluate()
    assert task.step == 3 and task.config == ICASCConfig(order=2, theta=0.7)
    assert shapes == [((6, 4), (6,))]  # the logits alone


class TestClearErrors:

    def test_unknown_parameter(self, toy):
        with pytest.raises(TypeError, match="no parameter \\['omgea'\\]; ICASC has .*omega"):
            make_task(toy, omgea=10.)

    def test_negative_schedule(self, toy):
        with pytest.raises(ValueError, match='start_steps and ramp_steps must be >= 0'):
            make_task(toy, start_steps=-1)

    def test_compiled_model(self, toy):
        with pytest.raises(ICASCError, match=r'call task.compile\(\)'):
            make_task(torch.compile(toy, backend='eager'))

    @pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint64])
    @pytest.mark.parametrize('smoothing', [0., 0.1])
    def test_class_indices_of_any_integer_type(self, dtype, smoothing, toy):
        images, target = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
        task = ICASCTask(toy, criterion_kwargs=dict(smoothing=smoothing), verbose=False)
        assert torch.equal(task(images, target.to(dtype))['loss'], task(images, target)['loss'])
        with pytest.raises(TargetError, match='must be a tensor, got list'):
            task(images, [0, 3])

    def test_a_batch_that_is_refused_is_no_step(self, toy):
        task = make_task(toy)
        with pytest.raises(TargetError):
            task(torch.randn(2, 3, 8, 8), torch.tensor([0, 9]))
        assert task.step == 0

    def test_static_graph(self, toy):
        with pytest.raises(ICASCError, match='static_graph=True'):
            make_task(toy).prepare_distributed(static_graph=True)

    def test_static_graph_of_a_wrapper_that_the_user_has_made(self, toy):
        class Wrapper(torch.nn.parallel.DistributedDataParallel):
            def __init__(self):  # without a process group
                torch.nn.Module.__init__(self)
                self.module, self.static_graph = toy, True

        with pytest.raises(ICASCError, match='static_graph=True'):
            make_task(Wrapper())(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))

    def test_layers_are_checked_at_construction(self, toy):
        with pytest.raises(LayerResolutionError, match="no layer 'layer4'"):
            make_task(toy, layers=('stem', 'layer4'))
        with pytest.raises(LayerResolutionError, match='no two features'):
            make_task(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), input_size=(3, 2, 2))

    @pytest.mark.parametrize('kind, target', [
        (ICASCTask, torch.tensor([0, 1])), (MultiLabelICASCTask, torch.eye(10)[:2]),
        (PublicApproachTask, torch.tensor([0, 1]))])
    def test_layers_of_ones_own_are_probed_at_the_size_of_the_images(self, kind, target):
        """Not at 224 x 224 when the task is made, which a model of a fixed size cannot take."""
        model = create('vit_tiny_patch16_224', img_size=32)
        model.pretrained_cfg = {}
        task = kind(model, layers=('blocks.8', 'blocks.10'), verbose=False)
        assert set(task(torch.randn(2, 3, 32, 32), target)) >= TERMS
        with pytest.raises(LayerResolutionError, match='cannot run on 3 x 48 x 48 images .`input_size`'):
            kind(model, layers=('blocks.8', 'blocks.10'), input_size=(3, 48, 48))

    def test_data_parallel(self, toy, batch):
        """Several devices in threads of one process; the copies are marked as torch marks them."""
        wrapped = torch.nn.DataParallel(toy)
        wrapped.device_ids = [0, 1]
        with pytest.raises(ICASCError, match='does not work with nn.DataParallel .* use DistributedDataParallel'):
            make_task(wrapped)(*batch)
        with pytest.raises(ICASCError, match='use DistributedDataParallel'):
            attention_maps(wrapped, batch[0])
        task = make_task(toy, start_steps=1)
        task._is_replica = True
        with pytest.raises(ICASCError, match='use DistributedDataParallel'):
            task(*batch)
        toy._is_replica = True
        with pytest.raises(ICASCError, match='use DistributedDataParallel'):
            attention_maps(toy, batch[0])

    @pytest.mark.parametrize('start_steps', [0, 5])
    def test_target_out_of_range(self, start_steps, toy, batch):
        with pytest.raises(TargetError, match='holds class 4'):
            make_task(toy, start_steps=start_steps)(batch[0], torch.tensor([0, 1, 2, 4]))

    def test_distilled_head_in_training_mode(self):
        model = create('deit_tiny_distilled_patch16_224').train()
        task = make_task(model, input_size=(3, 64, 64))
        model.set_distilled_training(True)
        with pytest.raises(ICASCError, match='several tensors of one shape, as a distilled'):
            task(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))


class TestModelsOutsideTimm:
    """Any module that returns class scores."""

    @pytest.mark.parametrize('layers', [('layer3', 'layer4'), ('layer2.1', 'layer3.1.bn2'), None])
    def test_a_torchvision_model(self, layers):
        from torchvision.models import resnet18
        torch.manual_seed(0)
        model = resnet18(num_classes=5)
        keys = list(model.state_dict())
        result = make_task(model, layers=layers)(torch.randn(2, 3, 64, 64), torch.tensor([0, 3]))
        result['loss'].backward()
        assert {'loss_as_inner', 'loss_as_last', 'loss_ac'} < set(result)
        assert all(p.grad.isfinite().all() for p in model.parameters()) and model.conv1.weight.grad.any()
        assert list(model.state_dict()) == keys


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'resnet18', 'efficientnet_b0'])
def test_the_model_that_comes_back_is_the_model_that_was_given(name):
    """After a step: the same modules, keys, training flags and fused attention, no hook, the forward of plain timm."""
    model, images = create(name).train(), torch.randn(2, 3, 64, 64)
    twin = copy.deepcopy(model)
    modules = [(path, type(module)) for path, module in model.named_modules()]
    attributes = [{k: v for k, v in vars(m).items() if not k.startswith('_')} for m in model.modules()]
    task = make_task(model)
    task(images, torch.tensor([1, 2]))['loss'].backward()
    twin(images)  # the one forward pass that BatchNorm counts
    assert [(path, type(module)) for path, module in model.named_modules()] == modules
    assert [{k: v for k, v in vars(m).items() if not k.startswith('_')} for m in model.modules()] == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    expected, after = twin.state_dict(), model.state_dict()
    assert list(after) == list(expected)
    for key in expected:
        torch.testing.assert_close(after[key], expected[key], msg=key)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), twin.eval()(images))
