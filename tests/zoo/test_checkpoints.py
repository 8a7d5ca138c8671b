"""Rules that rename the tensors of released checkpoints."""

import pytest
import torch
from torch import nn

from edgevit.errors import WeightsError
from edgevit.zoo.checkpoints import STAGED, fit_shapes, rename


def test_rules_apply_in_order_and_an_empty_name_is_left_out():
    state = {"a.x": torch.ones(1), "b.x": torch.ones(2), "index": torch.ones(3)}
    rules = [(r"^a\.", "b2."), (r"^b(\d)", lambda m: f"c{int(m[1]) + 1}"), (r"^index$", "")]
    assert {k: len(v) for k, v in rename(state, rules).items()} == {"c3.x": 1, "b.x": 2}


def test_two_tensors_for_one_name_are_refused():
    with pytest.raises(WeightsError, match=r"both stand for x"):
        rename({"x": torch.ones(1), "y": torch.ones(1)}, [(r"^y$", "x")])


@pytest.mark.parametrize(
    ("released", "ours"),
    [
        ("patch_embed.0.weight", "stem.0.0.weight"),
        ("patch_embed.1.running_var", "stem.0.1.running_var"),
        ("patch_embed.4.bias", "stem.1.1.bias"),
        ("stem.3.weight", "stem.1.0.weight"),
        ("network.0.3.x", "stages.0.blocks.3.x"),
        ("network.1.x", "stages.1.downsample.x"),
        ("network.5.x", "stages.3.downsample.x"),
        ("network.6.9.x", "stages.3.blocks.9.x"),
        ("dist_head.weight", "head.distilled.weight"),
        ("head_dist.bias", "head.distilled.bias"),
        ("head.weight", "head.linear.weight"),
        ("norm.weight", "head.norm.weight"),
        ("stem.0.0.weight", "stem.0.0.weight"),
        ("head.norm.weight", "head.norm.weight"),
    ],
)
def test_names_that_several_families_share(released, ours):
    assert list(rename({released: torch.ones(1)}, STAGED)) == [ours]


def test_only_axes_of_length_one_are_fitted():
    model = nn.ParameterDict({"scale": torch.zeros(4, 1, 1), "other": torch.zeros(2, 3)})
    state = {"scale": torch.arange(4.0), "other": torch.zeros(3, 2), "third": torch.zeros(5)}
    fitted = fit_shapes(model, state)
    assert fitted["scale"].shape == (4, 1, 1)
    assert fitted["scale"].flatten().tolist() == [0, 1, 2, 3]
    assert fitted["other"].shape == (3, 2)
    assert fitted["third"].shape == (5,)
