"""HVT and HVT with less attention: counts, pooling, released names, what is refused."""

import pytest
import torch
from less_kit import (
    check_batch_independence,
    check_capture,
    check_forward,
    check_training_step,
    counts,
    deviations,
    heads_of,
    joined,
    layer_norm,
    linear,
    mlp,
    noted,
    transformed,
)
from torch import nn
from torch.nn import functional as F

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention import sima  # noqa: F401
from edgevit.zoo.attention.sima import SimAAttention
from edgevit.zoo.factory import create_model
from edgevit.zoo.models import hvt
from edgevit.zoo.models.less_common import TransformedAttention
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info
from edgevit.zoo.weights import load_weights

COUNTS = {
    "hvt_tiny": (5_735_656, 0.642),
    "hvt_small": (22_087_144, 2.402),
    "hvt_small_0": (22_049_896, 4.574),
    "hvt_small_4": (22_118_632, 1.394),
    "hvt_tiny+la": (5_403_892, 0.621),
    "hvt_small+la": (20_425_972, 2.274),
    "hvt_small_0+la": (20_736_808, 4.681),
    "hvt_small_4+la": (20_942_878, 1.363),
}
#: 24 tokens, pooled to 11 after layer 1 and to 5 after layer 4.
SMALL = {"image_size": (64, 96), "width": 24, "heads": 3, "depth": 6, "pools": 2}
SMALL |= {"num_classes": 5}


def small(name="hvt_tiny", **options):
    torch.manual_seed(0)
    model = randomize_(create_model(name, **(SMALL | options)))
    for key, parameter in model.named_parameters():
        if ".transform." in key:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize(("name", "expected"), COUNTS.items())
def test_parameters_and_macs(name, expected):
    params, gmacs = counts(name)
    assert params == expected[0]
    assert gmacs == pytest.approx(expected[1], rel=7e-4)


def test_the_published_figures_are_met():
    for name in ("hvt_tiny", "hvt_small"):
        params, gmacs = counts(name)
        assert round(params / 1e6, 2) == model_info(name).published["params_m"]
        assert round(gmacs, 2) == model_info(name).published["flops_g"]
    for name in ("hvt_small_0", "hvt_small_4"):
        assert round(counts(name)[1], 1) == model_info(name).published["flops_g"]
    assert model_info("hvt_s_4").name == "hvt_small_4"


@pytest.mark.parametrize("name", ["hvt_small_0+la", "hvt_small_4+la"])
def test_the_note_says_how_far_off_the_published_flops_are(name):
    assert noted(name) == deviations(name)


@pytest.mark.parametrize(
    ("name", "tokens", "vanilla"),
    [
        ("hvt_tiny+la", [196] + [97] * 11, [1, 2, 3, 4, 5, 6]),
        ("hvt_small_0+la", [196] * 12, [1, 2, 3, 4, 5, 6]),
        (
            "hvt_small_4+la",
            [196] + [97] * 3 + [48] * 3 + [23] * 3 + [11] * 2,
            [1, 2, 3, 4, 5, 6, 8, 11],
        ),
    ],
)
def test_a_layer_that_follows_a_pooling_is_vanilla(name, tokens, vanilla):
    with torch.device("meta"):
        model = create_model(name)
    assert [model.config.tokens_in(layer) for layer in range(1, 13)] == tokens
    for layer, (block, count) in enumerate(zip(model.blocks, tokens, strict=True), 1):
        assert isinstance(block.attn, TransformedAttention) is (layer not in vanilla)
        if layer not in vanilla:
            assert block.attn.transform.psi.shape == (count, count)


def reference(model, x):
    """The forward pass from the weights alone; and the maps of the less-attention layers."""
    config, w = model.config, model.state_dict()
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    x, less, scores = x.flatten(2).transpose(1, 2) + w["pos_embed"], [], None
    for i in range(config.depth):
        b = f"blocks.{i}"
        y = layer_norm(w, f"{b}.norm1", x)
        if f"{b}.attn.v.weight" in w:
            v = heads_of(linear(w, f"{b}.attn.v", y), config.heads)
            scores = transformed(w, f"{b}.attn", scores)
            less.append(scores)
        else:
            parts = linear(w, f"{b}.attn.qkv", y).chunk(3, -1)
            q, k, v = (heads_of(part, config.heads) for part in parts)
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        x = x + linear(w, f"{b}.attn.proj", joined(scores.softmax(-1) @ v))
        x = x + mlp(w, f"{b}.mlp", layer_norm(w, f"{b}.norm2", x))
        if config.pools and i % (config.depth // config.pools) == 0:
            threes = [x[:, at : at + 3].amax(1) for at in range(0, x.shape[1] - 2, 2)]
            x = torch.stack(threes, 1) + w[f"{b}.pos_embed"]
    return linear(w, "head", layer_norm(w, "norm", x).mean(1)), less


@pytest.mark.parametrize(
    ("options", "layers"), [({}, 0), ({"less_from": 2}, 3), ({"pools": 0, "less_from": 4}, 3)]
)
def test_the_forward_pass_is_hvts(options, layers):
    check_forward(small(**options), reference, layers)


@pytest.mark.parametrize("options", [{}, {"less_from": 2}])
def test_the_capture_computes_the_same_at_any_batch(options):
    check_capture(small(**options))


def test_eval_is_independent_of_the_batch():
    check_batch_independence(small())
    check_batch_independence(small(less_from=2, less_bias=True, less_projection=False))


def test_one_training_step_leaves_finite_gradients_everywhere():
    assert check_training_step(small()) == 0
    assert check_training_step(small(less_from=2)) != 0


def test_released_names_are_ours():
    model, other = small(), small(seed=3)
    names = set(model.state_dict())
    assert {"pos_embed", "blocks.0.pos_embed", "blocks.3.pos_embed"} <= names
    assert {"patch_embed.proj.bias", "blocks.5.attn.qkv.weight", "head.bias"} <= names
    assert "cls_token" not in names
    x = torch.randn(1, 3, 64, 96)
    assert not torch.equal(model(x), other(x))
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    load_weights(other, other.adapt_state(wrapped))
    assert torch.equal(model(x), other(x))
    assert hvt.map_keys(model.state_dict()).keys() == names


def test_positions_follow_the_image_size():
    model, other = small(image_size=64), small(image_size=(64, 96))
    load_weights(other, other.adapt_state(model.state_dict()))
    assert other.pos_embed.shape == (1, 24, 24)
    row = model.blocks[0].pos_embed.detach().transpose(1, 2)
    resized = F.interpolate(row, 11, mode="linear", align_corners=False).transpose(1, 2)
    torch.testing.assert_close(other.blocks[0].pos_embed.detach(), resized)


def test_another_block_takes_the_place_of_the_attention():
    model = small("hvt_tiny+sima")
    assert {type(block.attn) for block in model.blocks} == {SimAAttention}
    check_batch_independence(model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 16, got 100"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"pools": 5}, OptionError, "pools: expected 0 or a divisor of 12, got 5"),
        ({"pools": -1}, OptionError, "pools"),
        ({"pools": 4, "image_size": 48}, ShapeError, "9 tokens cannot be pooled 4 times by 3"),
        ({"less_from": 13}, OptionError, "less_from: expected 0 .never. or .* 2 to 12"),
        ({"less_from": 7, "mixer": "sima"}, OptionError, "softmax, whose scores are kept"),
        ({"heads": 5}, ShapeError, "5 heads do not divide a width of 192"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model("hvt_tiny", **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for images of 64 x 96, got 96 x 64"):
        small()(torch.zeros(1, 3, 96, 64))
