"""A captured program and what becomes of it."""

import gc

import pytest
import torch
from torch import nn

from edgevit.capture import capture
from edgevit.errors import ConversionError
from edgevit.garbage import heap_frozen
from edgevit.passes import run_passes
from edgevit.tensorspec import TensorSpec

SPEC = TensorSpec("x", (1, 3, 8, 8))


class Named(nn.Module):
    """A convolution and its norm under any names."""

    def __init__(self, first="conv", second="norm"):
        super().__init__()
        self.names = (first, second)
        torch.manual_seed(0)
        self.add_module(first, nn.Conv2d(3, 4, 3))
        self.add_module(second, nn.BatchNorm2d(4))

    def forward(self, x):
        first, second = (getattr(self, name) for name in self.names)
        return second(first(x)).relu()


def test_the_fingerprint_goes_by_numbers_and_operators_not_by_names():
    first, second = capture(Named(), [SPEC]), capture(Named("a", "b"), [SPEC])
    assert first.fingerprint() == second.fingerprint()
    other = Named()
    with torch.no_grad():
        other.conv.bias[0] += 1e-6
    assert capture(other, [SPEC]).fingerprint() != first.fingerprint()
    folded, _ = run_passes(first, ["fold_batchnorm"])
    assert folded.fingerprint() != first.fingerprint()
    again, _ = run_passes(second, ["fold_batchnorm"])
    assert again.fingerprint() == folded.fingerprint()


def test_a_rewritten_program_is_captured_when_that_is_asked_for():
    program = capture(Named().eval(), [SPEC], dynamic_batch=True)
    folded, _ = run_passes(program, ["fold_batchnorm"])
    x = torch.randn(5, 3, 8, 8)
    with torch.inference_mode():
        (want,), got = folded(x), folded.exported.module()(x)
    assert torch.equal(want, got)
    assert folded.exported is folded.exported
    assert not [name for name in folded.exported.state_dict if "running" in name]
    assert (folded.inputs, folded.outputs) == (program.inputs, program.outputs)


def test_a_capture_leaves_the_collector_as_it_was():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ConversionError):
        capture(Branches(), [SPEC])
    assert gc.isenabled()
    gc.disable()
    try:
        capture(Named(), [SPEC])
        assert not gc.isenabled()
    finally:
        gc.enable()


class Writes(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x * 2


class Several(nn.Module):
    """Tied weights, a constant and a buffer that is not saved; two results."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.arange(8.0), persistent=False)

    def forward(self, x):
        return self.second(self.first(x)) + self.offset, x * torch.tensor([2.0])


class Nested(nn.Module):
    """Results in a dictionary."""

    def forward(self, x):
        return {"twice": x * 2, "less": x - 1}


@pytest.mark.parametrize("made", [Named, Several, Writes, Nested])
def test_weights_go_back_to_their_places_as_torch_puts_them(made):
    program = capture(made().eval(), [SPEC])
    torchs = program.exported.module(check_guards=False)
    ours = program.graph_module()
    assert _operators(ours) == _operators(torchs)
    wanted = dict(torchs.named_parameters(remove_duplicate=False))
    held = dict(ours.named_parameters(remove_duplicate=False))
    assert held.keys() == wanted.keys()
    assert all(held[name] is wanted[name] for name in held)
    x = torch.randn(SPEC.shape)
    with torch.inference_mode():
        want, got = torchs(x), ours(x)
    assert type(got) is type(want)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def _operators(module):
    return [(node.op, str(node.target)) for node in module.graph.nodes]


def test_a_capture_is_not_looked_through_for_garbage_again():
    with heap_frozen():
        before = gc.get_freeze_count()
        capture(Named(), [SPEC])
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == 0


def test_what_the_application_froze_stays_frozen():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with heap_frozen():
            capture(Named(), [SPEC])
        assert frozen / 2 < gc.get_freeze_count() <= frozen
    finally:
        gc.unfreeze()
