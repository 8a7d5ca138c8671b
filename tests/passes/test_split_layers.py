import pytest
import torch
from rewriting import EXACT, Forward, rewrite
from torch import nn

from edgevit.source import model_source

PASS = ["split_layers"]
TOKENS = (2, 6, 8)
MAP = (2, 8, 5, 5)


def attention(m, x):
    q, k, v = m.qkv(x).chunk(3, -1)
    return (q @ k.mT).softmax(-1) @ v


def widths(m, x):
    a, b = m.linear(x).split([2, 6], -1)
    return torch.cat([b.exp(), a], -1)


def laid_out(order, sizes, axis):
    """Attention as it is mostly written: reshaped, permuted, taken apart."""

    def forward(m, x):
        parts = m.qkv(x).reshape(x.shape[0], x.shape[1], *sizes).permute(order)
        q, k, v = parts.unbind(axis)
        return (q @ k.mT).softmax(-1) @ v

    return Forward(forward, qkv=nn.Linear(8, 24))


def selected(m, x):
    parts = m.qkv(x).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return (parts[0] @ parts[1].mT).softmax(-1) @ parts[2]


CUT = {
    "reshaped, permuted, unbound": (laid_out((2, 0, 3, 1, 4), (3, 2, 4), 0), TOKENS, 3),
    "heads outside": (laid_out((3, 0, 2, 1, 4), (2, 3, 4), 0), TOKENS, 3),
    "another order": (laid_out((0, 3, 4, 2, 1), (3, 2, 4), 3), TOKENS, 3),
    "selected one by one": (Forward(selected, qkv=nn.Linear(8, 24)), TOKENS, 3),
    "queries, keys and values": (Forward(attention, qkv=nn.Linear(8, 24)), TOKENS, 3),
    "without a bias": (Forward(attention, qkv=nn.Linear(8, 24, bias=False)), TOKENS, 3),
    "pieces of several widths": (
        Forward(widths, linear=nn.Linear(8, 8)),
        TOKENS,
        2,
    ),
    "a piece that nobody reads": (
        Forward(lambda m, x: m.linear(x).chunk(2, -1)[1], linear=nn.Linear(8, 6)),
        TOKENS,
        1,
    ),
}


@pytest.mark.parametrize("case", CUT)
def test_cuts(case):
    model, shape, layers = CUT[case]
    done = rewrite(model, shape, PASS)
    assert (done.report.rewritten, done.report.details) == (1, {"layers": layers})
    assert done.report.refusals == ()
    assert done.count("linear") == layers
    assert done.count("unbind") == done.count("select") == 0
    assert done.count("chunk") == done.count("split") == done.count("split_with_sizes") == 0
    assert done.error < EXACT


def whole(m, x):
    y = m.linear(x)
    return torch.cat([*y.chunk(2, -1), y], -1)


def tokens_taken_apart(m, x):
    return sum(m.linear(x).view(2, 3, 2, 8).permute(2, 0, 1, 3).unbind(0))


STAYS = {
    "tokens taken apart": (
        Forward(tokens_taken_apart, linear=nn.Linear(8, 8)),
        TOKENS,
        None,
    ),
    "the whole is read": (Forward(whole, linear=nn.Linear(8, 8)), TOKENS, "is read, too"),
    "a convolution": (
        Forward(lambda m, x: torch.cat(m.conv(x).chunk(2, 1)[::-1], 1), conv=nn.Conv2d(8, 8, 1)),
        MAP,
        None,
    ),
    "tokens are cut, not channels": (
        Forward(lambda m, x: m.linear(x).chunk(2, 1)[0], linear=nn.Linear(8, 8)),
        TOKENS,
        None,
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_leaves_what_it_cannot_cut(case):
    model, shape, reason = STAYS[case]
    done = rewrite(model, shape, PASS)
    assert done.report.rewritten == 0
    assert [r.reason.endswith(reason) for r in done.report.refusals] == ([True] if reason else [])
    assert done.error < EXACT


def test_a_weight_that_another_layer_shares_stays_whole():
    shared = nn.Linear(8, 8)
    done = rewrite(
        Forward(lambda m, x: m.a(torch.cat(m.a(x).chunk(2, -1)[::-1], -1)), a=shared), TOKENS, PASS
    )
    assert done.report.rewritten == 1
    assert done.count("linear") == 3
    assert done.error < EXACT


@pytest.mark.parametrize("forward", [attention, selected])
def test_a_batch_that_may_vary(forward):
    done = rewrite(Forward(forward, qkv=nn.Linear(8, 24)), (1, 6, 8), PASS, dynamic=True)
    assert done.report.rewritten == 1
    assert done.error < EXACT


@pytest.mark.parametrize("name", ["deit_tiny", "swin_tiny"])
def test_models_compute_the_same(name):
    source = model_source(name, num_classes=10)
    done = rewrite(source.module, source.inputs[0].shape, PASS, randomize=False)
    assert done.report.rewritten > 0
    assert done.error < EXACT
