import pytest
import torch
from rewriting import EXACT, Forward, rewrite
from torch import nn

from edgevit.source import model_source

PASS = ["scales_past_products"]
#: Many tokens, narrow heads: a product over the tokens is small.
WIDE = (2, 2, 40, 6)


def norm(x, axis=-2):
    return x.abs().sum(axis, keepdim=True).clamp(min=1e-6)


def random_layers():
    return {"k": nn.Linear(6, 6), "v": nn.Linear(6, 6)}


BEHIND = {
    "rows, transposed": (lambda m, x: (m.k(x) / norm(m.k(x))).transpose(-2, -1) @ m.v(x), 1),
    "rows by mT": (lambda m, x: (m.k(x) / norm(m.k(x))).mT @ m.v(x), 1),
    "columns": (lambda m, x: m.k(x).mT @ (m.v(x) / norm(m.v(x))), 1),
    "both": (lambda m, x: (m.k(x) / norm(m.k(x))).mT @ (m.v(x) / norm(m.v(x))), 2),
    "a product": (lambda m, x: (norm(m.k(x)) * m.k(x)).mT @ m.v(x), 1),
}


@pytest.mark.parametrize("case", BEHIND)
def test_moves_behind_a_smaller_product(case):
    function, moved = BEHIND[case]
    done = rewrite(Forward(function, **random_layers()), WIDE, PASS)
    assert done.report.details == {"behind_the_product": moved, "onto_the_other_factor": 0}
    assert done.error < EXACT


def small(m, x):
    return m.k(x).mT @ m.v(x)


ONTO = {
    "columns of the first": lambda m, x: (x / norm(x)) @ small(m, x),
    "rows of the second": lambda m, x: small(m, x) @ (x / norm(x)).mT,
}


@pytest.mark.parametrize("case", ONTO)
def test_moves_onto_a_smaller_factor(case):
    done = rewrite(Forward(ONTO[case], **random_layers()), WIDE, PASS)
    assert done.report.details == {"behind_the_product": 0, "onto_the_other_factor": 1}
    assert done.error < EXACT


STAYS = {
    "the product is larger": lambda m, x: (m.k(x) / norm(m.k(x), -1)) @ m.v(x).mT,
    "the other factor is larger": lambda m, x: (y := m.k(x)[..., :3, :]) / norm(y) @ m.v(x).mT,
    "read elsewhere": lambda m, x: ((y := m.k(x) / norm(m.k(x))).mT @ m.v(x)) + y.sum(),
    "one number for all": lambda m, x: (m.k(x) / norm(norm(m.k(x)), -1)).mT @ m.v(x),
    "a number an element": lambda m, x: (m.k(x) / m.v(x).exp()).mT @ m.v(x),
    "across the batch": lambda m, x: (m.k(x) / norm(m.k(x)).amax((0, 1), keepdim=True)).mT @ m.v(x),
    "the scale divided": lambda m, x: (norm(m.k(x)) / m.k(x).exp()).mT @ m.v(x),
    "with itself": lambda m, x: (y := (m.k(x) @ m.k(x).mT)) / norm(y) @ (y / norm(y)),
}


@pytest.mark.parametrize("case", STAYS)
def test_leaves_what_would_not_pay_or_not_be_right(case):
    done = rewrite(Forward(STAYS[case], **random_layers()), WIDE, PASS)
    assert done.report.rewritten == 0
    assert done.error < EXACT


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["deit_tiny+sima", "xcit_small_12_p16"])
def test_moves_every_norm_of_a_model(name, dynamic):
    model = model_source(name, image_size=160, num_classes=10).module
    done = rewrite(model, (1, 3, 160, 160), PASS, dynamic=dynamic, randomize=False)
    assert done.report.rewritten == 2 * 12
    assert done.error < EXACT
    large = [n for n in done.after.graph_module().graph.nodes if str(n.target) == "aten.div.Tensor"]
    assert all(torch.Size(n.meta["val"].shape[-2:]).numel() < 100 * 64 for n in large)
