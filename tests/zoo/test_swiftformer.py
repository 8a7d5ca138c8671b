"""SwiftFormer: counts, both heads, and released weights in both layouts."""

import pytest
import torch
from torch.nn import functional as F

import edgevit.zoo.attention.swift_additive
import edgevit.zoo.models.swiftformer  # noqa: F401
from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_model
from edgevit.zoo.models.swiftformer import map_keys
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.weights import load_weights

# Parameters by classes, with and without the distillation head.
TABLE = {
    1000: (28_494_736, 27_981_736),
    200: (27_673_936, 27_571_336),
    100: (27_571_336, 27_520_036),
    10: (27_478_996, 27_473_866),
}
SMALL = {"widths": (16, 24, 32, 40), "depths": (1, 2, 1, 1), "num_classes": 10}
IMAGE = TensorSpec("image", (1, 3, 64, 64), "image")


def small(seed=0, **options):
    return create_model("swiftformer_l3", image_size=64, seed=seed, **SMALL, **options)


def awake(**options):
    """A small model whose output depends on its input: BatchNorm has met some images."""
    model = randomize_(small(**options)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(pictures(8))
    return model.eval()


def pictures(batch, height=64, width=64):
    torch.manual_seed(0)
    coarse = F.interpolate(torch.randn(batch, 3, 3, 3), (height, width), mode="bilinear")
    return coarse * torch.arange(1, batch + 1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("classes", "params"), TABLE.items())
def test_parameters(classes, params):
    with torch.device("meta"):
        models = [
            create_model("swiftformer_l3", num_classes=classes, distillation=distillation)
            for distillation in (True, False)
        ]
    assert tuple(count_parameters(model) for model in models) == params


def test_macs_and_the_head_at_release():
    with torch.device("meta"):
        model = create_model("swiftformer_l3")
    assert count_parameters(model) == TABLE[1000][0]
    image = TensorSpec("image", (1, 3, 224, 224), "image")
    assert count_macs(model, [image]) / 1e9 == pytest.approx(4.008, rel=5e-4)


def test_how_it_starts():
    model = small()
    encoder = model.stages[0].blocks[-1]
    assert (encoder.local.scale == 1).all()
    assert torch.allclose(encoder.attention.scale, torch.tensor(1e-5))
    assert torch.allclose(encoder.mlp.scale, torch.tensor(1e-5))
    weights = model.stages[3].downsample[0].weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.head.linear.bias == 0).all()


@torch.no_grad()
def test_eval_is_independent_of_the_batch():
    model, x = awake(), pictures(4)
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-5, atol=1e-5)
    assert (model(x)[0] - model(x)[3]).abs().max() > 0.1


@torch.no_grad()
def test_images_need_not_be_square():
    model = create_model("swiftformer_l3", image_size=(64, 96), **SMALL)
    assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 10)


@pytest.mark.parametrize("options", [{}, {"mixer": "softmax", "heads": (2, 2, 2, 2)}])
def test_one_training_step_leaves_finite_gradients_everywhere(options):
    model = small(**options).train()
    loss = F.cross_entropy(model(pictures(4)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    torch.optim.AdamW(model.parameters()).step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.isfinite().all(), name


def test_the_capture_computes_the_same_at_any_batch():
    model = awake()
    program = capture(model, [IMAGE], dynamic_batch=True)
    x = pictures(3)
    torch.testing.assert_close(program(x)[0], model(x), rtol=0, atol=1e-5)


def test_another_block():
    model = create_model("swiftformer_l3+elementwise", image_size=64, **SMALL)
    assert model(pictures(2)).shape == (2, 10)
    with pytest.raises(ShapeError, match="must be square; got 16 x 24"):
        create_model("swiftformer_l3+elementwise", image_size=(64, 96), **SMALL)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 16}, ShapeError, "multiples of 32, got 16"),
        ({"image_size": (64, 100)}, ShapeError, "multiples of 32, got 100"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"depth": 3}, OptionError, "depth: expected an option of this model"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        create_model("swiftformer_l3", **options)


# --- released weights ---------------------------------------------------------------------------

NORM = ("weight", "bias", "running_mean", "running_var")


def released(layout, widths, depths, classes):
    """Names and shapes of a released state dict, written down from its structure."""
    names, timm = {}, layout == "timm"

    def layer(name, *shape):
        names[f"{name}.weight"] = shape
        names[f"{name}.bias"] = shape[:1]

    def norm(name, width):
        names.update({f"{name}.{p}": (width,) for p in NORM})
        names[f"{name}.num_batches_tracked"] = ()

    def scale(name, width):
        names[name + (".gamma" if timm else "")] = (width, 1, 1)

    def convolutions(name, width, hidden):
        layer(f"{name}.dwconv", width, 1, 3, 3)
        norm(f"{name}.norm", width)
        layer(f"{name}.pwconv1", hidden, width, 1, 1)
        layer(f"{name}.pwconv2", width, hidden, 1, 1)
        scale(f"{name}.layer_scale", width)

    def encoder(name, width):
        convolutions(f"{name}.local_representation", width, width)
        for part in ("to_query", "to_key", "proj" if timm else "Proj", "final"):
            layer(f"{name}.attn.{part}", width, width)
        names[f"{name}.attn.w_g"] = (width, 1)
        norm(f"{name}.linear.norm1", width)
        layer(f"{name}.linear.fc1", 4 * width, width, 1, 1)
        layer(f"{name}.linear.fc2", width, 4 * width, 1, 1)
        scale(f"{name}.layer_scale_1", width)
        scale(f"{name}.layer_scale_2", width)

    stem = "stem" if timm else "patch_embed"
    for i, (a, b) in enumerate([(3, widths[0] // 2), (widths[0] // 2, widths[0])]):
        layer(f"{stem}.{3 * i}", b, a, 3, 3)
        norm(f"{stem}.{3 * i + 1}", b)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            down = f"stages.{stage}.downsample" if timm else f"network.{2 * stage - 1}"
            layer(f"{down}.proj", width, widths[stage - 1], 3, 3)
            norm(f"{down}.norm", width)
        blocks = f"stages.{stage}.blocks" if timm else f"network.{2 * stage}"
        for j in range(depth - 1):
            convolutions(f"{blocks}.{j}", width, 4 * width)
        encoder(f"{blocks}.{depth - 1}", width)
    norm("norm", widths[-1])
    layer("head", classes, widths[-1])
    layer("head_dist" if timm else "dist_head", classes, widths[-1])
    return names


@pytest.mark.parametrize("layout", ["authors", "timm"])
def test_released_names_become_ours(layout):
    with torch.device("meta"):
        shapes = released(layout, (64, 128, 320, 512), (4, 4, 12, 6), 1000)
        state = {k: torch.empty(v) for k, v in shapes.items()}
        model = create_model("swiftformer_l3")
    mapped = {k: tuple(v.shape) for k, v in model.adapt_state(state).items()}
    assert mapped == {k: tuple(v.shape) for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("network.4.11.attn.Proj.weight", "stages.2.blocks.11.attention.inner.block.proj.weight"),
        ("stages.0.blocks.3.attn.final.bias", "stages.0.blocks.3.attention.inner.block.out.bias"),
        ("stages.0.blocks.3.attn.w_g", "stages.0.blocks.3.attention.inner.block.weight"),
        ("network.0.0.norm.bias", "stages.0.blocks.0.inner.0.1.bias"),
        (
            "stages.1.blocks.3.local_representation.norm.weight",
            "stages.1.blocks.3.local.inner.0.1.weight",
        ),
        (
            "stages.1.blocks.3.local_representation.pwconv2.weight",
            "stages.1.blocks.3.local.inner.3.weight",
        ),
        ("network.2.3.layer_scale_2", "stages.1.blocks.3.mlp.scale"),
        ("network.2.0.layer_scale", "stages.1.blocks.0.scale"),
        ("stages.1.blocks.3.linear.norm1.weight", "stages.1.blocks.3.mlp.inner.0.weight"),
        ("module.dist_head.weight", "head.distilled.weight"),
    ],
)
def test_where_a_released_tensor_goes(name, ours):
    assert list(map_keys({name: torch.zeros(1)})) == [ours]


def test_our_own_names_pass_unchanged():
    state = small().state_dict()
    assert list(map_keys(state)) == list(state)


@torch.no_grad()
def test_two_heads_become_one_that_computes_the_same():
    two, one = awake(), small(seed=1, distillation=False)
    load_weights(one, one.adapt_state(two.state_dict()))
    x = pictures(2)
    torch.testing.assert_close(one(x), two(x), rtol=1e-5, atol=1e-6)
    features = two.head.norm(two.stages(two.stem(x))).mean((2, 3))
    assert (two(x) - two.head.linear(features)).abs().max() > 1e-2
