import math

import pytest
import torch
from rewriting import EXACT, Forward, rewrite

from edgevit.passes import run_passes
from edgevit.source import model_source

PASS = ["lower_masks"]
SCORES = (2, 4, 3, 5)


def masked(mask, then=lambda x: x.softmax(-1)):
    """Scores with a mask added, and what is computed of the sum."""
    made = Forward(lambda m, x: then(x + m.mask))
    made.register_buffer("mask", torch.tensor(mask))
    return made


WINDOW = [[0.0, -100.0, 0.0, 0.0, -100.0], [0.0] * 5, [-100.0, 0.0, 0.0, -100.0, 0.0]]


def subnormal(x):
    return int(((x != 0) & (x.abs() < torch.finfo(torch.float32).tiny)).sum())


def test_forbidden_places_become_zero():
    model = masked(WINDOW)
    done = rewrite(model, SCORES, PASS, randomize=False)
    assert done.report.rewritten == 1
    assert done.error < EXACT
    x = torch.randn(SCORES, generator=torch.Generator().manual_seed(0))
    assert subnormal(model(x)) == 2 * 4 * 4
    assert subnormal(done.after(x)[0]) == 0


def test_through_a_reshape_and_with_a_batch_that_varies():
    model = masked(WINDOW, lambda x: x.reshape(-1, 2, 3, 5).softmax(3))
    done = rewrite(model, SCORES, PASS, dynamic=True, randomize=False)
    assert done.report.rewritten == 1
    assert done.error < EXACT


KEPT = {
    "a bias": ([[3.0, -7.0, 0.5, -12.0, 0.0]], lambda x: x.softmax(-1)),
    "forbidden in part": ([[0.0, -40.0, -100.0, 0.0, 0.0]], lambda x: x.softmax(-1)),
    "minus infinity": ([[0.0, -math.inf, 0.0, 0.0, 0.0]], lambda x: x.softmax(-1)),
    "low already": ([[0.0, -1e9, 0.0, 0.0, 0.0]], lambda x: x.softmax(-1)),
    "another axis": (WINDOW, lambda x: x.softmax(-2)),
    "no softmax": (WINDOW, lambda x: x.sigmoid()),
    "read elsewhere": (WINDOW, lambda x: x.softmax(-1) + x),
    "the last axis cut": (WINDOW, lambda x: x.reshape(2, 4, 5, 3).softmax(-1)),
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps(case):
    mask, then = KEPT[case]
    done = rewrite(masked(mask, then), SCORES, PASS, randomize=False)
    assert (done.report.rewritten, done.report.refusals) == (0, ())


def test_a_row_that_forbids_everything_is_refused():
    rows = [[-100.0] * 5, *WINDOW[1:]]
    done = rewrite(masked(rows), SCORES, PASS, randomize=False)
    assert done.report.rewritten == 0
    assert [r.reason for r in done.report.refusals] == ["its mask forbids every key to some query"]


def test_shifted_windows():
    from edgevit.capture import capture

    source = model_source("swin_tiny", seed=0)
    program = capture(source.module, source.inputs)
    _, (report,) = run_passes(program, PASS)
    # Every second block of the three stages that have more than one window.
    assert report.rewritten == 1 + 1 + 3
