"""The less-attention block, its transform and the diagonality loss, against their formulas."""

import math

import pytest
import torch

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention import softmax  # noqa: F401
from edgevit.zoo.attention.less_attention import (
    LessAttention,
    ScoreTransform,
    attention_scores,
    diagonality_loss,
)
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import block_inputs, create_block, create_model
from edgevit.zoo.models import deit  # noqa: F401
from edgevit.zoo.registry import block_info


def random_(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return module


def define_transform(transform, scores):
    """Ψ(Θ(A)ᵀ)ᵀ of one map, each linear map applied to one row after the other."""
    theta, psi = transform.theta, transform.psi
    extra = [0 if b is None else b for b in (transform.theta_bias, transform.psi_bias)]
    by_key = torch.stack([theta @ row + extra[0] for row in scores])
    return torch.stack([psi @ row + extra[1] for row in by_key.T]).T


@pytest.mark.parametrize("bias", [False, True])
def test_the_transform_is_linear_along_the_keys_and_then_along_the_queries(bias):
    torch.manual_seed(0)
    transform = random_(ScoreTransform(6, 4, bias=bias))
    scores = torch.randn(2, 3, 6, 4)
    expected = [torch.stack([define_transform(transform, a) for a in heads]) for heads in scores]
    torch.testing.assert_close(transform(scores), torch.stack(expected))


def test_the_transform_starts_near_the_identity():
    torch.manual_seed(0)
    transform = ScoreTransform(196, 49)
    for weight in (transform.theta, transform.psi):
        size = len(weight)
        noise = (weight - torch.eye(size)).detach()
        assert float(noise.std()) == pytest.approx(0.02 * size**-0.5, rel=0.05)
    scores = torch.randn(1, 2, 196, 49)
    assert 0 < (transform(scores) - scores).abs().max() < 0.25


def define(block, x):
    """The block's result for one image, head by head."""
    width = x.shape[-1] // block.heads
    parts = block.qkv(x[0]).split(x.shape[-1], -1)
    out = []
    for head in range(block.heads):
        q, k, v = (part[:, head * width : (head + 1) * width] for part in parts)
        scores = define_transform(block.transform, q @ k.T / math.sqrt(width))
        out.append(scores.softmax(-1) @ v)
    return block.proj(torch.cat(out, -1))[None]


@pytest.mark.parametrize("options", [{}, {"prefix_tokens": 1}, {"transform_bias": True}])
def test_the_block_is_vanilla_scores_and_one_transform(options):
    torch.manual_seed(0)
    block = LessAttention(16, 4, tokens=(3, 5), **options)
    random_(block.transform)
    x = torch.randn(1, 15 + options.get("prefix_tokens", 0), 16)
    torch.testing.assert_close(block(x), define(block, x), rtol=1e-5, atol=1e-6)


def test_with_the_identity_it_is_softmax_attention():
    torch.manual_seed(0)
    core = create_block("less_attention", tokens=16, head_dim=8, heads=2)
    core.block.transform.theta.data.copy_(torch.eye(16))
    core.block.transform.psi.data.copy_(torch.eye(16))
    query, key, value = torch.randn(3, 2, 2, 16, 8)
    exact = create_block("softmax", tokens=16, head_dim=8, heads=2)(query, key, value)
    torch.testing.assert_close(core(query, key, value), exact)


def test_the_core_costs_two_products_of_attention_and_two_of_the_transform():
    shape = {"tokens": 64, "head_dim": 16, "heads": 2}
    core = create_block("less_attention", **shape)
    assert count_macs(core, block_inputs("less_attention", **shape)) == 2 * 64 * 64 * (32 + 128)
    assert count_parameters(core.block.transform) == 2 * 64 * 64


def test_it_is_a_block_of_tokens_that_any_backbone_can_have():
    assert block_info("less_attention").layout == "tokens"
    options = {"image_size": 32, "width": 24, "heads": 3, "depth": 2, "num_classes": 5}
    model = create_model("deit_tiny+less_attention", **options)
    assert all(isinstance(block.attn, LessAttention) for block in model.blocks)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_the_capture_computes_the_same_at_any_batch():
    torch.manual_seed(0)
    block = LessAttention(12, 3, tokens=(3, 4))
    random_(block.transform)
    program = capture(block, [TensorSpec("x", (1, 12, 12))], dynamic_batch=True)
    x = torch.randn(3, 12, 12)
    torch.testing.assert_close(program(x)[0], block(x))


def test_given_scores_are_added():
    query, key, given = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 4, 5)
    expected = torch.einsum("bhnd,bhmd->bhnm", query, key) / math.sqrt(8)
    torch.testing.assert_close(attention_scores(query, key), expected)
    torch.testing.assert_close(attention_scores(query, key, given), expected + given)


@pytest.mark.parametrize(("sign", "factor"), [("printed", 1), ("purpose", -1)])
def test_the_loss_is_equation_9(sign, factor):
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 4, 4)
    total = 0.0
    for image in scores:
        for a in image:
            for i in range(4):
                total += sum(float((a[i, j] - a[j, i]).abs()) for j in range(4))
                rest = sum(float(a[i, j]) for j in range(4) if j != i)
                total += factor * (3 * float(a[i, i]) - rest)
    assert float(diagonality_loss(scores, sign)) == pytest.approx(total / 2, rel=1e-5)


@pytest.mark.parametrize(("sign", "raises"), [("printed", False), ("purpose", True)])
def test_only_the_sign_of_its_purpose_raises_the_diagonal(sign, raises):
    scores = torch.zeros(1, 1, 5, 5, requires_grad=True)
    diagonality_loss(scores, sign).backward()
    step = -scores.grad[0, 0]
    diagonal, others = step.diagonal(), step[~torch.eye(5, dtype=torch.bool)]
    assert bool((diagonal > others.max()).all()) is raises
    assert bool((diagonal < others.min()).all()) is not raises


def test_a_symmetric_map_with_equal_entries_costs_nothing():
    assert float(diagonality_loss(torch.full((2, 3, 6, 6), 0.7))) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tokens": None}, OptionError, "tokens: expected height and width"),
        ({"heads": 3}, ShapeError, "3 heads do not divide a width of 16"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        LessAttention(16, **{"heads": 4, "tokens": (4, 4), **options})


def test_another_number_of_tokens_is_refused():
    block = LessAttention(16, 4, tokens=(4, 4))
    with pytest.raises(ShapeError, match="transforms maps of 16 x 16, got 17 x 17"):
        block(torch.zeros(1, 17, 16))


def test_the_loss_refuses_other_signs_and_maps():
    with pytest.raises(OptionError, match="loss_sign: expected printed or purpose, got 'minus'"):
        diagonality_loss(torch.zeros(1, 1, 2, 2), "minus")
    with pytest.raises(ShapeError, match="square maps, got 4 x 2"):
        diagonality_loss(torch.zeros(1, 1, 4, 2))
