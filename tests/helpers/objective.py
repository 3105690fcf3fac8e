"""The objective by one-image-at-a-time loops, and directional finite differences."""
import math

import torch

from timm_icasc import icasc_forward, resolve_layers


def double_batch(batch=3, size=16, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
    return images, torch.randint(num_classes, (batch,), generator=generator)


def layers_of(model, images):
    return resolve_layers(model, input_size=tuple(images.shape[1:]))


def loop_map(feature, gradient, method):
    """A trainable method's map, `[H, W]`, of one image: one pixel at a time."""
    if method == 'ach_signed':  # Eq. 2 of twice as many features that are not negative
        feature, gradient = torch.cat([feature.relu(), (-feature).relu()]), torch.cat([gradient, -gradient])
        method = 'ach'
    value = {'ach': lambda g: max(g, 0.), 'layer_cam': lambda g: max(g, 0.)}.get(method, float)
    channels, height, width = feature.shape
    result = [[0.] * width for _ in range(height)]
    for k in range(channels):
        values = [[value(g) for g in row] for row in gradient[k].tolist()]
        mean = sum(map(sum, values)) / (height * width)
        for i in range(height):
            for j in range(width):
                weight = mean if method in ('ach', 'grad_cam') else values[i][j]
                result[i][j] += weight * feature[k, i, j].item()
    return torch.tensor([[max(v, 0.) for v in row] for row in result], dtype=torch.float64)


def reference_terms(model, images, present, absent, layers, method):
    """Eqs. 1-5 with default options: one image at a time, sums as Python loops.

    `present` are the classes of each image, whose scores are summed; the confused class is one of those `absent`.
    """
    inner_path, last_path = layers.inner.path, layers.last.path
    rows = []
    for image, targets, others in zip(images, present, absent, strict=True):
        taps = {}
        handles = [
            model.get_submodule(p).register_forward_hook(lambda m, a, o, p=p, taps=taps: taps.__setitem__(p, o))
            for p in (inner_path, last_path)]
        logits = model(image[None])[0]
        for handle in handles:
            handle.remove()
        confused = max(others, key=lambda c: logits[c].item())

        def attention(path, classes, taps=taps, logits=logits):
            gradient = sum(torch.autograd.grad(logits[c], taps[path], retain_graph=True)[0][0] for c in classes)
            return loop_map(taps[path][0].detach(), gradient, method)

        a_last, c_last, a_inner, c_inner = (
            attention(p, c) for p in (last_path, inner_path) for c in (targets, [confused]))
        maximum = a_last.max().item()
        # A map without attention (the toy net's Grad-CAM has such) leaves the sigmoid at 0.
        mask = torch.tensor(
            [[1 / (1 + math.exp(-100. * (v / maximum - 0.55))) if maximum else 0.5 for v in row]
             for row in a_last.tolist()], dtype=torch.float64)
        inner_mask = torch.nn.functional.interpolate(
            mask[None, None], size=tuple(a_inner.shape), mode='bilinear', align_corners=False)[0, 0]

        def loop_sum(x):
            return sum(v for row in x.tolist() for v in row)

        def ratio(x, y):
            return x / y if y else 0.

        def separation(a, c, m):
            overlap = [
                [min(x, y) * z for x, y, z in zip(*r, strict=True)]
                for r in zip(a.tolist(), c.tolist(), m.tolist(), strict=True)]
            return ratio(2 * loop_sum(torch.tensor(overlap, dtype=torch.float64)), loop_sum(a) + loop_sum(c))

        rows.append({
            'as_inner': separation(a_inner, c_inner, inner_mask), 'as_last': separation(a_last, c_last, mask),
            'ac': 0.8 - ratio(loop_sum(a_inner * inner_mask), loop_sum(a_inner))})
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def objective_value(model, images, target, layers, config):
    output = icasc_forward(model, images, target, layers, config)
    return torch.nn.functional.cross_entropy(output.logits, target) + output.weighted_sum(config)


def directional_derivatives(model, value, directions=3, step=1e-6):
    """(analytical, central difference) of `value()` along random directions in parameter space."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(value(), parameters)
    generator = torch.Generator().manual_seed(7)
    for _ in range(directions):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().std() for p in parameters]
        analytical = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(sign * step * d)
            values.append(value().item())
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.sub_(sign * step * d)
        yield analytical, (values[0] - values[1]) / (2 * step)

