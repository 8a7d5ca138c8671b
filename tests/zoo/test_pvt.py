"""PVT: the counts that LaViT quotes, the forward pass, features and the authors' names."""

import pytest
import torch
from less_kit import (
    check_batch_independence,
    check_capture,
    check_training_step,
    counts,
    heads_of,
    joined,
    layer_norm,
    linear,
    mlp,
)
from torch.nn import functional as F

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention import elementwise, sima  # noqa: F401
from edgevit.zoo.attention.sima import SimAAttention
from edgevit.zoo.factory import create_model
from edgevit.zoo.models import pvt
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info
from edgevit.zoo.weights import load_weights

COUNTS = {
    "pvt_tiny": (13_229_288, 1.933),
    "pvt_small": (24_485_864, 3.816),
    "pvt_medium": (44_208_104, 6.659),
}
SMALL = {"image_size": 64, "widths": (8, 16, 24, 32), "heads": (1, 2, 3, 4), "num_classes": 5}
SMALL |= {"expansions": (2, 2, 2, 2), "depths": (1, 2, 1, 1)}


def small(name="pvt_tiny", **options):
    torch.manual_seed(0)
    return randomize_(create_model(name, **(SMALL | options)))


@pytest.mark.parametrize(("name", "expected"), COUNTS.items())
def test_parameters_and_macs_are_those_of_the_papers_pvt_rows(name, expected):
    params, gmacs = counts(name)
    assert params == expected[0]
    assert gmacs == pytest.approx(expected[1], rel=5e-4)
    published = model_info(name).published
    assert round(params / 1e6, 1) == published["params_m"]
    assert round(gmacs, 1) == published["flops_g"]


def reference(model, x, *, features=False):
    """The forward pass by torch's own functions, from the weights alone; maps besides logits."""
    config, w = model.config, model.state_dict()
    maps = []
    for stage in range(4):
        s, heads = f"stages.{stage}", config.heads[stage]
        weight, bias = (w[f"{s}.patch_embed.proj.{part}"] for part in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride=4 if stage == 0 else 2)
        height, width = x.shape[-2:]
        x = layer_norm(w, f"{s}.patch_embed.norm", x.permute(0, 2, 3, 1).flatten(1, 2), 1e-5)
        if stage == 3 and not features:
            x = torch.cat([w[f"{s}.cls_token"].repeat(len(x), 1, 1), x], 1)
        x = x + w[f"{s}.pos_embed"]
        for i in range(config.depths[stage]):
            b = f"{s}.blocks.{i}"
            y = source = layer_norm(w, f"{b}.norm1", x)
            ratio = config.reductions[stage]
            if ratio > 1:
                cells = y.unflatten(1, (height // ratio, ratio, width // ratio, ratio))
                kernel = w[f"{b}.attn.reduce.conv.weight"]
                source = torch.einsum("bhiwjc,ocij->bhwo", cells, kernel).flatten(1, 2)
                source = source + w[f"{b}.attn.reduce.conv.bias"]
                source = layer_norm(w, f"{b}.attn.reduce.norm", source, 1e-5)
            q = heads_of(linear(w, f"{b}.attn.q", y), heads)
            k, v = (heads_of(t, heads) for t in linear(w, f"{b}.attn.kv", source).chunk(2, -1))
            out = F.scaled_dot_product_attention(q, k, v)
            x = x + linear(w, f"{b}.attn.proj", joined(out))
            x = x + mlp(w, f"{b}.mlp", layer_norm(w, f"{b}.norm2", x))
        if stage < 3 or features:
            x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
            maps.append(x)
    return tuple(maps) if features else linear(w, "head", layer_norm(w, "norm", x)[:, 0])


@pytest.mark.parametrize("size", [64, (32, 64)])
def test_the_forward_pass_is_pvts(size):
    model = small(image_size=size)
    x = torch.randn(2, 3, *model.config.image)
    torch.testing.assert_close(model(x), reference(model, x), rtol=1e-4, atol=1e-5)
    assert (model(x)[0] - model(x)[1]).abs().max() > 1e-2


def test_the_features_are_the_maps_of_the_stages():
    model = small(features=True)
    x = torch.randn(2, 3, 64, 64)
    maps = model(x)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (8, 16, 16),
        (16, 8, 8),
        (24, 4, 4),
        (32, 2, 2),
    ]
    for got, want in zip(maps, reference(model, x, features=True), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [False, True])
def test_the_capture_computes_the_same_at_any_batch(features):
    check_capture(small(features=features))


def test_eval_is_independent_of_the_batch():
    check_batch_independence(small())


def test_one_training_step_leaves_finite_gradients_everywhere():
    assert check_training_step(small()) == 0


def released(model):
    """The state under the authors' names."""
    renamed = {}
    for key, tensor in model.state_dict().items():
        name = key
        if key.startswith("stages."):
            _, stage, part, *rest = key.split(".")
            part = "block" if part == "blocks" else part
            name = ".".join([f"{part}{int(stage) + 1}", *rest])
            name = "cls_token" if part == "cls_token" else name
        name = name.replace(".attn.reduce.conv.", ".attn.sr.")
        renamed[name.replace(".attn.reduce.norm.", ".attn.norm.")] = tensor
    return renamed


@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_names_load(prefix):
    model, other = small(), small(seed=3)
    state = released(model)
    assert {"patch_embed1.proj.weight", "pos_embed4", "cls_token", "head.bias"} <= state.keys()
    assert {"block1.0.attn.sr.weight", "block2.1.attn.norm.bias", "norm.weight"} <= state.keys()
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(model(x), other(x))
    load_weights(other, other.adapt_state({prefix + k: v for k, v in state.items()}))
    assert torch.equal(model(x), other(x))
    assert pvt.map_keys(model.state_dict()).keys() == model.state_dict().keys()


def state_of(model, name):
    return model.state_dict()[f"stages.3.blocks.0.{name}"]


def test_a_classifiers_weights_load_into_a_backbone():
    model, backbone = small(), small(features=True)
    load_weights(backbone, backbone.adapt_state(released(model)))
    assert torch.equal(backbone.stages[3].pos_embed, model.stages[3].pos_embed[:, 1:])
    own = backbone.adapt_state(backbone.state_dict())
    assert own.keys() == backbone.state_dict().keys()
    # The authors' backbones for dense prediction keep the class token's position.
    spare = {k: v for k, v in released(model).items() if not k.startswith(("cls", "norm", "head"))}
    load_weights(backbone, backbone.adapt_state(spare))
    x = torch.randn(1, 3, 64, 64)
    expected = reference(backbone, x, features=True)
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(backbone.stages[3].blocks[0].attn.q.weight, state_of(model, "attn.q.weight"))


def test_positions_follow_the_image_size():
    model, other = small(), small(image_size=(96, 64))
    load_weights(other, other.adapt_state(model.state_dict()))
    assert other.stages[0].pos_embed.shape == (1, 24 * 16, 8)
    assert torch.equal(other.stages[3].pos_embed[:, 0], model.stages[3].pos_embed[:, 0])


def test_another_block_takes_the_place_of_the_attention():
    model = small("pvt_tiny+sima")
    kinds = {type(block.attn) for stage in model.stages for block in stage.blocks}
    assert kinds == {SimAAttention}
    check_batch_independence(model)
    maps = small("pvt_tiny+elementwise", features=True)(torch.randn(1, 3, 64, 64))
    assert len(maps) == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 32, got 100"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"reductions": (8, 4, 2, 2)}, ShapeError, "reductions takes image sizes that are"),
        ({"reductions": (8, 4, 2, 7)}, OptionError, "1 in the last stage, which has a class"),
        ({"heads": (1, 2, 3, 8)}, ShapeError, "3 heads do not divide a width of 320"),
        ({"mixer_options": {"order": "nn"}}, OptionError, "nothing with spatial_reduction"),
        ({"mixer": "elementwise"}, ShapeError, "class token"),
        ({"windows": 7}, OptionError, "windows: expected an option of this model"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model("pvt_tiny", **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for images of 64 x 64, got 96 x 64"):
        small()(torch.zeros(1, 3, 96, 64))
