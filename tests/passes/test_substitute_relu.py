import copy
import math

import pytest
import torch
import torch.nn.functional as F
from rewriting import Forward, relative_error, rewrite
from torch import nn

from edgevit.zoo.factory import create_model

SAME = 1e-6
RELU = ["substitute_relu"]


def hard_swish_in_place(x):
    inner = F.relu6(x + 3.0).div_(6.0)
    return x.mul_(inner)


def tanh_gelu_by_products(x):
    return 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


def erf_gelu_with_tensors(x):
    return x * torch.tensor(0.5) * (torch.tensor(1.0) + torch.erf(x / torch.tensor(math.sqrt(2))))


ACTIVATIONS = {
    "gelu": [
        nn.GELU(),
        F.gelu,
        lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: 0.5 * (x * (torch.erf(x * 0.70710678) + 1.0)),
        lambda x: x * (0.5 * (1.0 + torch.erf(x / 2**0.5))),
        lambda x: x * (0.5 + 0.5 * (x / 2**0.5).erf()),
        erf_gelu_with_tensors,
    ],
    "gelu_tanh": [
        nn.GELU(approximate="tanh"),
        lambda x: (
            0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
        ),
        tanh_gelu_by_products,
    ],
    "quick_gelu": [
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: torch.sigmoid(x * 1.702) * x,
    ],
    "silu": [
        nn.SiLU(),
        nn.SiLU(inplace=True),
        lambda x: x * torch.sigmoid(x),
        lambda x: x.sigmoid() * x,
        lambda x: x.mul_(x.sigmoid()),
        lambda x: x / (1 + torch.exp(-x)),
    ],
    "hard_swish": [
        nn.Hardswish(),
        nn.Hardswish(inplace=True),
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * (F.relu6(x + 3) / 6),
        lambda x: x * F.hardtanh(x + 3, 0, 6) * (1 / 6),
        lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
        lambda x: x * F.hardsigmoid(x),
        hard_swish_in_place,
    ],
}
CASES = [(kind, i) for kind, written in ACTIVATIONS.items() for i in range(len(written))]


@pytest.mark.parametrize(("kind", "index"), CASES)
def test_replaces_an_activation_however_it_is_written(kind, index):
    layers = {"a": nn.Conv2d(8, 6, 1), "b": nn.Conv2d(6, 4, 1)}

    def with_activation(activation):
        return Forward(lambda m, x: m.b(activation(m.a(x))), **layers)

    model = with_activation(ACTIVATIONS[kind][index])
    done = rewrite(model, (2, 8, 5, 5), RELU, dynamic=True)
    assert done.report.details == {kind: 1}
    assert done.report.rewritten == 1
    assert done.report.refusals == ()
    assert done.error > 1e-3, "the model should compute something else now"
    assert relative_error(with_activation(torch.relu), done.after, done.images) < SAME
    assert done.count("relu") + done.count("relu_") == 1
    calls = [n for n in done.after.graph_module().graph.nodes if n.op == "call_function"]
    assert len(calls) == 3, "what the activation was made of should be gone"


UNTOUCHED = {
    "squeeze-excite": lambda m, x: x * torch.sigmoid(m.conv(x.mean((2, 3), keepdim=True))),
    "hard squeeze-excite": lambda m, x: x * F.hardsigmoid(m.conv(x)),
    "gated": lambda m, x: m.conv(x) * m.other(x).sigmoid(),
    "softmax gate": lambda m, x: x * m.conv(x).softmax(1),
    "relu6": lambda m, x: F.relu6(m.conv(x) + 3) / 6,
    "squared relu": lambda m, x: F.relu(m.conv(x)).square(),
    "sigmoid": lambda m, x: torch.sigmoid(m.conv(x)) * 2,
    "tanh": lambda m, x: m.conv(x) * 0.5 * torch.tanh(m.other(x)),
    "scaled twice": lambda m, x: m.conv(x) * 0.5 / 3,
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_leaves_gates_and_cheap_functions_alone(case):
    model = Forward(UNTOUCHED[case], conv=nn.Conv2d(8, 8, 1), other=nn.Conv2d(8, 8, 1))
    done = rewrite(model, (2, 8, 5, 5), RELU)
    assert done.after is done.before
    assert done.report.rewritten == 0
    assert done.report.refusals == ()


REFUSED = {
    "mish": (lambda x: F.mish(x), "Mish is not among what ReLU replaces here"),
    "mish written out": (lambda x: x * torch.tanh(F.softplus(x)), "Mish is not among"),
    "elu": (lambda x: F.elu(x) + 1, "ELU gives negative values"),
    "selu": (F.selu, "rests on their scale"),
    "softplus": (F.softplus, "could not take ReLU's zeros"),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.1), "is as cheap"),
    "swish": (lambda x: x * torch.sigmoid(1.3 * x), "neither SiLU nor quick GELU"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_other_activations_with_the_reason(case):
    function, reason = REFUSED[case]
    layer = Forward(lambda m, x: function(x))
    done = rewrite(nn.Sequential(nn.Conv2d(8, 8, 1), layer), (2, 8, 5, 5), RELU)
    assert done.after is done.before
    (refusal,) = done.report.refusals
    assert refusal.layer == "1"
    assert reason in refusal.reason


def test_refuses_what_is_overwritten_while_it_is_computed():
    def forward(m, x):
        y = m.conv(x)
        view = y.view(-1)
        gate = torch.sigmoid(y)
        view.add_(1.0)
        return y * gate

    done = rewrite(Forward(forward, conv=nn.Conv2d(8, 8, 1)), (2, 8, 5, 5), RELU)
    (refusal,) = done.report.refusals
    assert "overwrites its input in place" in refusal.reason


def test_leaves_a_formula_alone_whose_parts_are_overwritten_under_a_view():
    def forward(m, x):
        y = m.conv(x)
        inner = F.relu6(y + 3)
        view = inner.flatten(1)
        inner.div_(6.0)
        return y * inner + view.mean()

    done = rewrite(Forward(forward, conv=nn.Conv2d(8, 8, 1)), (2, 8, 5, 5), RELU)
    assert done.after is done.before
    assert done.error < SAME


def test_a_part_that_is_read_elsewhere_stays():
    def forward(m, x):
        y = m.conv(x)
        gate = torch.sigmoid(y)
        return y * gate + gate

    def by_hand(m, x):
        y = m.conv(x)
        return torch.relu(y) + torch.sigmoid(y)

    conv = nn.Conv2d(8, 8, 1)
    done = rewrite(Forward(forward, conv=conv), (2, 8, 5, 5), RELU)
    assert done.report.details == {"silu": 1}
    assert relative_error(Forward(by_hand, conv=conv), done.after, done.images) < SAME


def test_one_after_the_other():
    def forward(m, x):
        y = m.conv(x)
        y = y * torch.sigmoid(y)
        return F.gelu(y * torch.sigmoid(y)) - 1

    conv = nn.Conv2d(8, 8, 1)
    done = rewrite(Forward(forward, conv=conv), (2, 8, 5, 5), RELU)
    assert done.report.details == {"gelu": 1, "silu": 2}
    by_hand = Forward(lambda m, x: m.conv(x).relu() - 1, conv=conv)
    assert relative_error(by_hand, done.after, done.images) < SAME


def test_squeeze_excite_keeps_its_gate_and_loses_its_silu():
    def forward(m, x):
        y = F.silu(m.conv(x))
        return y * m.gate(y.mean((2, 3), keepdim=True)).sigmoid()

    layers = {"conv": nn.Conv2d(8, 8, 1), "gate": nn.Conv2d(8, 8, 1)}
    done = rewrite(Forward(forward, **layers), (2, 8, 5, 5), RELU)
    assert done.report.details == {"silu": 1}
    assert done.count("sigmoid") == 1


def with_relu(model):
    """A copy whose activation modules have been exchanged by hand."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.GELU):
                setattr(parent, name, nn.ReLU())
    return model


def test_elevit_equals_the_model_with_relu_modules():
    model = create_model("elevit", image_size=64, widths=(8, 16, 24), depths=(1, 1, 1))
    done = rewrite(model, (1, 3, 64, 64), RELU)
    gelus = sum(isinstance(module, nn.GELU) for module in model.modules())
    assert done.report.details == {"gelu": gelus}
    assert done.count("gelu") == 0
    assert relative_error(with_relu(model), done.after, done.images) < SAME
    assert done.error > 1e-3
