import pytest
import torch
from rewriting import EXACT, Forward, rewrite
from torch import nn

from edgevit.capture import capture
from edgevit.passes import fold_constants, run_passes
from edgevit.source import model_source
from edgevit.tensorspec import TensorSpec

PASS = ["drop_identities", "fold_constants"]
TOKENS = (2, 6, 8)


class Held(nn.Module):
    """Named parameters and buffers."""

    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            if value.is_floating_point():
                setattr(self, name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x):
        return x


def table(rows=9, heads=2):
    held = Held(bias=torch.randn(heads, rows), index=torch.arange(36).reshape(6, 6) % rows)
    return Forward(lambda m, x: (x @ x.mT + m.held.bias[0][m.held.index]) @ x, held=held)


def sines(m, x):
    steps = torch.arange(6, dtype=torch.float32).unsqueeze(1) * m.held.rates
    return x + m.linear(torch.cat([steps.sin(), steps.cos()], 1))


FOLDED = {
    "a gathered bias": (table(), 1),
    "a position map": (
        Forward(sines, held=Held(rates=torch.linspace(0.1, 1, 4)), linear=nn.Linear(8, 8)),
        1,
    ),
    "one of the pieces of a weight": (
        Forward(lambda m, x: x * m.held.both.chunk(2)[1], held=Held(both=torch.randn(16))),
        1,
    ),
    "a weight that is computed": (
        Forward(
            lambda m, x: nn.functional.linear(x, m.held.v / m.held.v.norm(dim=1, keepdim=True)),
            held=Held(v=torch.randn(8, 8)),
        ),
        1,
    ),
    "a value laid out the other way": (
        Forward(lambda m, x: x @ m.held.a.exp().mT, held=Held(a=torch.randn(1, 8))),
        1,
    ),
    "the same value twice": (
        Forward(
            lambda m, x: (x + m.held.a.exp()).tanh() * m.held.a.exp(), held=Held(a=torch.randn(8))
        ),
        2,
    ),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folds_to_the_last_bit(case):
    model, count = FOLDED[case]
    done = rewrite(model, TOKENS, PASS)
    report = done.reports[1]
    assert report.rewritten == count
    assert report.refusals == ()
    assert report.details["operators"] > 0
    assert torch.equal(done.after(done.images)[0], done.before(done.images)[0])
    for value in done.after.graph_module().state_dict().values():
        assert value.stride() == torch.empty(value.shape).stride()
    for operator in ("index", "sin", "cat", "chunk", "norm", "exp", "div"):
        assert done.count(operator) == 0


def test_equal_values_are_stored_once():
    done = rewrite(FOLDED["the same value twice"][0], TOKENS, PASS)
    assert done.reports[1].details["bytes"] == 8 * 4
    assert len(done.after.exported.state_dict) == 1


def test_what_went_into_a_constant_is_gone():
    done = rewrite(table(), TOKENS, PASS)
    (stored,) = done.after.exported.state_dict.values()
    assert stored.shape == (6, 6)


def test_what_is_only_repeated_is_not_stored_repeated():
    def forward(m, x):
        return torch.cat([m.held.token.exp().expand(x.shape[0], -1, -1), x], 1)

    done = rewrite(Forward(forward, held=Held(token=torch.randn(1, 1, 8))), TOKENS, PASS)
    assert done.reports[1].rewritten == 1
    assert [tuple(t.shape) for t in done.after.exported.state_dict.values()] == [(1, 1, 8)]
    assert (done.count("expand"), done.count("exp")) == (1, 0)


def test_a_batch_that_may_vary():
    def forward(m, x):
        return torch.cat([m.held.token.exp().expand(x.shape[0], -1, -1), x], 1)

    done = rewrite(
        Forward(forward, held=Held(token=torch.randn(1, 1, 8))), (1, 6, 8), PASS, dynamic=True
    )
    assert done.count("exp") == 0
    assert done.error == 0


def test_what_would_swell_the_file_stays_computed(monkeypatch):
    def forward(m, x):
        return x + torch.arange(48, dtype=torch.float32).reshape(6, 8).sin()

    monkeypatch.setattr(fold_constants, "LARGEST", 64)
    done = rewrite(Forward(forward), TOKENS, PASS)
    report = done.reports[1]
    assert done.count("sin") == 1
    assert [r.reason for r in report.refusals] == [
        "sin in the model's own forward would add 0 MiB to the file"
    ]
    assert done.error < EXACT


def written(m, x):
    total = m.held.a.exp()
    shifted = total * 2
    total.add_(1)
    return x * total + shifted


def viewed(m, x):
    total = m.held.a.exp()
    total.view(2, 4)[0].fill_(3)
    return x * total


@pytest.mark.parametrize("forward", [written, viewed])
def test_memory_that_is_written_into_is_no_constant(forward):
    model = Forward(forward, held=Held(a=torch.linspace(0, 1, 8)))
    done = rewrite(model, TOKENS, PASS)
    assert done.count("exp") == 1
    assert done.error < EXACT


def test_random_numbers_are_drawn_each_time():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand(8)

    program = capture(Noisy(), [TensorSpec("x", (1, 8))])
    after, reports = run_passes(program, PASS)
    assert reports[1].rewritten == 0
    x = torch.zeros(1, 8)
    assert not torch.equal(after(x)[0], after(x)[0])


def test_a_constant_counts_to_the_programs_identity():
    def fingerprint(value):
        model = Held(a=torch.full((8,), value))
        model.register_buffer("b", torch.full((8,), value), persistent=False)
        forward = Forward(lambda m, x: x * m.held.b, held=model)
        return capture(forward, [TensorSpec("x", (1, 8))]).fingerprint()

    assert fingerprint(1.0) != fingerprint(2.0)


MODELS = ["efficientvit_m0", "swin_tiny", "xcit_tiny_24_p16", "rope_vit_cifar10", "cvt_13"]


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same(name):
    source = model_source(name, num_classes=10)
    done = rewrite(source.module, source.inputs[0].shape, PASS, randomize=False)
    assert done.reports[1].rewritten > 0
    assert done.error == 0
