"""Nyström attention: against the definition, and softmax attention as its limit."""

import pytest
import torch

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.nystrom import NystromAttention
from edgevit.zoo.attention.rope import RotaryEmbedding
from edgevit.zoo.counting import count_parameters
from edgevit.zoo.factory import create_block


def pseudo_inverse(matrix, iterations):
    """The published iteration on maps (heads, m, m), maxima over the heads."""
    eye = torch.eye(matrix.shape[-1])
    columns, rows = matrix.abs().sum(-2).max(), matrix.abs().sum(-1).max()
    z = matrix.transpose(-2, -1) / (columns * rows)
    for _ in range(iterations):
        p = matrix @ z
        z = z @ (13 * eye - p @ (15 * eye - p @ (7 * eye - p))) / 4
    return z


def define(block, x, *, rope=None):
    """The block's result for one image: zero rows first, then the published formula."""
    count, marks, heads = x.shape[1], block.landmarks, block.heads
    group = -(-count // marks)
    x = torch.cat((torch.zeros(1, group * marks - count, x.shape[2]), x), 1)
    parts = block.qkv(x)[0].reshape(group * marks, 3, heads, -1).permute(1, 2, 0, 3)
    query, key, value = parts
    if rope is not None:
        query, key = rope(query[None])[0], rope(key[None])[0]
    query = query / query.shape[-1] ** 0.5
    few_queries, few_keys = (t.reshape(heads, marks, group, -1).mean(2) for t in (query, key))
    first = (query @ few_keys.transpose(1, 2)).softmax(-1)
    middle = (few_queries @ few_keys.transpose(1, 2)).softmax(-1)
    last = (few_queries @ key.transpose(1, 2)).softmax(-1)
    out = first @ pseudo_inverse(middle, block.iterations) @ (last @ value)
    if block.residual is not None:
        taps = block.residual.weight[:, :, :, 0]
        rows = value.permute(2, 0, 1)  # every channel is a sequence of its own
        conv = torch.nn.functional.conv1d(rows, taps, padding=taps.shape[-1] // 2, groups=heads)
        out = out + conv.permute(1, 2, 0)
    return block.proj(out.transpose(0, 1).flatten(1))[None, -count:]


@pytest.mark.parametrize("tokens", [(4, 8), (5, 7), (2, 3)])
@pytest.mark.parametrize(
    "options",
    [{}, {"rope": True}, {"taps": 0}, {"head_dim": 6, "taps": 5, "iterations": 3}],
)
def test_it_computes_its_definition(tokens, options):
    torch.manual_seed(0)
    block = NystromAttention(16, 2, tokens=tokens, landmarks=8, **options).eval()
    count = tokens[0] * tokens[1]
    rope = RotaryEmbedding(-(-count // 8) * 8, 8) if "rope" in options else None
    x = torch.randn(1, count, 16)
    torch.testing.assert_close(block(x), define(block, x, rope=rope), rtol=1e-4, atol=1e-5)


def test_the_core_pads_as_the_block_does():
    torch.manual_seed(0)
    block = NystromAttention(16, 2, landmarks=8)
    x = torch.randn(2, 35, 16)
    query, key, value = (
        part.reshape(2, 35, 2, 8).transpose(1, 2) for part in block.qkv(x).chunk(3, -1)
    )
    mixed = block.core(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.proj(mixed), block(x), rtol=1e-4, atol=1e-6)


def test_with_every_token_a_landmark_it_is_softmax_attention():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 24, 16)
    exact = create_block("softmax", tokens=24, head_dim=16, heads=2)(query, key, value)
    options = {"landmarks": 24, "taps": 0}
    errors = [
        (core(query, key, value) - exact).abs().max()
        for steps in (2, 24)
        for core in [
            create_block("nystrom", tokens=24, head_dim=16, heads=2, iterations=steps, **options)
        ]
    ]
    assert errors[1] < 1e-3 < errors[0]


def test_an_image_does_not_feel_its_neighbours():
    torch.manual_seed(0)
    block = NystromAttention(16, 2, landmarks=8).eval()
    x = torch.randn(3, 32, 16) * torch.tensor([0.1, 1, 10]).view(3, 1, 1)
    alone = torch.cat([block(row[None]) for row in x])
    torch.testing.assert_close(block(x), alone, rtol=1e-5, atol=1e-6)


def test_the_default_is_that_of_vision_xformers():
    block = NystromAttention(128, 4)
    assert (block.landmarks, block.iterations) == (64, 6)
    assert block.residual.weight.shape == (4, 1, 33, 1)
    assert count_parameters(block) == 128 * 384 + 4 * 33 + 128 * 128 + 128


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"landmarks": 0}, OptionError, "landmarks"),
        ({"iterations": 0}, OptionError, "iterations"),
        ({"taps": 4}, OptionError, "taps: expected an odd number"),
        ({"taps": -1}, OptionError, "taps"),
        ({"rope": True}, OptionError, "tokens"),
        ({"heads": 3}, ShapeError, "do not divide"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        NystromAttention(16, **{"heads": 2, **options})
