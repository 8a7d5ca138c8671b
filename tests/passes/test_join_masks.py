import pytest
import torch
from rewriting import EXACT, Forward, rewrite

from edgevit.capture import capture
from edgevit.passes import EXACT as ALL
from edgevit.passes import run_passes
from edgevit.source import model_source

PASS = ["join_masks"]
#: Windows, heads, queries, keys.
SCORES = (4, 2, 3, 5)


def held(function, **shapes):
    """A function of (constants, scores), and constants of these shapes."""
    made = Forward(function)
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        made.register_buffer(name, torch.randn(shape, generator=generator))
    return made


def shifted(m, x):
    """A bias for each head, then a mask for each of two windows of an image."""
    masked = (x + m.bias).reshape(-1, 2, 2, 3, 5) + m.mask
    return masked.reshape(-1, 2, 3, 5).softmax(-1)


def windows():
    return held(shifted, bias=(2, 3, 5), mask=(2, 1, 3, 5))


def test_two_sums_become_one():
    model = held(lambda m, x: (m.b + (x + m.a)).softmax(-1), a=(2, 3, 5), b=(4, 1, 3, 5))
    done = rewrite(model, SCORES, PASS, randomize=False)
    assert (done.report.rewritten, done.count("add")) == (1, 1)
    assert done.error < EXACT


def test_three_sums_become_one():
    model = held(
        lambda m, x: (x + m.a + m.b + m.c).softmax(-1), a=(2, 3, 5), b=(4, 1, 3, 5), c=(5,)
    )
    done = rewrite(model, SCORES, PASS, randomize=False)
    assert (done.report.rewritten, done.count("add")) == (2, 1)
    assert done.error < EXACT


def test_windows_of_one_image_need_no_reshape():
    done = rewrite(windows(), (2, *SCORES[1:]), PASS, randomize=False)
    assert (done.report.rewritten, done.count("add"), done.count("reshape")) == (1, 1, 0)
    assert done.error < EXACT


@pytest.mark.parametrize("case", ["two images", "a batch that varies"])
def test_windows_of_several_images_keep_theirs(case):
    # The batch that varies is one of pairs of windows.
    model = windows()
    if case == "a batch that varies":
        inner = model.function
        model.function = lambda m, x: inner(m, x.flatten(0, 1))
        done = rewrite(model, (1, 2, *SCORES[1:]), PASS, randomize=False, dynamic=True)
    else:
        done = rewrite(model, SCORES, PASS, randomize=False)
    assert (done.report.rewritten, done.count("add"), done.count("reshape")) == (1, 1, 2)
    assert done.error < EXACT


def test_other_readers_keep_the_axis_of_images():
    def twice(m, x):
        masked = (x + m.bias).reshape(1, 2, 2, 3, 5) + m.mask
        return masked.reshape(2, 2, 3, 5).softmax(-1) + masked.softmax(-1)[0]

    model = held(twice, bias=(2, 3, 5), mask=(2, 1, 3, 5))
    done = rewrite(model, (2, *SCORES[1:]), PASS, randomize=False)
    assert (done.report.rewritten, done.count("reshape")) == (1, 1)
    assert done.error < EXACT


def written_between(m, x):
    first = x * 2
    second = first + m.a
    first.add_(1)
    return (second + m.b).softmax(-1) * first


KEPT = {
    "read elsewhere": lambda m, x: (lambda y: (y + m.b).softmax(-1) * y)(x + m.a),
    "no softmax": lambda m, x: (x + m.a + m.b).sigmoid(),
    "another axis": lambda m, x: (x + m.a + m.b).softmax(-2),
    "a multiple": lambda m, x: torch.add(x + m.a, m.b, alpha=2).softmax(-1),
    "written in between": written_between,
    "the bias's axes are cut": lambda m, x: ((x + m.a).reshape(8, 3, 1, 5) + m.c).softmax(-1),
    "one constant": lambda m, x: (x + m.a + x).softmax(-1),
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps(case):
    model = held(KEPT[case], a=(2, 3, 5), b=(3, 5), c=(5,))
    done = rewrite(model, SCORES, PASS, randomize=False)
    assert done.report.rewritten == 0
    assert done.error < EXACT


def test_a_sum_that_grows_is_kept():
    model = held(lambda m, x: (x[:, :, :1] + m.a + m.b).softmax(-1), a=(5,), b=(3, 5))
    done = rewrite(model, SCORES, PASS, randomize=False)
    assert done.report.rewritten == 0


def test_shifted_windows_are_attention_with_one_mask():
    source = model_source("swin_tiny", seed=0)
    program, reports = run_passes(capture(source.module, source.inputs), ALL)
    (report,) = (report for report in reports if report.name == "join_masks")
    assert report.rewritten == 1 + 1 + 3
    graph = program.graph_module().graph
    shapes = [n.args[0].meta["val"].dim() for n in graph.nodes if "softmax" in str(n.target)]
    assert shapes == [4] * 12
