"""Position tables for another token map, and tensors cut and joined."""

import pytest
import torch

from edgevit.errors import WeightsError
from edgevit.zoo.states import join_rows, resize_positions, split_rows


def ramp(height, width):
    """A table that rises by one a row and by ten a column, on coordinates from 0 to 1."""
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    return (y[:, None] + 10 * x).reshape(1, height * width, 1)


@pytest.mark.parametrize("grid", [(28, 28), (20, 36), (24, 16)])
def test_a_plane_stays_a_plane(grid):
    resized = resize_positions(ramp(14, 14), grid).reshape(grid)
    expected = ramp(*grid).reshape(grid)
    # Away from the border; torch's bicubic kernel bends a plane a little, 0.7 a column apart here.
    margin = [-(-2 * size // 14) for size in grid]
    inside = tuple(slice(m, -m) for m in margin)
    torch.testing.assert_close(resized[inside], expected[inside], rtol=0, atol=0.05)


def test_the_class_token_keeps_its_row():
    table = torch.cat([torch.full((1, 1, 1), 99.0), ramp(4, 4)], 1)
    resized = resize_positions(table, (6, 6), prefix_tokens=1)
    assert resized.shape == (1, 37, 1)
    assert resized[0, 0, 0] == 99
    assert resized[0, 1:].max() < 12


def test_a_table_that_fits_is_left_alone():
    table = ramp(2, 8)
    assert resize_positions(table, (2, 8)) is table


def test_the_type_is_kept():
    assert resize_positions(ramp(4, 4).half(), (8, 8)).dtype == torch.float16


def test_a_table_of_no_square_map_is_refused():
    with pytest.raises(WeightsError, match="8 tokens belongs to no square map"):
        resize_positions(ramp(2, 4), (4, 4))


def test_rows_are_cut_in_order():
    joint = torch.arange(6.0).reshape(6, 1)
    state = split_rows({"a.qkv.weight": joint, "qkv": joint}, r"\.qkv\.", (".q.", ".k.", ".v."))
    assert state.keys() == {"a.q.weight", "a.k.weight", "a.v.weight", "qkv"}
    assert torch.equal(state["a.k.weight"], joint[2:4])
    assert torch.equal(state["qkv"], joint)


def test_rows_are_joined_in_order():
    q, kv = torch.zeros(2, 3), torch.ones(4, 3)
    state = join_rows({"x.q.w": q, "x.kv.w": kv, "y.q.w": q}, ".q.", ".kv.", ".qkv.")
    assert state.keys() == {"x.qkv.w", "y.q.w"}
    assert torch.equal(state["x.qkv.w"], torch.cat([q, kv]))
