"""Ways in which people wrap a timm model."""
import torch
import torch.nn as nn


class Scale(nn.Module):
    """A layer without parameters, before a model (normalisation) or after it (temperature)."""

    def forward(self, x):
        return x * 0.5


class LightningLike(nn.Module):
    """A training module: the model is an attribute, beside metrics and losses."""

    def __init__(self, model):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss()
        self.net = model

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        return self.criterion(self(batch[0]), batch[1])


class HandsOn(nn.Module):
    """PEFT's: every attribute that it lacks is looked for in what it wraps."""

    wrapped = 'model'  # the name of what it wraps

    def __init__(self, model):
        super().__init__()
        setattr(self, self.wrapped, model)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.wrapped), name)

    def forward(self, *args, **kwargs):
        return getattr(self, self.wrapped)(*args, **kwargs)


class LoRALinear(nn.Module):
    """PEFT's `lora.Linear` as it starts: frozen weights and an update of zero."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear
        self.lora_A = nn.Linear(linear.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, linear.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class PeftLike(HandsOn):
    """The structure of `peft.get_peft_model`: `PeftModel.base_model.model`, frozen but for the updates."""

    wrapped = 'base_model'

    def __init__(self, model):
        super().__init__(HandsOn(model))
        model.requires_grad_(False)
        adapted = [
            (module, name, child) for module in model.modules() for name, child in module.named_children()
            if isinstance(child, nn.Linear) and name in ('qkv', 'proj', 'query', 'value')]
        for module, name, child in adapted:
            setattr(module, name, LoRALinear(child))


class Copies(nn.Module):
    """A module of one's own that takes over what the model says, and whose paths are therefore not its own."""

    def __init__(self, model):
        super().__init__()
        self.backbone = model
        self.feature_info = getattr(model, 'feature_info', None)
        self.num_classes = model.num_classes

    def forward(self, x):
        return self.backbone(x)


class Teacher(nn.Module):
    """Distillation: a second model beside it, which runs first and without a graph."""

    def __init__(self, model):
        super().__init__()
        import timm
        self.teacher = timm.create_model('test_resnet', num_classes=model.num_classes)
        self.student = model
        self.teacher_scores = None

    def forward(self, x):
        with torch.no_grad():
            self.teacher_scores = self.teacher(x)
        return self.student(x)


# name -> (makes the wrapper, prefix of the model's paths in it)
WRAPPERS = {
    'sequential': (nn.Sequential, '0.'),
    'before and after': (lambda model: nn.Sequential(Scale(), model, Scale()), '1.'),
    'nested': (lambda model: nn.Sequential(nn.Identity(), LightningLike(model)), '1.net.'),
    'lightning': (LightningLike, 'net.'),
    'hands on': (HandsOn, 'model.'),
    'peft': (PeftLike, 'base_model.model.'),
    'copies': (Copies, 'backbone.'),
    'teacher': (Teacher, 'student.'),
}
