"""XCiT, with its own attention and others: the counts of SimA's tables, quirks, features, names."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention import cosformer, efficient, elementwise, sima, xca  # noqa: F401
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_model
from edgevit.zoo.models.xcit import fourier_positions, map_keys
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info
from edgevit.zoo.weights import load_weights

COUNTS = {
    "xcit_small_12_p16": (26_253_304, 4.796),
    "xcit_small_12_p16+sima": (26_253_208, 4.853),
    "xcit_small_12_p16+efficient": (26_253_208, 4.796),
    "xcit_small_12_p16+cosformer": (26_253_208, 4.797),
    "xcit_tiny_12_p8": (6_706_504, 4.771),
    "xcit_tiny_12_p8+sima": (6_706_456, 4.829),
    "xcit_tiny_24_p16": (12_116_896, 2.322),
    "xcit_tiny_24_p16+sima": (12_116_800, 2.336),
    "xcit_tiny_20_p16": (10_316_688, 1.958),
    "xcit_tiny_20_p16+sima": (10_316_608, 1.972),
}


def image(height, width=None):
    return TensorSpec("image", (1, 3, height, width or height), "image")


def small(name="xcit_small_12_p16", **options):
    settings = {"image_size": 32, "width": 24, "heads": 3, "depth": 2, "num_classes": 5}
    return create_model(name, **(settings | options))


@pytest.mark.parametrize(("name", "counts"), COUNTS.items())
def test_parameters_and_macs(name, counts):
    params, gmacs = counts
    with torch.device("meta"):
        model = create_model(name)
    assert count_parameters(model) == params
    assert count_macs(model, [image(224)]) / 1e9 == pytest.approx(gmacs, rel=5e-4)


def test_the_open_points_are_noted():
    info = model_info("xcit_tiny_20_p16+sima")
    assert info.published == {"params_m": 12, "flops_g": 1.9, "top1": 79.2}
    assert "12M fits 24 layers" in info.note
    assert "26M" in model_info("xcit_small_12_p16+efficient").note
    assert model_info("sima_small_12_p16").name == "xcit_small_12_p16+sima"


@pytest.mark.parametrize(
    ("name", "scale"),
    [("xcit_small_12_p16", 1.0), ("xcit_tiny_12_p8+sima", 1.0), ("xcit_tiny_24_p16", 1e-5)],
)
def test_the_layer_scale_begins_where_it_should(name, scale):
    model = create_model(name, width=24, heads=3)
    for block in (*model.blocks, *model.cls_attn_blocks):
        for key, parameter in block.named_parameters(recurse=False):
            assert key.startswith("gamma")
            assert torch.equal(parameter, torch.full((24,), scale))


@pytest.mark.parametrize("patch", [8, 16])
def test_the_patch_embedding_ends_without_activation(patch):
    model = small(patch_size=patch)
    kinds = [type(layer) for layer in model.patch_embed.proj]
    assert kinds.count(nn.GELU) == len(kinds) // 2 == (3 if patch == 16 else 2)
    assert kinds[-1] is not nn.GELU
    widths = [layer[0].out_channels for layer in model.patch_embed.proj[::2]]
    assert widths == [3, 6, 12, 24] if patch == 16 else [6, 12, 24]


def test_the_positions_are_sines_and_cosines_of_the_grid():
    table = fourier_positions((2, 3))
    assert table.shape == (1, 64, 2, 3)
    for y in range(2):
        for x in range(3):
            for half, coordinate in ((0, (y + 1) / 2), (32, (x + 1) / 3)):
                for i in range(16):
                    angle = 2 * math.pi * coordinate / 10000 ** (2 * i / 32)
                    sine, cosine = table[0, half + 2 * i, y, x], table[0, half + 2 * i + 1, y, x]
                    assert sine == pytest.approx(math.sin(angle), abs=1e-6)
                    assert cosine == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions_follow_the_image_size_and_are_no_weights():
    model, other = small(), small(image_size=(48, 64))
    assert other.pos_embed.table.shape == (1, 64, 3, 4)
    assert "pos_embed.table" not in model.state_dict()
    load_weights(other, other.adapt_state(model.state_dict()))
    assert other(torch.zeros(1, 3, 48, 64)).shape == (1, 5)


def class_block(block, x):
    """The class-attention block as the released code writes it, on all rows at once."""
    z = block.norm1(x)
    attended = torch.cat([block.attn(z[:, :1], z[:, 1:]), z[:, 1:]], 1)
    u = block.norm2(x + block.gamma1 * attended)
    branch = torch.cat([block.gamma2 * block.mlp(u[:, :1]), u[:, 1:]], 1)
    return u + branch


@pytest.mark.parametrize("mixer", ["xca", "sima"])
def test_the_class_blocks_double_the_patch_tokens(mixer):
    torch.manual_seed(0)
    block = randomize_(small(mixer=mixer)).cls_attn_blocks[0]
    x = torch.randn(2, 5, 24)
    token, patches = block(x[:, :1], x[:, 1:])
    torch.testing.assert_close(torch.cat([token, patches], 1), class_block(block, x))


def test_only_the_class_token_may_be_normalised_again():
    torch.manual_seed(0)
    block = randomize_(small(tokens_norm=False)).cls_attn_blocks[0]
    token, patches = torch.randn(2, 1, 24), torch.randn(2, 4, 24)
    _, after = block(token, patches)
    torch.testing.assert_close(after, 2 * (patches + block.gamma1 * block.norm1(patches)))


@pytest.mark.parametrize(
    ("name", "mixer"), [("xcit_small_12_p16", "softmax"), ("xcit_small_12_p16+sima", "sima")]
)
def test_the_class_attention_follows_the_mixer(name, mixer):
    assert {block.attn.mixer for block in small(name).cls_attn_blocks} == {mixer}
    other = "sima" if mixer == "softmax" else "softmax"
    swapped = small(name, class_attention=other)
    assert {block.attn.mixer for block in swapped.cls_attn_blocks} == {other}


def test_the_block_is_attention_then_local_interaction_then_mlp():
    torch.manual_seed(0)
    block = randomize_(small()).eval().blocks[0]
    x = torch.randn(2, 4, 24)
    y = x + block.gamma1 * block.attn(block.norm1(x))
    local = block.local_mp
    plane = block.norm3(y).transpose(1, 2).reshape(2, 24, 2, 2)
    plane = local.conv2(local.bn(F.gelu(local.conv1(plane))))
    y = y + block.gamma3 * plane.flatten(2).transpose(1, 2)
    y = y + block.gamma2 * block.mlp(block.norm2(y))
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("name", ["xcit_small_12_p16", "xcit_small_12_p16+sima"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_capture_computes_the_same(name, dynamic):
    torch.manual_seed(0)
    model = randomize_(small(name, depth=1))
    program = capture(model, [image(32)], dynamic_batch=dynamic)
    x = torch.randn(3 if dynamic else 1, 3, 32, 32)
    torch.testing.assert_close(program(x)[0], model(x), rtol=0, atol=1e-5)
    assert (model(x) - model(-x)).abs().max() > 1e-3


@pytest.mark.parametrize("mixer", ["xca", "sima", "efficient", "cosformer", "elementwise"])
def test_eval_is_independent_of_the_batch(mixer):
    torch.manual_seed(0)
    model = randomize_(small(mixer=mixer))
    x = torch.randn(3, 3, 32, 32) * torch.tensor([0.1, 1, 10]).view(3, 1, 1, 1)
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("name", ["xcit_small_12_p16", "xcit_small_12_p16+sima"])
def test_one_training_step_leaves_finite_gradients_everywhere(name, features):
    torch.manual_seed(0)
    model = small(name, image_size=64, features=features).train()
    out = model(torch.randn(2, 3, 64, 64))
    sum(part.square().mean() for part in (out if features else [out])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["xcit_small_12_p16", "xcit_tiny_12_p8+sima"])
@pytest.mark.parametrize("size", [(512, 512), (800, 1280)])
def test_the_features_are_captured_at_detection_sizes(name, size):
    model = small(name, image_size=size, width=8, heads=2, depth=1, features=True)
    program = capture(model, [image(*size)])
    shapes = [spec.shape for spec in program.outputs]
    assert shapes == [(1, 8, size[0] // scale, size[1] // scale) for scale in (4, 8, 16, 32)]


def test_the_features_come_from_the_blocks_that_the_paper_names():
    torch.manual_seed(0)
    model = randomize_(small(image_size=64, depth=12, features=True))
    assert model.config.feature_blocks == (4, 6, 8, 12)
    x = torch.randn(1, 3, 64, 64)
    outputs = {}
    for number in (3, 4, 5, 6, 7, 8, 11, 12):
        block = model.blocks[number - 1]
        block.register_forward_hook(lambda _, __, out, n=number: outputs.__setitem__(n, out))
    maps = model(x)

    def plane(number):
        return outputs[number].transpose(1, 2).reshape(1, 24, 4, 4)

    torch.testing.assert_close(maps[1], model.fpn2(plane(6)))
    torch.testing.assert_close(maps[2], plane(8))
    torch.testing.assert_close(maps[3], F.max_pool2d(plane(12), 2))
    torch.testing.assert_close(maps[0], model.fpn1(plane(4)))
    assert not torch.allclose(plane(7), plane(8), atol=1e-3)


def test_the_blocks_of_deeper_models_are_taken_in_proportion():
    with torch.device("meta"):
        model = create_model("xcit_tiny_24_p16", features=True)
    assert model.config.feature_blocks == (8, 12, 16, 24)


def test_it_builds_and_moves_without_memory():
    with torch.device("meta"):
        model = create_model("xcit_small_12_p16+sima", features=True)
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    moved = copy.deepcopy(small()).to("meta")
    assert moved(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 5)


def released(dim=24, depth=2, heads=3, classes=5, temperature=True):
    """Names and shapes of the released XCiT checkpoints; SimA's are without temperatures."""

    def layer(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    def norm(name, width):
        stats = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
        return layer(name, width) | stats | {f"{name}.num_batches_tracked": ()}

    def transformer(block):
        return (
            layer(f"{block}.norm1", dim)
            | layer(f"{block}.norm2", dim)
            | layer(f"{block}.attn.qkv", 3 * dim, dim)
            | layer(f"{block}.attn.proj", dim, dim)
            | layer(f"{block}.mlp.fc1", 4 * dim, dim)
            | layer(f"{block}.mlp.fc2", dim, 4 * dim)
            | {f"{block}.gamma1": (dim,), f"{block}.gamma2": (dim,)}
        )

    shapes = {"cls_token": (1, 1, dim)}
    shapes |= layer("norm", dim) | layer("head", classes, dim)
    shapes |= layer("pos_embeder.token_projection", dim, 64, 1, 1)
    for i, (a, b) in enumerate([(3, dim // 8), (3, 6), (6, 12), (12, dim)]):
        shapes[f"patch_embed.proj.{2 * i}.0.weight"] = (b, a, 3, 3)
        shapes |= norm(f"patch_embed.proj.{2 * i}.1", b)
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= transformer(block) | layer(f"{block}.norm3", dim)
        shapes |= layer(f"{block}.local_mp.conv1", dim, 1, 3, 3)
        shapes |= layer(f"{block}.local_mp.conv2", dim, 1, 3, 3)
        shapes |= norm(f"{block}.local_mp.bn", dim)
        shapes[f"{block}.gamma3"] = (dim,)
        if temperature:
            shapes[f"{block}.attn.temperature"] = (heads, 1, 1)
    for i in range(2):
        shapes |= transformer(f"cls_attn_blocks.{i}")
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["xcit_small_12_p16", "xcit_small_12_p16+sima"])
def test_released_names_load(name, prefix):
    state = released(temperature="sima" not in name)
    model = small(name)
    load_weights(model, model.adapt_state({prefix + key: value for key, value in state.items()}))
    joint = state["cls_attn_blocks.1.attn.qkv.weight"]
    layers = model.cls_attn_blocks[1].attn
    parts = torch.cat([layers.q.weight, layers.k.weight, layers.v.weight])
    assert torch.equal(parts, joint)
    projection = state["pos_embeder.token_projection.weight"]
    assert torch.equal(model.pos_embed.token_projection.weight, projection)


def test_names_of_timm_and_our_own_pass_through():
    state = small().state_dict()
    assert map_keys(state).keys() == state.keys()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("xcit_small_12_p16", {"image_size": 100}, ShapeError, "multiples of 16, got 100"),
        ("xcit_tiny_12_p8", {"image_size": 100}, ShapeError, "multiples of 8, got 100"),
        (
            "xcit_tiny_12_p8",
            {"image_size": 104, "features": True},
            ShapeError,
            "multiples of 32, got 104",
        ),
        ("xcit_small_12_p16", {"patch_size": 4}, OptionError, "patch_size: expected 8 or 16"),
        ("xcit_small_12_p16", {"width": 20}, OptionError, "width: expected a multiple of 8"),
        ("xcit_small_12_p16", {"heads": 5}, ShapeError, "5 heads do not divide a width of 384"),
        ("xcit_small_12_p16", {"num_classes": 0}, OptionError, "num_classes"),
        ("xcit_small_12_p16", {"class_attention": "xca"}, OptionError, "softmax or sima"),
    ],
)
def test_what_cannot_be_is_refused(name, options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model(name, **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for images of 32 x 32, got 32 x 48"):
        small()(torch.zeros(1, 3, 32, 48))
