"""Performer: against the definition, its random features, and softmax attention as its limit."""

import math

import pytest
import torch

from edgevit.errors import OptionError
from edgevit.zoo.attention.performer import PerformerAttention, orthogonal_features
from edgevit.zoo.counting import count_parameters
from edgevit.zoo.factory import create_block


def define(query, key, value, matrix, kernel):
    """The core's result for one image (heads, N, d), by the published formula."""
    width, count = query.shape[-1], matrix.shape[0]
    query, key = query * width**-0.25, key * width**-0.25
    over_queries, over_keys = query @ matrix.T, key @ matrix.T
    if kernel == "relu":
        q, k = over_queries.relu() + 1e-3, over_keys.relu() + 1e-3
    else:
        stabiliser = over_queries.amax(-1, keepdim=True)
        q = over_queries - (query**2).sum(-1, keepdim=True) / 2 - stabiliser
        q = count**-0.5 * (q.exp() + 1e-4)
        k = over_keys - (key**2).sum(-1, keepdim=True) / 2 - over_keys.max()
        k = count**-0.5 * (k.exp() + 1e-4)
    weights = q @ k.transpose(-2, -1)
    return weights / weights.sum(-1, keepdim=True) @ value


@pytest.mark.parametrize("kernel", ["exp", "relu"])
def test_it_computes_its_definition(kernel):
    torch.manual_seed(0)
    block = PerformerAttention(32, 4, kernel=kernel).eval()
    x = torch.randn(1, 21, 32)
    split = (
        layer(x)[0].reshape(21, 4, 8).transpose(0, 1)
        for layer in (block.query, block.key, block.value)
    )
    mixed = define(*split, block.features, kernel).transpose(0, 1).reshape(1, 21, 32)
    torch.testing.assert_close(block(x), block.proj(mixed), rtol=1e-4, atol=1e-5)


def test_the_kernels_differ():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 21, 8)
    outputs = [
        create_block("performer", tokens=21, head_dim=8, heads=2, kernel=kernel)(query, key, value)
        for kernel in ("exp", "relu")
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2


def test_more_features_come_nearer_to_softmax_attention():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 40, 8) * torch.tensor([0.7, 0.7, 1]).view(
        3, 1, 1, 1, 1
    )
    exact = create_block("softmax", tokens=40, head_dim=8, heads=2)(query, key, value)
    errors = [
        (core(query, key, value) - exact).abs().mean()
        for count in (16, 4096)
        for core in [create_block("performer", tokens=40, head_dim=8, heads=2, features=count)]
    ]
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 3


def test_the_features_are_orthogonal_in_blocks_and_as_long_as_gaussian_rows():
    torch.manual_seed(0)
    rows = orthogonal_features(110, 32)
    assert rows.shape == (110, 32)
    lengths = rows.norm(dim=1)
    assert lengths.square().mean() == pytest.approx(32, rel=0.15)
    assert lengths.std() > 0.3
    for start in (0, 32, 64, 96):
        unit = (rows / lengths[:, None])[start : start + 32]
        identity = torch.eye(len(unit))
        torch.testing.assert_close(unit @ unit.T, identity, rtol=0, atol=1e-5)
    assert (rows[:32] / lengths[:32, None] - rows[32:64] / lengths[32:64, None]).abs().max() > 0.1


def test_the_default_is_that_of_vision_xformers():
    block = PerformerAttention(128, 4)
    assert block.features.shape == (110, 32) == (int(32 * math.log(32)), 32)
    assert "features" in block.state_dict()
    assert count_parameters(block) == 4 * (128 * 128 + 128)


def test_the_random_matrix_comes_from_the_seed():
    one, same, other = (
        create_block("performer", tokens=16, head_dim=8, heads=2, seed=seed).block.features
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "elu"}, "kernel: expected exp or relu, got 'elu'"),
        ({"features": 0}, "features"),
        ({"rope": True}, "tokens"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        PerformerAttention(16, 2, **options)
