"""Two permutations in one, as windows need it."""

import pytest
from optimized_kit import operators
from program_kit import ROUNDING, error_of, program_of, write
from torch import nn

from exporters.onnx import OnnxExporter

EXPORTER = OnnxExporter()
SIZE, MAP = 3, (4, 6, 9)


def windows(x):
    """(batch, channels, rows, columns) -> (batch x windows, channels, size x size)."""
    batch, channels, rows, columns = x.shape
    x = x.reshape(batch, channels, rows // SIZE, SIZE * columns).transpose(1, 2)
    x = x.reshape(-1, channels * SIZE, columns // SIZE, SIZE).transpose(1, 2)
    return x.reshape(-1, channels, SIZE * SIZE)


def whole(x, channels=4, rows=6, columns=9):
    """What :func:`windows` was made of."""
    x = x.reshape(-1, columns // SIZE, channels * SIZE, SIZE).transpose(1, 2)
    x = x.reshape(-1, rows // SIZE, channels, SIZE * columns).transpose(1, 2)
    return x.reshape(-1, channels, rows, columns)


def cut(m, x):
    return m.norm(windows(x.relu())).reshape(x.shape)


def there_and_back(m, x):
    return x + whole(m.norm(windows(x)))


def of_a_sum(m, x):
    """Neither made nor read by a reshape."""
    y = (x + 1).transpose(1, 2).reshape(-1, 2, 12, 9).transpose(1, 2).relu()
    return m.norm(y.reshape(x.shape))


def back_and_more(m, x):
    """The second undoes the first, and no axis moves in the end."""
    return x.relu().transpose(1, 2).reshape(-1, 6, 4, 3, 3).transpose(1, 2).exp()


def three(m, x):
    y = x.transpose(1, 2).reshape(-1, 2, 12, 9).transpose(1, 2)
    return m.norm(y.reshape(-1, 3, 8, 9).transpose(1, 2).reshape(x.shape))


def moves_last(m, x):
    return m.norm(x.transpose(1, 2).reshape(-1, 24, 9).transpose(1, 2).reshape(x.shape))


def read_between(m, x):
    between = x.transpose(1, 2).reshape(-1, 2, 12, 9)
    return m.norm(between.transpose(1, 2).reshape(x.shape) + between.reshape(x.shape))


def cut_across(m, x):
    """One shape has borders at 12 and 48 of 432, the other at 16: neither divides the other."""
    y = x.transpose(1, 2).reshape(x.shape[0], 8, 27).transpose(0, 1)
    return m.norm(y.reshape(x.shape))


def exported(function, folder, *, batch=1, dynamic=False, **options):
    program = program_of(function, (batch, *MAP), dynamic=dynamic, norm=nn.LayerNorm(9))
    artifact = write(EXPORTER, program, folder, **options)
    for runner in EXPORTER.load(artifact, folder):
        assert error_of(runner, program) <= ROUNDING
    return artifact.facts["rewritten"].get("join_turns", 0)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("function", "count"), [(cut, 1), (of_a_sum, 1), (there_and_back, 2)])
def test_windows_take_one_permutation(function, count, batch, tmp_path):
    assert exported(function, tmp_path, batch=batch) == count
    assert operators(tmp_path)["Transpose"] == count


def test_they_take_two_as_they_are_written(tmp_path):
    exported(there_and_back, tmp_path, rewrite=False)
    assert operators(tmp_path)["Transpose"] == 4


def test_two_that_move_nothing_are_none(tmp_path):
    assert exported(back_and_more, tmp_path) == 1
    assert operators(tmp_path)["Transpose"] == 0


def test_of_three_one_stays(tmp_path):
    assert exported(three, tmp_path) == 1
    assert operators(tmp_path)["Transpose"] == 2


@pytest.mark.parametrize("function", [moves_last, read_between, cut_across])
def test_leaves(function, tmp_path):
    assert exported(function, tmp_path, batch=2) == 0
    assert operators(tmp_path)["Transpose"] == 2


def test_a_batch_that_varies_is_left(tmp_path):
    assert exported(there_and_back, tmp_path, batch=2, dynamic=True) == 0
