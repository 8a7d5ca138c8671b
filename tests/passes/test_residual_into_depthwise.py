import pytest
from rewriting import EXACT, Forward, rewrite
from torch import nn

from edgevit.source import model_source

PASS = ["residual_into_depthwise"]
MAP = (2, 8, 7, 9)


def depthwise(kernel=3, **options):
    return nn.Conv2d(8, 8, kernel, groups=8, **{"padding": kernel // 2, **options})


def around(conv):
    return Forward(lambda m, x: x + m.conv(x), conv=conv)


FOLDED = {
    "3x3": (around(depthwise()), MAP),
    "5x5 without bias": (around(depthwise(5, bias=False)), MAP),
    "same": (around(depthwise(padding="same")), MAP),
    "dilated": (around(depthwise(dilation=2, padding=2)), MAP),
    "1x1": (around(depthwise(1)), MAP),
    "long": (around(nn.Conv2d(8, 8, (5, 1), padding=(2, 0), groups=8)), MAP),
    "1d": (around(nn.Conv1d(8, 8, 3, padding=1, groups=8)), (2, 8, 11)),
    "the convolution first": (Forward(lambda m, x: m.conv(x) + x, conv=depthwise()), MAP),
    "one channel": (around(nn.Conv2d(1, 1, 3, padding=1)), (2, 1, 7, 7)),
}


@pytest.mark.parametrize("case", FOLDED)
@pytest.mark.parametrize("dynamic", [False, True])
def test_folds(case, dynamic):
    model, shape = FOLDED[case]
    done = rewrite(model, shape, PASS, dynamic=dynamic)
    assert done.report.rewritten == 1
    assert done.count("add") == 0
    assert done.error < EXACT


REFUSED = {
    "does not keep the size": Forward(
        lambda m, x: (column := x[..., :1]) + m.conv(column), conv=depthwise(padding=(1, 2))
    ),
    "has no centre": around(nn.Conv2d(8, 8, 4, padding="same", groups=8)),
    "reads the convolution without": Forward(
        lambda m, x: (y := m.conv(x)).sigmoid() * (x + y), conv=depthwise()
    ),
    "overwrites its input": Forward(
        lambda m, x: (y := m.pre(x), z := m.conv(y), y.view(-1).mul_(3), y + z)[-1],
        pre=nn.Conv2d(8, 8, 1),
        conv=depthwise(),
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses_with_the_reason(reason):
    done = rewrite(REFUSED[reason], MAP, PASS)
    assert done.report.rewritten == 0
    assert [reason in refusal.reason for refusal in done.report.refusals] == [True]
    assert done.error < EXACT


OTHERS = {
    "a full convolution": around(nn.Conv2d(8, 8, 3, padding=1)),
    "a sum with something else": Forward(lambda m, x: x.tanh() + m.conv(x), conv=depthwise()),
    "weighted": Forward(lambda m, x: x.add(m.conv(x), alpha=2), conv=depthwise()),
    "in place": Forward(lambda m, x: (y := m.pre(x)).add_(m.conv(y)) * y, pre=nn.Conv2d(8, 8, 1),
                        conv=depthwise()),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_leaves_other_sums_alone(case):
    done = rewrite(OTHERS[case], MAP, PASS)
    assert (done.report.rewritten, done.report.refusals) == (0, ())
    assert done.error < EXACT


def test_the_weight_of_a_tied_convolution_changes_for_one_use_only():
    tied = Forward(lambda m, x: m.conv((x + m.conv(x)).relu()), conv=depthwise())
    done = rewrite(tied, MAP, PASS)
    assert done.report.rewritten == 1
    assert done.error < EXACT


def test_every_depthwise_residual_of_efficientvit_is_folded():
    model = model_source("efficientvit_m0", image_size=64, num_classes=10).module
    names = ["fold_batchnorm", *PASS]
    done = rewrite(model, (1, 3, 64, 64), names, randomize=False)
    report = done.reports[-1]
    # Two around the attention of each of 6 blocks, and two in each of 2 subsamplings.
    assert (report.rewritten, report.refusals) == (16, ())
    assert done.error < EXACT
