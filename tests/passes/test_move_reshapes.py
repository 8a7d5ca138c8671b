import pytest
import torch
from rewriting import EXACT, Forward, rewrite
from torch import nn

from edgevit.source import model_source

PASS = ["move_reshapes"]
MAP = (2, 8, 4, 5)


def tokens(x):
    """Something that only lists are good for."""
    return (x @ x.mT).softmax(-1) @ x


def pointwise(channels, **options):
    return nn.Conv2d(channels, channels, 1, **options)


def cascade(m, x):
    """Heads that hand their result on, as cascaded group attention does."""
    pieces, given = [], None
    for head, piece in zip(m.heads, x.chunk(2, 1), strict=True):
        own = piece if given is None else piece + given
        q, k, v = head(own).split([4, 4, 4], 1)
        q = m.local(q).flatten(2)
        given = (v.flatten(2) @ (q.mT @ k.flatten(2)).softmax(-1)).view(own.shape)
        pieces.append(given)
    return x + m.output(torch.cat(pieces, 1).relu())


def cascaded():
    return Forward(
        cascade,
        heads=nn.ModuleList(nn.Conv2d(4, 12, 1) for _ in range(2)),
        local=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        output=pointwise(8),
    )


MOVES = {
    # name: (model, reshapes gone, pointwise convolutions that are left with maps)
    "cascaded heads": (cascaded(), 2, 1),
    "a convolution between lists": (
        Forward(
            lambda m, x: m.conv(tokens(x.flatten(2)).view(x.shape)).flatten(2).exp(),
            conv=pointwise(8),
        ),
        2,
        0,
    ),
    "an activation between lists": (
        Forward(lambda m, x: tokens(tokens(x.flatten(2)).view(x.shape).sigmoid().flatten(2))),
        2,
        0,
    ),
    "a sum and a factor for each channel": (
        Forward(
            lambda m, x: tokens(
                (2 * tokens(x.flatten(2)).view(x.shape) * m.bn.weight[:, None, None]).flatten(2)
            ),
            bn=nn.BatchNorm2d(8),
        ),
        2,
        0,
    ),
    "a reshape of a reshape": (
        Forward(lambda m, x: tokens(x.flatten(2).view(2, 4, 2, 20).reshape(2, 4, 40))),
        2,
        0,
    ),
    "the same list twice": (
        Forward(lambda m, x: tokens(x.flatten(2)) + x.exp().flatten(2) + x.reshape(2, 8, 20)),
        2,
        0,
    ),
}


@pytest.mark.parametrize("case", MOVES)
def test_moves(case):
    model, gone, maps = MOVES[case]
    done = rewrite(model, MAP, [*PASS, "fold_constants"])
    report = next(report for report in done.reports if report.name == "move_reshapes")
    assert report.details == {"reshapes": gone}
    assert report.rewritten > 0
    assert done.count("conv2d") == maps + (case == "cascaded heads") * 2
    assert done.error < EXACT


def in_place(m, x):
    y = tokens(x.flatten(2)).view(x.shape)
    z = y.neg()
    y.relu_()
    return z.flatten(2) + y.flatten(2)


STAYS = {
    "maps all the way": Forward(lambda m, x: m.conv(x).relu() + x, conv=pointwise(8)),
    "a list at the end": Forward(
        lambda m, x: tokens(m.conv(x).relu().flatten(2)), conv=pointwise(8)
    ),
    "a convolution of neighbours": Forward(
        lambda m, x: m.conv(tokens(x.flatten(2)).view(x.shape)).flatten(2).exp(),
        conv=nn.Conv2d(8, 8, 3, padding=1),
    ),
    "a convolution behind a convolution": Forward(
        lambda m, x: tokens(m.second(m.first(x)).flatten(2)) + m.second(x).flatten(2).flip(2),
        first=nn.Conv2d(8, 8, 3, padding=1),
        second=pointwise(8),
    ),
    "groups": Forward(
        lambda m, x: m.conv(tokens(x.flatten(2)).view(x.shape)).flatten(2).exp(),
        conv=pointwise(8, groups=2),
    ),
    "a factor for each position": Forward(
        lambda m, x: tokens((tokens(x.flatten(2)).view(x.shape) * m.factor.weight).flatten(2)),
        factor=nn.Linear(5, 4),
    ),
    "a cut along the height": Forward(
        lambda m, x: sum(part.flatten(2) for part in tokens(x.flatten(2)).view(x.shape).chunk(2, 2))
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_leaves_what_only_maps_can_do(case):
    done = rewrite(STAYS[case], MAP, PASS)
    assert done.report.rewritten == 0
    assert done.error < EXACT


def test_a_map_that_is_written_to_stays():
    done = rewrite(Forward(in_place), MAP, PASS)
    assert done.count("neg") == 1
    assert done.error < EXACT


def test_a_batch_that_may_vary():
    done = rewrite(cascaded(), (1, *MAP[1:]), PASS, dynamic=True)
    assert done.report.details == {"reshapes": 2}
    assert done.error < EXACT


@pytest.mark.parametrize("name", ["efficientvit_m0", "soft_tiny"])
def test_models_compute_the_same(name):
    source = model_source(name, num_classes=10)
    names = ["fold_batchnorm", *PASS]
    done = rewrite(source.module, source.inputs[0].shape, names, randomize=False)
    assert done.reports[-1].rewritten > 0
    assert done.error < EXACT
