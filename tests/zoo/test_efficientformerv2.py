"""EfficientFormerV2: counts of both readings of EleViT's row, attention, released weights."""

import pytest
import torch
from torch.nn import functional as F

import edgevit.zoo.models.efficientformerv2  # noqa: F401
from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention.elementwise import ElementwiseAttention
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_model
from edgevit.zoo.models.efficientformerv2 import (
    DownsampleAttention,
    EfficientFormerV2Config,
    TalkingAttention,
    map_keys,
)
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.weights import load_weights

NAME = "efficientformerv2_l"
# Parameters by classes, with and without the distillation head.
TABLE = {
    1000: (26_322_288, 25_937_288),
    200: (25_706_288, 25_629_288),
    100: (25_629_288, 25_590_788),
    10: (25_559_988, 25_556_138),
}
ELEMENTWISE = {
    f"{NAME}+elementwise": (16_603_680, 16_599_830, 1.908),
    f"{NAME}+elementwise_last": (19_633_194, 19_629_344, 2.243),
}
SMALL = {
    "widths": (8, 12, 16, 24),
    "expansions": ((2,), (2,), (2, 3), (3, 2)),
    "attention_blocks": 1,
    "heads": 2,
    "key_dim": 8,
    "num_classes": 10,
}


def small(name=NAME, image_size=64, **options):
    return create_model(name, image_size=image_size, **SMALL, **options)


def awake(image_size=64, **options):
    """A small model whose output depends on its input: BatchNorm has met some images."""
    model = randomize_(small(image_size=image_size, **options)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(pictures(8, *((image_size,) if isinstance(image_size, int) else image_size)))
    return model.eval()


def pictures(batch, height=64, width=None):
    torch.manual_seed(0)
    coarse = F.interpolate(torch.randn(batch, 3, 3, 3), (height, width or height), mode="bilinear")
    return coarse * torch.arange(1, batch + 1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("classes", "params"), TABLE.items())
def test_parameters(classes, params):
    with torch.device("meta"):
        models = [create_model(NAME, num_classes=classes, distillation=d) for d in (True, False)]
    assert tuple(count_parameters(model) for model in models) == params


def test_macs_and_the_head_at_release():
    with torch.device("meta"):
        model = create_model(NAME)
    assert count_parameters(model) == TABLE[1000][0]
    image = TensorSpec("image", (1, 3, 224, 224), "image")
    assert count_macs(model, [image]) / 1e9 == pytest.approx(2.5525, rel=5e-5)


@pytest.mark.parametrize(("name", "counts"), ELEMENTWISE.items())
def test_both_readings_of_the_elevit_row(name, counts):
    *params, gmacs = counts
    with torch.device("meta"):
        models = [create_model(name, distillation=d) for d in (True, False)]
    assert [count_parameters(model) for model in models] == params
    image = TensorSpec("image", (1, 3, 224, 224), "image")
    assert count_macs(models[0], [image]) / 1e9 == pytest.approx(gmacs, rel=5e-4)


def test_what_each_reading_replaces():
    def kinds(model):
        blocks = [stage.blocks[-1] for stage in model.stages[2:]]
        return [type(block.attention.inner) for block in blocks]

    assert kinds(small()) == [TalkingAttention, TalkingAttention]
    assert kinds(small(f"{NAME}+elementwise")) == [ElementwiseAttention, ElementwiseAttention]
    last = small(f"{NAME}+elementwise_last")
    assert kinds(last) == [TalkingAttention, ElementwiseAttention]
    assert isinstance(last.stages[3].downsample.attention, DownsampleAttention)
    softmax = small(f"{NAME}+softmax", mixer_stages="last")
    assert isinstance(softmax.stages[2].blocks[-1].attention.inner, TalkingAttention)
    assert softmax(pictures(2)).shape == (2, 10)


def heads_of(x, heads):
    return x.unflatten(1, (heads, -1)).flatten(3)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_attention_with_talking_heads_computes_its_equation(stride):
    torch.manual_seed(0)
    config = EfficientFormerV2Config(heads=3, key_dim=4, value_ratio=2)
    model = randomize_(TalkingAttention(12, (4, 6), config, stride=stride).eval())
    x = torch.randn(2, 12, 4, 6)
    y = model.reduce(x)
    assert y.shape[2:] == (4 // stride, 6 // stride)
    query, key, value = (heads_of(layer(y), 3) for layer in (model.query, model.key, model.value))
    scores = torch.einsum("bhdq,bhdk->bhqk", query, key) / 2 + model.relative_bias()
    mix = torch.einsum("bhqk,gh->bgqk", scores, model.talk_before.weight[:, :, 0, 0])
    weights = (mix + model.talk_before.bias.view(-1, 1, 1)).softmax(-1)
    mix = torch.einsum("bhqk,gh->bgqk", weights, model.talk_after.weight[:, :, 0, 0])
    weights = mix + model.talk_after.bias.view(-1, 1, 1)
    out = torch.einsum("bhqk,bhdk->bhdq", weights, value).reshape(2, 24, *y.shape[2:])
    out = out + model.local(model.value(y))
    if stride == 2:
        out = F.interpolate(out, (4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), model.proj(F.gelu(out)), rtol=1e-4, atol=1e-5)
    assert (model(x)[0] - model(x)[1]).abs().max() > 1e-2


@torch.no_grad()
def test_the_attention_between_stages_asks_for_every_second_cell():
    torch.manual_seed(0)
    config = EfficientFormerV2Config(heads=3, key_dim=8, value_ratio=2)
    model = randomize_(DownsampleAttention(12, 16, (4, 6), config).eval())
    x = torch.randn(2, 12, 4, 6)
    query = heads_of(model.query(x[:, :, ::2, ::2] + model.near(x)), 3)
    key, value = heads_of(model.key(x), 3), heads_of(model.value(x), 3)
    scores = torch.einsum("bhdq,bhdk->bhqk", query, key) / 2 + model.relative_bias()
    out = torch.einsum("bhqk,bhdk->bhdq", scores.softmax(-1), value).reshape(2, 24, 2, 3)
    expected = model.proj(F.gelu(out + model.local(model.value(x))))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("image_size", [64, (64, 96)])
def test_eval_is_independent_of_the_batch(image_size):
    model = awake(image_size)
    x = pictures(4, *((image_size,) if isinstance(image_size, int) else image_size))
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-5, atol=1e-5)
    assert (model(x)[0] - model(x)[3]).abs().max() > 0.01


@pytest.mark.parametrize("name", [NAME, *ELEMENTWISE])
def test_one_training_step_leaves_finite_gradients_everywhere(name):
    model = small(name).train()
    loss = F.cross_entropy(model(pictures(4)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    torch.optim.AdamW(model.parameters()).step()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.isfinite().all(), parameter_name


def test_the_capture_computes_the_same_at_any_batch():
    model = awake((64, 96))
    program = capture(model, [TensorSpec("image", (1, 3, 64, 96), "image")], dynamic_batch=True)
    x = pictures(3, 64, 96)
    torch.testing.assert_close(program(x)[0], model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (NAME, {"image_size": 16}, ShapeError, "multiples of 32, got 16"),
        (NAME, {"image_size": 240}, ShapeError, "multiples of 32, got 240"),
        (NAME, {"num_classes": 0}, OptionError, "num_classes"),
        (NAME, {"mixer_stages": "first"}, OptionError, "mixer_stages: expected all or last"),
        (NAME, {"depths": 3}, OptionError, "depths: expected an option of this model"),
        (f"{NAME}+elementwise", {"image_size": (64, 96)}, ShapeError, "square; got 4 x 6"),
    ],
)
def test_what_cannot_be_is_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        create_model(name, **options)


def test_images_of_another_size_are_refused():
    with pytest.raises(ShapeError, match="built for images of 64 x 64, got 32 x 32"):
        small()(torch.zeros(1, 3, 32, 32))


# --- released weights ---------------------------------------------------------------------------

NORM = ("weight", "bias", "running_mean", "running_var")
# Inside a layer of convolution and BatchNorm: the names of the two.
PAIRS = {"authors": ("0", "1"), "timm": ("conv", "bn")}
PROJ = {"authors": ("1", "2"), "timm": ("conv", "bn")}
DEPTHS, WIDTHS = (5, 5, 15, 10), (40, 80, 192, 384)
RATIOS = ([4] * 5, [4] * 5, [4] * 4 + [3] * 7 + [4] * 4, [4] * 3 + [3] * 4 + [4] * 3)


def released(layout):
    """Names and shapes of the released L state dict, written down from its structure."""
    names, timm = {}, layout == "timm"

    def conv(name, *shape):
        names[f"{name}.weight"] = shape
        names[f"{name}.bias"] = shape[:1]

    def norm(name, width):
        names.update({f"{name}.{p}": (width,) for p in NORM})
        names[f"{name}.num_batches_tracked"] = ()

    def pair(name, out, inside, k, parts=PAIRS[layout]):
        conv(f"{name}.{parts[0]}", out, inside, k, k)
        norm(f"{name}.{parts[1]}", out)

    def attention(name, width, key, cells, queries):
        pair(f"{name}.k", 8 * key, width, 1)
        pair(f"{name}.v", 32 * key, width, 1)
        pair(f"{name}.v_local", 32 * key, 1, 3)
        names[f"{name}.attention_biases"] = (8, cells)
        if not timm:
            names[f"{name}.attention_bias_idxs"] = (queries, cells)

    def mixer(name, width, side, stage):
        attention(name, width, 32, side * side, side * side)
        pair(f"{name}.q", 256, width, 1)
        pair(f"{name}.proj", width, 1024, 1, PROJ[layout])
        if stage == 2:
            pair(f"{name}.stride_conv", width, 1, 3)
        for k in (1, 2):
            conv(f"{name}.talking_head{k}", 8, 8, 1, 1)

    def mlp(name, width, hidden):
        shapes = [(hidden, width, 1), (hidden, 1, 3), (width, hidden, 1)]
        if timm:
            for part, shape in zip(("fc1", "mid", "fc2"), shapes, strict=True):
                pair(f"{name}.{part}", *shape)
            return
        parts = [("fc1", "norm1"), ("mid", "mid_norm"), ("fc2", "norm2")]
        for pair_, shape in zip(parts, shapes, strict=True):
            pair(name, *shape, pair_)

    def scale(name, number, width):
        if timm:
            names[f"{name}.ls{number}.gamma"] = (width,)
        else:
            names[f"{name}.layer_scale_{number}"] = (width, 1, 1)

    def downsample(stage):
        a, b = WIDTHS[stage - 1], WIDTHS[stage]
        name = f"stages.{stage}.downsample" if timm else f"network.{2 * stage - 1}"
        if timm:
            pair(f"{name}.conv", b, a, 3)
        else:
            pair(name, b, a, 3, ("conv", "bn") if stage == 3 else ("proj", "norm"))
        if stage == 3:
            attention(f"{name}.attn", a, 16, 196, 49)
            conv(f"{name}.attn.q.local" + ("" if timm else ".0"), a, 1, 3, 3)
            pair(f"{name}.attn.q.proj", 128, a, 1)
            pair(f"{name}.attn.proj", b, 512, 1, PROJ[layout])

    for i, (a, b) in enumerate([(3, 20), (20, 40)]):
        if timm:
            pair(f"stem.conv{i + 1}", b, a, 3)
        else:
            pair("patch_embed", b, a, 3, (str(3 * i), str(3 * i + 1)))
    for stage, width in enumerate(WIDTHS):
        if stage:
            downsample(stage)
        for j in range(DEPTHS[stage]):
            block = f"stages.{stage}.blocks.{j}" if timm else f"network.{2 * stage}.{j}"
            if stage >= 2 and j >= DEPTHS[stage] - 6:
                mixer(f"{block}.token_mixer", width, 7, stage)
                scale(block, 1, width)
            mlp(f"{block}.mlp", width, RATIOS[stage][j] * width)
            scale(block, 2, width)
    norm("norm", 384)
    for head in ("head", "head_dist" if timm else "dist_head"):
        conv(head, 1000, 384)
    return names


@pytest.mark.parametrize("layout", PAIRS)
def test_released_names_become_ours(layout):
    with torch.device("meta"):
        state = {k: torch.empty(v) for k, v in released(layout).items()}
        model = create_model(NAME)
    mapped = {k: tuple(v.shape) for k, v in model.adapt_state(state).items()}
    assert mapped == {k: tuple(v.shape) for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (
            "network.6.9.token_mixer.q.1.running_mean",
            "stages.3.blocks.9.attention.inner.query.1.running_mean",
        ),
        (
            "stages.2.blocks.9.token_mixer.k.conv.bias",
            "stages.2.blocks.9.attention.inner.key.0.bias",
        ),
        ("network.6.9.token_mixer.proj.2.bias", "stages.3.blocks.9.attention.inner.proj.1.bias"),
        ("network.5.bn.weight", "stages.3.downsample.conv.1.weight"),
        ("stages.3.downsample.conv.conv.weight", "stages.3.downsample.conv.0.weight"),
        ("stages.1.downsample.conv.bn.bias", "stages.1.downsample.1.bias"),
        ("network.1.norm.bias", "stages.1.downsample.1.bias"),
        ("network.5.attn.q.local.0.weight", "stages.3.downsample.attention.near.weight"),
        ("network.5.attn.proj.1.weight", "stages.3.downsample.attention.proj.0.weight"),
        ("network.0.0.mlp.mid_norm.weight", "stages.0.blocks.0.mlp.inner.1.1.weight"),
        ("stages.0.blocks.0.mlp.mid.bn.weight", "stages.0.blocks.0.mlp.inner.1.1.weight"),
        ("stages.3.blocks.4.ls1.gamma", "stages.3.blocks.4.attention.scale"),
        ("network.6.4.layer_scale_1", "stages.3.blocks.4.attention.scale"),
        (
            "stages.3.blocks.4.token_mixer.talking_head2.bias",
            "stages.3.blocks.4.attention.inner.talk_after.bias",
        ),
    ],
)
def test_where_a_released_tensor_goes(name, ours):
    assert list(map_keys({name: torch.zeros(1)})) == [ours]


def test_our_own_names_pass_unchanged():
    state = small().state_dict()
    assert list(map_keys(state)) == list(state)


def test_weights_of_another_size_load():
    source, target = awake(), small(image_size=(64, 128), distillation=False)
    load_weights(target, target.adapt_state(source.state_dict()))
    tables = {k: v.shape[1] for k, v in target.state_dict().items() if k.endswith("table")}
    # Stage 3 attends at half of 4 x 8, the downsampling has 4 x 8 keys, stage 4 works on 2 x 4.
    assert sorted(tables.values()) == [8, 8, 32]
    assert target(pictures(2, 64, 128)).shape == (2, 10)
