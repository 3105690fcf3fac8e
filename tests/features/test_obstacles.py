"""Where no layers are found, the message says why, or which paths there are."""
import pytest
import timm
import torch
from helpers.models import ToyNet, create
from helpers.wrappers import LightningLike

from timm_icasc import (
    ICASCConfig,
    ICASCError,
    ICASCTask,
    LayerResolutionError,
    attention_maps,
    icasc_forward,
    resolve_layers,
)

SIZE, IMAGES, TARGET = (3, 16, 16), torch.linspace(-1, 1, 1536).view(2, 3, 16, 16).sin(), torch.tensor([0, 1])


def flat(*modules):
    return torch.nn.Sequential(
        torch.nn.Sequential(*modules), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))


def test_candidate_paths_are_listed():
    conv = torch.nn.Conv2d
    model = flat(conv(3, 4, 3, 2, 1), torch.nn.ReLU(), conv(4, 4, 3, 2, 1), torch.nn.ReLU())
    with pytest.raises(LayerResolutionError, match=(
            r"Spatial features on the way to the scores: '0.0' \(8 x 8\), '0.1' \(8 x 8\), "
            r"'0.2' \(4 x 4\), '0.3' \(4 x 4\), '0' \(4 x 4\)\.$")) as error:
        resolve_layers(model, input_size=SIZE)
    first, last = '0.1', '0.3'
    assert f"'{first}'" in str(error.value) and resolve_layers(model, (first, last), SIZE).last.path == last
    with pytest.raises(LayerResolutionError, match=r"Layer '2'.*Spatial features on the way to the scores: '0.0'"):
        resolve_layers(model, ('0.1', '2'), SIZE)


class Unrecorded(ToyNet):
    def forward(self, x):
        with torch.no_grad():
            x = self.stage(self.stem(x))
        return self.fc(x.mean((2, 3)))


class Detached(ToyNet):
    def forward(self, x):
        return self.fc(self.stage(self.stem(x)).mean((2, 3)))


class Detach(torch.nn.Module):
    def forward(self, x):
        return x.detach()


def detached():
    model = Detached()
    model.stage.append(Detach())
    return model


class DetachInside(ToyNet):
    def forward(self, x):
        return self.fc(self.stage(self.stem(x)).detach().mean((2, 3)))


def quantised():
    return torch.ao.quantization.quantize_dynamic(ToyNet(), {torch.nn.Linear})


def no_gradient_at_all():
    model = ToyNet()
    model.forward = torch.no_grad()(model.forward)
    return model


def scripted_part():
    model = ToyNet()
    model.stage = torch.jit.script(model.stage)
    return model


@pytest.mark.filterwarnings('ignore')  # of torch, of its quantisation and scripting
@pytest.mark.parametrize('make, message', [
    (Unrecorded, r"'stem' runs with gradients switched off \(torch.no_grad\(\)"),
    (no_gradient_at_all, "class scores of ToyNet have no gradient: 'stem' runs with gradients switched off"),
    (detached, r"'stage.2' hands no gradient on \(detach\(\)"),
    (DetachInside, r'no gradient of the scores reaches the images.*\(detach\(\) in a forward\(\)\?\)'),
    (quantised, "'fc' is quantised and has no derivative, so pass the model"),
    (lambda: torch.jit.trace(ToyNet(), IMAGES), 'its modules are not called one by one'),
    (lambda: torch.jit.script(torch.nn.Sequential(ToyNet().stem)), 'its modules are not called one by one'),
    (scripted_part, "ToyNet shows no layers: 'stage' is scripted or traced.*put the module that it was made of"),
])
def test_each_obstacle_has_its_own_sentence(make, message):
    for wrap in (lambda model: model, torch.nn.Sequential):
        if wrap is torch.nn.Sequential:
            message = message.replace("'st", "'0.st").replace("'fc", "'0.fc").replace('ToyNet', 'Sequential')
        with pytest.raises(LayerResolutionError, match=message):
            resolve_layers(wrap(make()), input_size=SIZE)


@pytest.mark.filterwarnings('ignore')
def test_a_traced_part_is_no_obstacle():
    model = ToyNet()
    model.stage[0] = torch.jit.trace(model.stage[0], torch.zeros(2, 5, 8, 8))
    assert resolve_layers(model, input_size=SIZE).last.path == 'stage'


def test_an_exported_model_is_refused_in_one_sentence():
    exported = torch.export.export(ToyNet().eval(), (IMAGES,)).module()
    for model in (exported, torch.nn.Sequential(exported)):
        for take in (resolve_layers, lambda m, input_size: attention_maps(m, IMAGES)):
            with pytest.raises(ICASCError, match=r'`model` was exported .*: pass the model that it was made of'):
                take(model, input_size=SIZE)


COMPILE = {
    'whole': lambda model: torch.compile(model, backend='eager'),
    'in a wrapper': lambda model: LightningLike(torch.compile(model, backend='eager')),
    'wrapper': lambda model: torch.compile(LightningLike(model), backend='eager'),
}


def in_place(model):
    model.compile(backend='eager')
    return model


@pytest.mark.parametrize('how', [*COMPILE, 'in place'])
def test_maps_of_a_compiled_model_are_those_of_the_plain_one(how):
    model = create('resnet18').eval()
    images = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64).sin()
    expected = {layer: attention_maps(model, images, [1, 2], layer=layer) for layer in ('inner', 'last')}
    compiled = {**COMPILE, 'in place': in_place}[how](model)
    for layer, maps in expected.items():
        assert torch.equal(attention_maps(compiled, images, [1, 2], layer=layer), maps)
    assert attention_maps(compiled, images, 0, create_graph=True).requires_grad


@pytest.mark.parametrize('how', [*COMPILE, 'in place'])
def test_training_of_a_compiled_model_is_refused_in_one_sentence(how):
    compiled = {**COMPILE, 'in place': in_place}[how](ToyNet())
    layers = resolve_layers(compiled, input_size=SIZE)
    with pytest.raises(ICASCError, match='`model` is compiled.*train the plain model'):
        icasc_forward(compiled, IMAGES, TARGET, layers, ICASCConfig())
    with pytest.raises(ICASCError, match='compile'):
        ICASCTask(compiled, verbose=False)(IMAGES, TARGET)


def test_what_is_compiled_before_the_layers_may_stay_so():
    model = ToyNet()
    layers = resolve_layers(model, ('stem.1', 'stage'), SIZE)
    plain = icasc_forward(model, IMAGES, TARGET, layers, ICASCConfig(order=2))
    model.stem[0].compile(backend='eager')
    compiled = icasc_forward(model, IMAGES, TARGET, layers, ICASCConfig(order=2))
    for name, values in plain.terms.items():
        torch.testing.assert_close(compiled.terms[name], values)


def test_timm_model_frozen_but_for_its_head():
    """Frozen parameters are no obstacle."""
    model = timm.create_model('test_resnet', num_classes=4)
    layers = resolve_layers(model, input_size=(3, 64, 64))
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    assert resolve_layers(torch.nn.Sequential(model), input_size=(3, 64, 64)).last.path == f'0.{layers.last.path}'
