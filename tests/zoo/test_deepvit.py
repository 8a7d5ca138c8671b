"""DeepViT, also with less attention: counts, re-attention, released names, what is refused."""

import pytest
import torch
from less_kit import (
    batch_norm,
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
from edgevit.zoo.models import deepvit
from edgevit.zoo.models.deepvit import ReAttention
from edgevit.zoo.models.less_common import TransformedAttention
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.weights import load_weights

SMALL = {"image_size": 32, "width": 24, "heads": 3, "depth": 4, "num_classes": 5}
SMALL |= {"reattention_from": 3}


def small(name="deepvit_small", **options):
    torch.manual_seed(0)
    model = randomize_(create_model(name, **(SMALL | options)))
    for key, parameter in model.named_parameters():
        if ".transform." in key:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deepvit_small", (27_312_632, 6.361)),
        ("deepvit_small+la", (25_418_184, 7.212)),
        ("deepvit_tiny", (5_717_632, 1.2579)),
        ("deepvit_tiny+la", (5_738_668, 1.4013)),
        ("deepvit_small_12", (22_051_312, 4.6156)),
        ("deepvit_small_12+la", (20_742_940, 4.7281)),
    ],
)
def test_parameters_and_macs(name, expected):
    params, gmacs = counts(name)
    assert params == expected[0]
    assert gmacs == pytest.approx(expected[1], rel=5e-4)
    assert noted(name) == deviations(name)


def test_the_layers_are_those_of_deepvit_s():
    with torch.device("meta"):
        models = [create_model(name) for name in ("deepvit_small", "deepvit_small+la")]
    for model, vanilla in zip(models, (16, 8), strict=True):
        again = [isinstance(block.attn.weigh, ReAttention) for block in model.blocks]
        assert again == [False] * 11 + [True] * 5
        less = [isinstance(block.attn, TransformedAttention) for block in model.blocks]
        assert less == [False] * vanilla + [True] * (16 - vanilla)
    assert models[0].blocks[11].attn.weigh.scale == pytest.approx(33**-0.5)


@pytest.mark.parametrize(
    ("deep", "deit"), [("deepvit_tiny", "deit_tiny"), ("deepvit_small_12", "deit_small")]
)
def test_those_of_lavits_table_are_deits_with_reattention(deep, deit):
    with torch.device("meta"):
        shapes = [
            {k: tuple(v.shape) for k, v in create_model(name).state_dict().items()}
            for name in (deep, deit)
        ]
    ours, theirs = shapes
    extra = {k: v for k, v in ours.items() if ".weigh." in k}
    kept = sorted(v for k, v in ours.items() if k not in extra)
    assert kept == sorted(theirs.values())
    assert {k.partition(".weigh.")[0] for k in extra} == {f"blocks.{i}.attn" for i in range(12)}


def test_a_stem_of_patches_computes_what_its_weights_say():
    model = small("deepvit_tiny", width=24, depth=2, reattention_from=1)
    x = torch.randn(2, 3, 32, 32)
    seen = {}
    model.blocks[0].norm1.register_forward_hook(lambda m, given, out: seen.update(x=given[0]))
    with torch.no_grad():
        model(x)
    w = model.state_dict()
    patches = F.conv2d(x, w["patch_embed.weight"], w["patch_embed.bias"], stride=16)
    tokens = torch.cat([w["cls_token"].repeat(2, 1, 1), patches.flatten(2).mT], 1)
    torch.testing.assert_close(seen["x"], tokens + w["pos_embed"])


def relu_conv(w, name, x, **options):
    x = F.conv2d(x, w[f"{name}.0.weight"], **options)
    return batch_norm(w, f"{name}.1", x).clamp(min=0)


def reference(model, x):
    """The forward pass from the weights alone; and the maps of the less-attention layers."""
    config, w = model.config, model.state_dict()
    x = relu_conv(w, "patch_embed.0", x, stride=2, padding=3)
    x = relu_conv(w, "patch_embed.1", x, padding=1)
    x = F.conv2d(x, w["patch_embed.2.weight"], w["patch_embed.2.bias"], stride=8)
    x = torch.cat([w["cls_token"].repeat(len(x), 1, 1), x.flatten(2).transpose(1, 2)], 1)
    x, less, scores = x + w["pos_embed"], [], None
    for i in range(config.depth):
        b, width = f"blocks.{i}", config.width // config.heads
        y = layer_norm(w, f"{b}.norm1", x * 0.5)
        if 0 < config.less_from <= i + 1:
            v = heads_of(linear(w, f"{b}.attn.v", y), config.heads)
            scores = transformed(w, f"{b}.attn", scores)
            less.append(scores)
        else:
            parts = linear(w, f"{b}.attn.qkv", y).chunk(3, -1)
            q, k, v = (heads_of(part, config.heads) for part in parts)
            scores = q @ k.transpose(-2, -1) / width**0.5
        weights = scores.softmax(-1)
        if i + 1 >= config.reattention_from:
            theta, bias = (w[f"{b}.attn.weigh.mix.{part}"] for part in ("weight", "bias"))
            weights = torch.einsum("kh,bhnm->bknm", theta[:, :, 0, 0], weights)
            weights = batch_norm(w, f"{b}.attn.weigh.norm", weights + bias.view(-1, 1, 1))
            weights = weights / width**0.5
        x = x + linear(w, f"{b}.attn.proj", joined(weights @ v)) / 0.5
        x = x + mlp(w, f"{b}.mlp", layer_norm(w, f"{b}.norm2", x * 0.5)) / 0.5
    return linear(w, "head", layer_norm(w, "norm", x)[:, 0]), less


@pytest.mark.parametrize("options", [{}, {"less_from": 2}, {"image_size": (32, 48)}])
def test_the_forward_pass_is_deepvits(options):
    check_forward(small(**options), reference, 3 if "less_from" in options else 0)


@pytest.mark.parametrize("options", [{}, {"less_from": 2}])
def test_the_capture_computes_the_same_at_any_batch(options):
    check_capture(small(**options))


def test_eval_is_independent_of_the_batch():
    check_batch_independence(small())
    check_batch_independence(small(less_from=3, less_bias=True, less_projection=False))


def test_one_training_step_leaves_finite_gradients_everywhere():
    assert check_training_step(small()) == 0
    assert check_training_step(small(less_from=3)) != 0


def released(model):
    """The state under the names of the released code."""
    renamed = {}
    for key, tensor in model.state_dict().items():
        parts = key.split(".")
        if parts[0] == "patch_embed":
            layer, leaf = int(parts[1]), parts[-1]
            norm = len(parts) == 4 and parts[2] == "1"
            kind = "proj" if layer == 2 else f"{'bn' if norm else 'conv'}{layer + 1}"
            key = f"patch_embed.{kind}.{leaf}"
        key = key.replace(".weigh.mix.", ".reatten_matrix.")
        renamed[key.replace(".weigh.norm.", ".var_norm.")] = tensor
    return renamed


def test_released_names_load():
    model, other = small(), small(seed=3)
    state = released(model)
    assert {"patch_embed.conv1.weight", "patch_embed.bn2.running_var"} <= state.keys()
    assert {"patch_embed.proj.bias", "blocks.3.attn.reatten_matrix.bias"} <= state.keys()
    assert {"blocks.2.attn.var_norm.weight", "blocks.0.attn.qkv.bias"} <= state.keys()
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(model(x), other(x))
    load_weights(other, other.adapt_state(state))
    assert torch.equal(model(x), other(x))
    assert deepvit.map_keys(model.state_dict()).keys() == model.state_dict().keys()


def test_positions_follow_the_image_size():
    model, other = small(), small(image_size=(64, 48))
    load_weights(other, other.adapt_state(model.state_dict()))
    assert other.pos_embed.shape == (1, 1 + 4 * 3, 24)
    assert torch.equal(other.pos_embed[:, 0], model.pos_embed[:, 0])


def test_another_block_takes_the_place_of_the_attention():
    model = small("deepvit_small+sima")
    assert {type(block.attn) for block in model.blocks} == {SimAAttention}
    check_batch_independence(model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 16, got 100"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"branch_scale": 0}, OptionError, "branch_scale: expected a positive number, got 0"),
        ({"less_from": 17}, OptionError, "less_from: expected 0 .never. or .* 2 to 16"),
        ({"less_from": 9, "mixer": "sima"}, OptionError, "reattention, whose scores are kept"),
        ({"mixer_options": {"order": "nn"}}, OptionError, "nothing with reattention here"),
        ({"heads": 5}, ShapeError, "5 heads do not divide a width of 396"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model("deepvit_small", **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for images of 32 x 32, got 48 x 32"):
        small()(torch.zeros(1, 3, 48, 32))
