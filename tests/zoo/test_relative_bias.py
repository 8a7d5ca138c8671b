"""Bias tables: what is looked up where, and tables of another map size."""

import pytest
import torch
from torch import nn

from edgevit.errors import WeightsError
from edgevit.zoo.attention.relative_bias import RelativeBias, fit_tables, resize_table


def numbered(grid, stride=1):
    bias = RelativeBias(2, grid, stride=stride)
    with torch.no_grad():
        bias.table.copy_(torch.arange(bias.table.numel()).view_as(bias.table))
    return bias


@pytest.mark.parametrize(("grid", "stride"), [((3, 3), 1), ((2, 5), 1), ((4, 6), 2), ((3, 5), 2)])
def test_every_pair_gets_the_entry_of_its_distance(grid, stride):
    biases = numbered(grid, stride)()
    height, width = grid
    queries = [(y, x) for y in range(0, height, stride) for x in range(0, width, stride)]
    keys = [(y, x) for y in range(height) for x in range(width)]
    assert biases.shape == (2, len(queries), len(keys))
    for head in range(2):
        for q, (y, x) in enumerate(queries):
            for k, (y2, x2) in enumerate(keys):
                entry = abs(y - y2) * width + abs(x - x2)
                assert biases[head, q, k] == head * height * width + entry


def test_it_starts_at_zero_and_its_index_is_no_weight():
    bias = RelativeBias(3, (4, 4))
    assert set(bias.state_dict()) == {"table"}
    assert bias().abs().max() == 0


def test_it_is_built_without_memory():
    with torch.device("meta"):
        assert RelativeBias(2, (3, 3))().shape == (2, 9, 9)


def test_a_resized_table_is_a_resized_image():
    plane = (torch.arange(6.0).view(6, 1) + 10 * torch.arange(6.0)).view(1, 36)
    small = resize_table(plane, (6, 6), (3, 3)).view(3, 3)
    # A plane stays one: its centre value and its slope of two cells a step.
    assert small[1, 1] == pytest.approx(27.5, abs=1e-4)
    assert (small[1] - small[0]).mean() == pytest.approx(2, abs=0.2)
    assert small.dtype == resize_table(plane.half(), (6, 6), (3, 3)).float().dtype


def test_tables_are_fitted_and_the_rest_is_left_alone():
    model = nn.ModuleDict({"a": RelativeBias(2, (2, 3)), "b": RelativeBias(2, (3, 3))})
    state = {
        "a.table": torch.rand(2, 49),
        "b.table": torch.rand(2, 9),
        "c.weight": torch.rand(4),
    }
    fitted = fit_tables(model, state)
    assert fitted["a.table"].shape == (2, 6)
    assert fitted["b.table"] is state["b.table"]
    assert fitted["c.weight"] is state["c.weight"]
    torch.testing.assert_close(fitted["a.table"], resize_table(state["a.table"], (7, 7), (2, 3)))


def test_a_table_of_no_square_map_is_refused():
    model = nn.ModuleDict({"a": RelativeBias(2, (2, 2))})
    with pytest.raises(WeightsError, match="12 biases per head come from no square map"):
        fit_tables(model, {"a.table": torch.rand(2, 12)})
