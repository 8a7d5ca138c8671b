"""Efficient additive attention, against its equations written out."""

import pytest
import torch

from edgevit.capture import capture
from edgevit.errors import ShapeError
from edgevit.zoo.attention.swift_additive import SwiftAdditiveAttention
from edgevit.zoo.factory import block_inputs, create_block


def attention(dim=12, heads=1):
    torch.manual_seed(0)
    return SwiftAdditiveAttention(dim, heads).eval()


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def written_out(weight, query, key):
    """One head of one image, token by token; query and key (N, d)."""
    query, key = unit(query), unit(key)
    weights = unit(torch.stack([q @ weight[:, 0] / q.shape[0] ** 0.5 for q in query]))
    overall = sum(w * q for w, q in zip(weights, query, strict=True))
    return torch.stack([overall * k for k in key])


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 3])
def test_the_core_computes_the_equations(heads):
    model = attention(heads=heads)
    query, key = torch.randn(2, 2, heads, 7, 12 // heads)
    out = model.core(query, key, key)
    for image in range(2):
        for head in range(heads):
            expected = written_out(model.weight[head], query[image, head], key[image, head])
            torch.testing.assert_close(out[image, head], expected)


@torch.no_grad()
def test_the_queries_are_added_between_the_projections():
    model = attention()
    x = torch.randn(1, 7, 12)
    query, key = model.query(x), model.key(x)
    mixed = written_out(model.weight[0], query[0], key[0])
    expected = model.out(model.proj(mixed) + unit(query)[0])
    torch.testing.assert_close(model(x)[0], expected)
    assert (model(x) - model(x + 1)).abs().max() > 1e-2


@torch.no_grad()
def test_the_value_has_no_part_in_it():
    model = attention()
    query, key, value = torch.randn(3, 1, 1, 7, 12)
    assert torch.equal(model.core(query, key, value), model.core(query, key, key))
    assert not torch.equal(model.core(query, key, value), model.core(query, value, value))
    with pytest.raises(ShapeError, match="differ"):
        model.core(query, key, value[:, :, :3])


@pytest.mark.parametrize("projections", [True, False])
def test_as_a_subject_of_its_own(projections):
    shape = {"tokens": 10, "head_dim": 6, "heads": 2, "projections": projections}
    model = create_block("swift_additive", **shape)
    inputs = block_inputs("swift_additive", **shape)
    program = capture(model, inputs)
    tensors = [torch.randn(spec.shape) for spec in inputs]
    torch.testing.assert_close(program(*tensors)[0], model(*tensors), rtol=0, atol=1e-6)


def test_heads_must_divide_the_width():
    with pytest.raises(ShapeError, match="5 heads do not divide a width of 12"):
        attention(heads=5)
