"""Linformer: against the definition, head by head, in all readings of key and value."""

import pytest
import torch

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.linformer import LinformerAttention
from edgevit.zoo.attention.rope import RotaryEmbedding
from edgevit.zoo.counting import count_parameters
from edgevit.zoo.factory import create_block


def define(block, x, *, rope=None):
    """The block's result for one image, written out per head."""
    heads, width = block.heads, block.query.out_features // block.heads
    query, key = block.query(x[0]), block.key(x[0])
    value = key if block.value is None else block.value(x[0])
    out = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        other = slice(0, width) if block.kv_heads == 1 else own
        q, k, v = query[:, own], key[:, other], value[:, other]
        if rope is not None:
            q, k = (rope(t[None, None])[0, 0] for t in (q, k))
        weights = (q @ (block.sequence.T @ k).T / width**0.5).softmax(-1)
        out.append(weights @ (block.sequence.T @ v))
    return block.proj(torch.cat(out, 1))[None]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_heads": 4},
        {"kv_heads": 4, "share_kv": False, "qkv_bias": True, "rank": 9},
        {"kv_heads": 1, "share_kv": False},
        {"head_dim": 6},
        {"rope": True},
        {"rope": True, "kv_heads": 1},
        {"rope": True, "share_kv": False},
    ],
)
def test_it_computes_its_definition(options):
    torch.manual_seed(0)
    block = LinformerAttention(16, 4, tokens=(5, 6), prefix_tokens=1, **options).eval()
    rope = RotaryEmbedding(31, options.get("head_dim", 4)) if "rope" in options else None
    x = torch.randn(1, 31, 16)
    torch.testing.assert_close(block(x), define(block, x, rope=rope), rtol=1e-5, atol=1e-6)


def test_the_default_is_that_of_vision_xformers():
    block = LinformerAttention(128, 4, tokens=(32, 32), prefix_tokens=1)
    assert block.sequence.shape == (1025, 64)
    assert block.sequence.abs().max() <= 1 / 8
    assert float(block.sequence.std().detach()) == pytest.approx(1 / 8 / 3**0.5, rel=0.02)
    assert count_parameters(block) == 128 * 128 + 128 * 32 + 128 * 128 + 128 + 1025 * 64


def test_the_core_projects_the_sequence():
    torch.manual_seed(0)
    core = create_block("linformer", tokens=16, head_dim=8, heads=2, rank=4)
    query, key, value = torch.randn(3, 2, 2, 16, 8)
    sequence = core.block.sequence.T
    weights = (query @ (sequence @ key).transpose(-2, -1) / 8**0.5).softmax(-1)
    torch.testing.assert_close(core(query, key, value), weights @ (sequence @ value))


def test_with_as_many_rows_as_tokens_and_the_identity_it_is_softmax_attention():
    torch.manual_seed(0)
    core = create_block("linformer", tokens=16, head_dim=8, heads=2, rank=16)
    core.block.sequence.data.copy_(torch.eye(16))
    query, key, value = torch.randn(3, 2, 2, 16, 8)
    exact = create_block("softmax", tokens=16, head_dim=8, heads=2)(query, key, value)
    torch.testing.assert_close(core(query, key, value), exact)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kv_heads": 2}, OptionError, "kv_heads: expected 1 or 4, got 2"),
        ({"rank": 0}, OptionError, "rank"),
        ({"tokens": None}, OptionError, "tokens"),
        ({"heads": 3}, ShapeError, "3 heads do not divide"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        LinformerAttention(16, **{"heads": 4, "tokens": (4, 4), **options})


def test_another_number_of_tokens_is_refused():
    block = LinformerAttention(16, 4, tokens=(4, 4))
    with pytest.raises(ShapeError, match="projects 16 tokens, got 17"):
        block(torch.zeros(1, 17, 16))
