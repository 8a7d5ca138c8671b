import pytest
import torch
from rewriting import EXACT, Forward, rewrite
from torch.nn import functional as F

from edgevit.source import model_source

PASS = ["activation_before_concat"]
MAP = (2, 8, 5, 5)


def parts(x):
    return [x * 2, x.exp(), x - 1]


MOVED = {
    "relu": lambda m, x: F.relu(torch.cat(parts(x), 1)),
    "relu in place": lambda m, x: F.relu_(torch.cat(parts(x), 1)),
    "gelu with its approximation": lambda m, x: F.gelu(torch.cat(parts(x), 2), approximate="tanh"),
    "leaky relu with its slope": lambda m, x: F.leaky_relu(torch.cat(parts(x), -1), 0.3),
}


@pytest.mark.parametrize("case", MOVED)
def test_moves(case):
    done = rewrite(Forward(MOVED[case]), MAP, PASS)
    assert done.report.rewritten == 1
    assert [n.name.split("_")[0] for n in done.after.exported.graph.nodes][-2] == "cat"
    assert done.error < EXACT


def test_a_part_that_occurs_twice_is_activated_once():
    done = rewrite(Forward(lambda m, x: F.relu(torch.cat([x, x.exp(), x], 1))), MAP, PASS)
    assert done.count("relu") == 2
    assert done.error == 0


def test_a_part_that_is_read_elsewhere_stays_as_it_is():
    def forward(m, x):
        y = x - 1
        return F.relu_(torch.cat([x, y], 1)) + torch.cat([y, x], 1)

    done = rewrite(Forward(forward), MAP, PASS)
    assert done.report.rewritten == 1
    assert done.error == 0


def test_a_concatenation_that_is_read_elsewhere_stays():
    done = rewrite(Forward(lambda m, x: F.relu(y := torch.cat(parts(x), 1)) + y.exp()), MAP, PASS)
    assert done.report.rewritten == 0
    (refusal,) = done.report.refusals
    assert refusal.reason.endswith("reads the concatenation without the activation")
    assert done.error < EXACT


def test_what_mixes_elements_stays():
    done = rewrite(Forward(lambda m, x: torch.cat(parts(x), 1).softmax(1)), MAP, PASS)
    assert (done.report.rewritten, done.report.refusals) == (0, ())


def test_cascaded_heads():
    source = model_source("efficientvit_m0", num_classes=10)
    done = rewrite(source.module, source.inputs[0].shape, PASS, randomize=False)
    assert done.report.rewritten == 6
    assert done.error < EXACT
