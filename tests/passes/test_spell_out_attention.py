import pytest
import torch
from rewriting import EXACT, Forward, rewrite
from torch import nn
from torch.nn import functional as F

PASS = ["spell_out_attention"]
TOKENS = (2, 5, 24)
HEADS = 3


def heads(x):
    return x.reshape(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


def attention(**options):
    """Self-attention of three heads, with options that may be made of the layers and the input."""

    def forward(m, x):
        query, key, value = (heads(part) for part in m.qkv(x).chunk(3, -1))
        given = {k: v(m, x) if callable(v) else v for k, v in options.items()}
        out = F.scaled_dot_product_attention(query, key, value, **given)
        return m.proj(out.transpose(1, 2).flatten(2))

    return forward


def module(**options):
    torch.manual_seed(0)
    layers = {"qkv": nn.Linear(24, 72), "proj": nn.Linear(24, 24), "bias": nn.Linear(5, 5)}
    made = Forward(attention(**options), **layers)
    made.register_buffer("allowed", torch.tensor([[1, 0, 1, 1, 0]] * 5).bool())
    made.register_buffer("nothing", torch.tensor([[1] * 5] * 4 + [[0] * 5]).bool())
    return made


SPELLED_OUT = {
    "plain": {},
    "with a scale": {"scale": 0.7},
    "causal": {"is_causal": True},
    "with a mask of truth values": {"attn_mask": lambda m, x: m.allowed},
    "with a mask that is added": {"attn_mask": lambda m, x: m.bias.weight},
    "with a mask from the input": {"attn_mask": lambda m, x: x[:, None, :, :5]},
}


@pytest.mark.parametrize("case", SPELLED_OUT)
def test_spells_out(case):
    done = rewrite(module(**SPELLED_OUT[case]), TOKENS, PASS)
    assert done.report.rewritten == 1
    assert done.count("scaled_dot_product_attention") == 0
    assert done.error < EXACT


def test_spells_out_with_a_batch_that_varies():
    done = rewrite(module(is_causal=True), TOKENS, PASS, dynamic=True)
    assert done.report.rewritten == 1
    assert done.error < EXACT


REFUSED = {
    "a row without keys": (
        {"attn_mask": lambda m, x: m.nothing},
        "its mask forbids every key to some query",
    ),
    "a computed mask of truth values": (
        {"attn_mask": lambda m, x: x[:, None, :, :5] > 0},
        "its mask of truth values is computed in the graph",
    ),
    "dropout": ({"dropout_p": 0.5}, "it drops weights at random"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves(case):
    options, reason = REFUSED[case]
    done = rewrite(module(**options), TOKENS, PASS)
    assert done.report.rewritten == 0
    assert [r.reason for r in done.report.refusals] == [reason]


def test_the_scale_goes_into_the_projection():
    done = rewrite(module(), TOKENS, [*PASS, "split_layers", "fold_affine"])
    assert done.count("mul") == 0
    assert done.error < EXACT
