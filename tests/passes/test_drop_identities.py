import pytest
import torch
import torch.nn.functional as F
from rewriting import Forward, rewrite
from torch import nn

DROP = ["drop_identities"]
MAP = (2, 8, 5, 5)

REMOVED = {
    "dropout": (lambda m, x: F.dropout(m.conv(x), 0.4, training=False).relu(), {"dropout": 1}),
    "detach": (lambda m, x: m.conv(x).detach().relu(), {"detach": 1}),
    "same type": (
        lambda m, x: m.conv(x).to(torch.float32).relu(),
        {"_assert_tensor_metadata": 1, "to": 1},
    ),
    "tensor made in forward": (
        lambda m, x: m.conv(x) + torch.tensor(3.0),
        {"detach_": 1, "lift_fresh_copy": 1},
    ),
}


@pytest.mark.parametrize("case", REMOVED)
def test_removes_what_does_nothing(case):
    function, counts = REMOVED[case]
    done = rewrite(Forward(function, conv=nn.Conv2d(8, 8, 1)), MAP, DROP, dynamic=True)
    assert done.report.details == counts
    assert done.report.rewritten == sum(counts.values())
    nodes = [n for n in done.after.graph_module().graph.nodes if n.op == "call_function"]
    assert [n.target.overloadpacket.__name__ for n in nodes if n.args] in (
        ["conv2d", "relu"],
        ["conv2d", "add"],
    )
    assert done.error == 0


def overwritten_constant(m, x):
    scratch = torch.tensor(3.0)
    scratch.mul_(2.0)
    return m.conv(x) * scratch


KEPT = {
    "dropout in training mode": lambda m, x: F.dropout(m.conv(x), 1.0, training=True) + x,
    "another type": lambda m, x: m.conv(x).to(torch.float64).relu(),
    "same type, but a copy": lambda m, x: m.conv(x).to(torch.float32, copy=True).relu_(),
    "copy that a view needs": lambda m, x: m.conv(x).transpose(1, 2).contiguous().view(-1, 40),
    "copy that is asked for": lambda m, x: m.conv(x).clone().relu_(),
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps_what_does_something(case):
    done = rewrite(Forward(KEPT[case], conv=nn.Conv2d(8, 8, 1)), MAP, DROP)
    kept = {"dropout", "to", "contiguous", "clone"}
    assert kept.isdisjoint(done.report.details)
    assert done.error == 0


def test_keeps_the_copy_of_a_constant_that_is_written_into():
    done = rewrite(Forward(overwritten_constant, conv=nn.Conv2d(8, 8, 1)), MAP, DROP)
    assert "lift_fresh_copy" not in done.report.details
    assert done.count("lift_fresh_copy") == 1
    for _ in range(2):  # a constant overwritten by the first run would show in the second
        assert done.error == 0
