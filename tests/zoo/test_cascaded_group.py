"""Cascaded group attention, against the equations written out, and its refusals."""

import pytest
import torch
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.cascaded_group import CascadedGroupAttention
from edgevit.zoo.factory import block_inputs, create_block
from edgevit.zoo.randomize import randomize_


def block(dim=24, heads=3, tokens=(4, 5), **options):
    torch.manual_seed(0)
    return randomize_(CascadedGroupAttention(dim, heads, tokens=tokens, **options).eval())


def normed(x, layer):
    conv, norm = layer[0], layer[1]
    x = F.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2, groups=conv.groups)
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + 1e-5).sqrt()
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


def written_out(model, x):
    """Equations 2 and 3, position by position."""
    _, dim, height, width = x.shape
    part = dim // model.heads
    outputs, before = [], 0
    for head in range(model.heads):
        chunk = x[:, head * part : (head + 1) * part] + before
        projected = normed(chunk, model.qkv[head])
        query, key, value = projected[:, :16], projected[:, 16:32], projected[:, 32:]
        query = normed(query, model.local[head])
        scores = torch.einsum("bchw,bcyx->bhwyx", query, key) / 4
        for y in range(height):
            for z in range(width):
                for y2 in range(height):
                    for z2 in range(width):
                        entry = abs(y - y2) * width + abs(z - z2)
                        scores[:, y, z, y2, z2] += model.relative_bias.table[head, entry]
        weights = scores.flatten(3).softmax(-1).view_as(scores)
        before = torch.einsum("bhwyx,bcyx->bchw", weights, value)
        outputs.append(before)
    return normed(torch.cat(outputs, 1).relu(), model.proj)


@torch.no_grad()
def test_it_computes_the_equations():
    model = block()
    x = torch.randn(2, 24, 4, 5)
    torch.testing.assert_close(model(x), written_out(model, x), rtol=1e-4, atol=1e-5)
    assert (model(x)[0] - model(x)[1]).abs().max() > 1e-2


@torch.no_grad()
def test_a_head_hears_the_one_before_it_and_not_the_one_after():
    model = block()
    captured = []
    model.proj.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    x = torch.randn(1, 24, 4, 5)
    y = x.clone()
    y[:, 8:16] += 1  # the second head's chunk
    model(x), model(y)
    changed = [
        (a - b).abs().max() > 0 for a, b in zip(*(c.split(8, 1) for c in captured), strict=True)
    ]
    assert changed == [False, True, True]


def test_kernels_belong_to_heads_and_the_last_one_serves_the_rest():
    model = block(dim=32, heads=4, kernels=(5, 3))
    assert [layer[0].kernel_size[0] for layer in model.local] == [5, 3, 3, 3]
    assert [layer[0].kernel_size[0] for layer in block().local] == [7, 5, 3]


def test_its_branch_is_silent_at_first():
    model = CascadedGroupAttention(24, 3, tokens=(4, 4)).eval()
    assert model(torch.randn(1, 24, 4, 4)).abs().max() == 0


def test_as_a_subject_of_its_own():
    shape = {"tokens": 16, "head_dim": 8, "heads": 3, "projections": True}
    model = randomize_(create_block("cascaded_group", **shape))
    inputs = block_inputs("cascaded_group", **shape)
    assert inputs[0].shape == (1, 24, 4, 4)
    program = capture(model, inputs)
    x = torch.randn(inputs[0].shape)
    torch.testing.assert_close(program(x)[0], model(x), rtol=0, atol=1e-6)


def test_it_has_no_core():
    core = create_block("cascaded_group", tokens=16, head_dim=8, heads=2)
    inputs = block_inputs("cascaded_group", tokens=16, head_dim=8, heads=2)
    with pytest.raises(OptionError, match="projections: expected True") as caught:
        capture(core, inputs)
    assert "whole block" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": 5}, ShapeError, "5 heads do not divide a width of 24"),
        ({"prefix_tokens": 1}, ShapeError, "no class token"),
        ({"key_dim": 0}, OptionError, "key_dim: expected a whole number of at least 1, got 0"),
        ({"kernels": (4,)}, OptionError, "kernels: expected odd, positive"),
        ({"kernels": ()}, OptionError, "kernels"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        CascadedGroupAttention(**{"dim": 24, "heads": 3, "tokens": (4, 4), **options})


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for maps of 4 x 5, got 4 x 4"):
        block()(torch.zeros(1, 24, 4, 4))
