import pytest
import torch
from rewriting import EXACT, Forward, rewrite
from torch import nn

from edgevit.source import model_source

PASS = ["fold_affine"]
TOKENS = (2, 12, 8)
MAP = (2, 8, 7, 7)


class Scale(nn.Module):
    """LayerScale: one learned factor a channel, along the axis that ``shape`` keeps."""

    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 2, max(shape)).view(shape))

    def forward(self, x):
        return x * self.gamma


def attention(m, x):
    queries, keys, values = m.qkv(x).reshape(2, 12, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (queries @ keys.transpose(-2, -1)) * 4**-0.5
    return scores.softmax(-1) @ values


FOLDED = {
    "layer scale behind a Linear": (nn.Sequential(nn.Linear(8, 6), Scale(6)), TOKENS),
    "layer scale behind a conv": (nn.Sequential(nn.Conv2d(8, 6, 3), Scale(6, 1, 1)), MAP),
    "before a Linear": (nn.Sequential(Scale(8), nn.Linear(8, 6)), TOKENS),
    "before a padded conv": (
        nn.Sequential(Scale(8, 1, 1), nn.Conv2d(8, 6, 3, padding=1)),
        MAP,
    ),
    "behind a LayerNorm": (nn.Sequential(nn.LayerNorm(8), Scale(8), nn.GELU()), TOKENS),
    "behind a bare LayerNorm": (
        nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), Scale(8), nn.GELU()),
        TOKENS,
    ),
    "behind a GroupNorm": (nn.Sequential(nn.GroupNorm(2, 8), Scale(8, 1, 1), nn.GELU()), MAP),
    "behind a BatchNorm": (nn.Sequential(nn.BatchNorm2d(8), Scale(8, 1, 1), nn.GELU()), MAP),
    "a number": (Forward(lambda m, x: 0.3 * m.linear(x), linear=nn.Linear(8, 6)), TOKENS),
    "a quotient": (Forward(lambda m, x: m.linear(x) / 3, linear=nn.Linear(8, 6)), TOKENS),
    "of the queries": (
        Forward(
            lambda m, x: m.q(x) * 0.5 @ m.k(x).transpose(1, 2),
            q=nn.Linear(8, 8),
            k=nn.Linear(8, 8),
        ),
        TOKENS,
    ),
    "of an element-wise product": (
        Forward(
            lambda m, x: m.scale(m.q(x).exp() * m.k(x)).exp(),
            q=nn.Conv2d(8, 8, 1),
            k=nn.Conv2d(8, 8, 1),
            scale=Scale(8, 1, 1),
        ),
        MAP,
    ),
    "of one factor into the other's layer": (
        Forward(
            lambda m, x: m.scale(x.softmax(-1)) * m.v(x), v=nn.Conv2d(8, 8, 1), scale=Scale(8, 1, 1)
        ),
        MAP,
    ),
    "of attention weights into the values": (
        Forward(lambda m, x: (x @ x.mT).softmax(-1) * 0.7 @ m.v(x), v=nn.Linear(8, 8)),
        TOKENS,
    ),
    "of the scores, one layer for q, k and v": (Forward(attention, qkv=nn.Linear(8, 24)), TOKENS),
}


#: Cases with a product that is no scale, and stays.
PRODUCTS = ["of an element-wise product", "of one factor into the other's layer"]


@pytest.mark.parametrize("case", FOLDED)
def test_folds(case):
    model, shape = FOLDED[case]
    done = rewrite(model, shape, PASS)
    assert done.report.rewritten == 1
    assert done.report.refusals == ()
    assert done.count("div") == 0
    assert done.count("mul") == (1 if case in PRODUCTS else 0)
    assert done.error < EXACT


STAYS = {
    "the layer is read elsewhere": Forward(
        lambda m, x: (y := m.linear(x)) + (y * 0.5).exp(), linear=nn.Linear(8, 8)
    ),
    "behind an activation": Forward(
        lambda m, x: (m.linear(x).sigmoid() * 3).exp(), linear=nn.Linear(8, 8)
    ),
    "one factor a token behind a Linear": nn.Sequential(
        nn.Linear(8, 8), Scale(12, 1), nn.GELU(), nn.Linear(8, 8)
    ),
    "each column its own factor behind a product": Forward(
        lambda m, x: ((m.a(x) @ m.b(x).transpose(1, 2)) * m.scale.gamma).exp(),
        a=nn.Linear(8, 8),
        b=nn.Linear(8, 8),
        scale=Scale(12),
    ),
    "of a product that widens the layer": Forward(
        lambda m, x: (m.scale(m.linear(x)[:, :1] * x.sigmoid())).exp(),
        linear=nn.Linear(8, 8),
        scale=Scale(12, 1),
    ),
    "a tensor squared": Forward(
        lambda m, x: ((y := m.linear(x)) * y * 0.1).exp(), linear=nn.Linear(8, 8)
    ),
    "a tensor times itself": Forward(
        lambda m, x: ((y := m.linear(x).reshape(2, 8, 12)[:, :, :8]) @ y * 0.1).exp(),
        linear=nn.Linear(8, 8),
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_leaves_what_it_cannot_fold(case):
    done = rewrite(STAYS[case], TOKENS, PASS)
    assert done.report.rewritten == 0
    assert done.report.refusals
    assert done.error < EXACT


@pytest.mark.parametrize("number", [0.0, float("inf")])
def test_refuses_what_is_not_finite(number):
    done = rewrite(
        Forward(lambda m, x: torch.nan_to_num(m.linear(x) / number) + x, linear=nn.Linear(8, 8)),
        TOKENS,
        PASS,
    )
    expected = "the constant is not finite"
    assert [r.reason for r in done.report.refusals] == ([expected] if number == 0 else [])


def test_what_widens_its_operand_is_no_scale():
    wide = Forward(
        lambda m, x: m.linear(x)[:, :1] * m.scale.gamma, linear=nn.Linear(8, 8), scale=Scale(5, 1)
    )
    done = rewrite(wide, TOKENS, PASS)
    assert (done.report.rewritten, done.report.refusals) == (0, ())


def test_a_scale_behind_a_batchnorm_goes_into_the_convolution_with_it():
    model = nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), Scale(6, 1, 1), nn.GELU())
    done = rewrite(model, MAP, ["fold_affine", "fold_batchnorm"])
    assert done.count("mul") == done.count("batch_norm") == 0
    assert done.error < EXACT


MODELS = [
    "deit_tiny",
    "xcit_small_12_p16",
    "swiftformer_l3",
    "elevit",
    "efficientformerv2_l",
    "cvt_13",
]


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same(name):
    model = model_source(name, image_size=64, num_classes=10).module
    done = rewrite(model, (1, 3, 64, 64), PASS, randomize=False)
    assert done.report.rewritten > 0
    assert done.error < EXACT
