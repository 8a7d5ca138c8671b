"""What the tests of LaViT and of the backbones that it goes into share."""

import functools
import re

import torch
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention.less_attention import diagonality_loss
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_model
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info


def image(size, batch=1):
    height, width = (size, size) if isinstance(size, int) else size
    return TensorSpec("image", (batch, 3, height, width), "image")


@functools.cache
def counts(name, **options):
    """Parameters and GMACs at 224 px."""
    with torch.device("meta"):
        model = create_model(name, **options)
    return count_parameters(model), count_macs(model, [image(224)]) / 1e9


def deviations(name):
    """How far a model is from its published parameters and FLOPs, written as its note has it."""
    params, gmacs = counts(name)
    published = model_info(name).published
    off = {"params_m": params / 1e6, "flops_g": gmacs}
    return [f"{100 * (own / published[k] - 1):+.1f} %" for k, own in off.items() if k in published]


def noted(name):
    """The percentages in a model's note, in order."""
    return re.findall(r"[+-]\d+\.\d %", model_info(name).note or "")


def rows(model, batch=3):
    """Images of very different contrast."""
    height, width = model.config.image
    scale = torch.tensor([0.1, 1.0, 10.0][:batch]).view(batch, 1, 1, 1)
    return torch.randn(batch, 3, height, width) * scale


def outputs(model, x):
    out = model(x)
    return out if isinstance(out, tuple) else (out,)


def check_forward(model, reference, layers, atol=1e-5):
    """The output and the loss are the reference's, which gives maps of so many layers too."""
    model.eval()
    x = torch.randn(2, 3, *model.config.image)
    expected, maps = reference(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=atol)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert len(maps) == layers
    loss = sum((diagonality_loss(m) for m in maps), torch.zeros(()))
    torch.testing.assert_close(model.forward_with_loss(x)[1], loss, rtol=1e-4, atol=1e-4)


def check_batch_independence(model):
    """Every image alone gives what it gives among others; another image gives something else."""
    model.eval()
    x = rows(model)
    with torch.no_grad():
        together, alone = outputs(model, x), [outputs(model, row[None]) for row in x]
    for i, whole in enumerate(together):
        parts = torch.cat([one[i] for one in alone])
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
        assert (whole[1] - whole[2]).abs().max() > 1e-2 * whole.abs().max()


def check_capture(model, batch=3):
    """The captured program of any batch computes what the model does, in at most five axes."""
    randomize_(model.eval())
    program = capture(model, [image(model.config.image)], dynamic_batch=True)
    ranks = {
        value.dim()
        for node in program.exported.graph.nodes
        for value in [node.meta.get("val")]
        if isinstance(value, torch.Tensor)
    }
    assert max(ranks) <= 5
    x = rows(model, batch)
    with torch.no_grad():
        for got, want in zip(program(x), outputs(model, x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
            assert (want[0] - want[1]).abs().max() > 1e-2 * want.abs().max()


def check_training_step(model, **loss):
    """Cross-entropy and the diagonality loss leave finite gradients everywhere; gives the loss."""
    model.train()
    logits, extra = model.forward_with_loss(rows(model, 2), **loss)
    (F.cross_entropy(logits, torch.tensor([0, 1])) + extra).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    return extra


def layer_norm(w, name, x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def heads_of(x, heads):
    """(B, N, C) to (B, heads, N, d)."""
    return torch.stack(x.chunk(heads, -1), 1)


def joined(x):
    """(B, heads, N, d) to (B, N, C)."""
    return torch.cat(x.unbind(1), -1)


def mlp(w, name, x):
    return linear(w, f"{name}.fc2", F.gelu(linear(w, f"{name}.fc1", x)))


def transformed(w, name, scores):
    """Equation 5, by sums over the axes that Θ and Ψ act on."""
    theta, psi = w[f"{name}.transform.theta"], w[f"{name}.transform.psi"]
    return torch.einsum("qn,bhnm,km->bhqk", psi, scores, theta)


def batch_norm(w, name, x):
    shape = (1, -1, 1, 1)
    mean, var, weight, bias = (
        w[f"{name}.{part}"].view(shape)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) * weight / (var + 1e-5).sqrt() + bias
