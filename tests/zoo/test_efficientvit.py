"""EfficientViT: the paper's counts, windows, dense features and released weights."""

import pytest
import torch
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_model
from edgevit.zoo.layers import as_pair
from edgevit.zoo.models.efficientvit import Windowed, map_keys
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.weights import load_weights

# Parameters with 1000, 10 and 100 classes, and MACs in millions, at 224 px.
TABLE = {
    "efficientvit_m0": (2_349_436, 2_158_366, 2_175_736, 79.19),
    "efficientvit_m1": (2_980_560, 2_789_490, 2_806_860, 167.05),
    "efficientvit_m2": (4_187_554, 3_964_804, 3_985_054, 201.04),
    "efficientvit_m3": (6_900_722, 6_582_932, 6_611_822, 262.66),
    "efficientvit_m4": (8_804_228, 8_423_078, 8_457_728, 299.31),
    "efficientvit_m5": (12_473_772, 12_092_622, 12_127_272, 521.58),
}
SLOW = pytest.mark.slow
PUBLISHED_MACS = {0: 79, 1: 167, 2: 201, 3: 263, 4: 299, 5: 522}
SMALL = {"widths": (32, 48, 64), "depths": (1, 1, 1), "heads": (2, 3, 4), "num_classes": 10}


def small(name="efficientvit_m0", image_size=64, **options):
    """A small model whose output depends on its input: BatchNorm has met some images."""
    model = randomize_(create_model(name, image_size=image_size, **SMALL, **options)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model(pictures(8, *as_pair(image_size)))
    return model.eval()


def image(height, width=None, batch=1):
    return TensorSpec("image", (batch, 3, height, width or height), "image")


def pictures(batch, height, width=None):
    """Images that differ coarsely and in contrast, so that their logits differ too."""
    torch.manual_seed(0)
    coarse = F.interpolate(torch.randn(batch, 3, 3, 3), (height, width or height), mode="bilinear")
    return coarse * torch.arange(1, batch + 1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("name", "counts"), TABLE.items())
def test_parameters_and_macs(name, counts):
    params, _, _, macs = counts
    with torch.device("meta"):
        model = create_model(name)
    assert count_parameters(model) == params
    counted = count_macs(model, [image(224)]) / 1e6
    assert counted == pytest.approx(macs, rel=5e-5)
    assert round(counted) == PUBLISHED_MACS[int(name[-1])]


@pytest.mark.parametrize("name", TABLE)
def test_parameters_with_other_heads(name):
    with torch.device("meta"):
        counted = [count_parameters(create_model(name, num_classes=n)) for n in (10, 100)]
    assert counted == list(TABLE[name][1:3])


@pytest.mark.parametrize(
    ("name", "windows", "params", "macs"),
    [
        ("efficientvit_m5_384", None, 12_475_232, 1485.5),
        ("efficientvit_m5_512", None, 12_477_024, 2699.6),
        pytest.param("efficientvit_m5_384", (7, 7, 7), 12_474_092, 1494.3, marks=SLOW),
        pytest.param("efficientvit_m5_512", (8, 8, 8), 12_474_720, 2602.8, marks=SLOW),
        pytest.param("efficientvit_m5_512", (7, 7, 7), 12_474_300, 2799.8, marks=SLOW),
    ],
)
def test_high_resolution_rows(name, windows, params, macs):
    options = {} if windows is None else {"windows": windows}
    with torch.device("meta"):
        model = create_model(name, **options)
    assert count_parameters(model) == params
    size = model.config.image_size
    assert count_macs(model, [image(size)]) / 1e6 == pytest.approx(macs, rel=5e-5)


def test_the_second_head_costs_what_a_head_costs():
    with torch.device("meta"):
        one, two = (create_model("efficientvit_m4", distillation=d) for d in (False, True))
    assert count_parameters(two) - count_parameters(one) == 2 * 384 + 384 * 1000 + 1000


@torch.no_grad()
def test_two_heads_are_averaged():
    model = small(distillation=True)
    pooled = model.forward_features(pictures(2, 64))[-1].mean((2, 3))
    both = (model.head(pooled) + model.head_dist(pooled)) / 2
    torch.testing.assert_close(model(pictures(2, 64)), both)
    assert (model.head(pooled) - model.head_dist(pooled)).abs().max() > 1e-2


def test_fresh_branches_are_silent():
    model = create_model("efficientvit_m0", image_size=64, **SMALL)
    x = torch.randn(1, 32, 4, 4)
    assert torch.equal(model.stages[0].blocks(x), x)
    assert not torch.equal(model.stages[1].downsample[0](x), x)


class Marked(torch.nn.Module):
    """A block that shows its windows: every cell becomes the mean of its window."""

    def forward(self, x):
        self.seen = x
        return x.mean((2, 3), keepdim=True).expand_as(x) + x


@pytest.mark.parametrize(
    ("grid", "window"), [((14, 14), (7, 7)), ((10, 9), (7, 7)), ((4, 15), (7, 7)), ((5, 6), (5, 6))]
)
def test_windows_are_cut_out_padded_and_put_back(grid, window):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *grid)
    block = Marked()
    out = Windowed(block, grid, window)(x)
    expected = torch.empty_like(x)
    seen = []
    for image_ in range(2):
        for top in range(0, grid[0], window[0]):
            for left in range(0, grid[1], window[1]):
                cell = x[image_, :, top : top + window[0], left : left + window[1]]
                padded = torch.zeros(3, *window)
                padded[:, : cell.shape[1], : cell.shape[2]] = cell
                seen.append(padded)
                mean = padded.mean((1, 2), keepdim=True)
                expected[image_, :, top : top + window[0], left : left + window[1]] = cell + mean
    torch.testing.assert_close(block.seen, torch.stack(seen))
    torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_eval_is_independent_of_the_batch():
    model, x = small(), pictures(4, 64)
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-5, atol=1e-5)
    assert (model(x)[0] - model(x)[3]).abs().max() > 0.1


@pytest.mark.parametrize("options", [{}, {"distillation": True}, {"mixer": "elementwise"}])
def test_one_training_step_leaves_finite_gradients_everywhere(options):
    model = create_model("efficientvit_m0", image_size=128, **SMALL, **options).train()
    loss = F.cross_entropy(model(pictures(4, 128)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    torch.optim.AdamW(model.parameters()).step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.isfinite().all(), name


@pytest.mark.parametrize(
    ("image_size", "first"), [(512, (32, 32)), ((800, 1280), (50, 80)), ((64, 416), (4, 26))]
)
def test_the_feature_pyramid(image_size, first):
    with torch.device("meta"):
        model = create_model("efficientvit_m0", image_size=image_size, features=True)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        maps = model(torch.empty(2, 3, height, width))
    assert not any(name.startswith("head") for name in model.state_dict())
    sizes = [first]
    for _ in range(2):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, *size) for c, size in zip((64, 128, 192), sizes, strict=True)
    ]


def test_the_capture_computes_the_same_at_any_batch():
    model = small(image_size=(160, 240), features=True)
    program = capture(model, [image(160, 240)], dynamic_batch=True)
    x = pictures(3, 160, 240)
    for captured, eager in zip(program(x), model(x), strict=True):
        torch.testing.assert_close(captured, eager, rtol=0, atol=1e-5)
    shapes = [output.shape[1:] for output in program.outputs]
    assert shapes == [(32, 10, 15), (48, 5, 8), (64, 3, 4)]
    # Core ML takes no tensor of more than five axes, and some delegates none of more than four.
    values = [node.meta.get("val") for node in program.exported.graph.nodes]
    assert max(v.dim() for v in values if isinstance(v, torch.Tensor)) == 4


def test_the_captured_logits_are_the_same():
    model = small(image_size=(128, 64))
    program = capture(model, [image(128, 64)])
    x = pictures(2, 128, 64)
    torch.testing.assert_close(program(x[1:])[0], model(x)[1:], rtol=0, atol=1e-5)
    assert (model(x)[0] - model(x)[1]).abs().max() > 0.1
    assert program.outputs[0].name == "logits"


def test_another_block_goes_into_the_windows():
    model = create_model("efficientvit_m0+elementwise", image_size=128, **SMALL)
    x = pictures(2, 128)
    assert model(x).shape == (2, 10)
    assert count_parameters(model) < count_parameters(small(image_size=128))
    softmax = create_model("efficientvit_m0+softmax", image_size=128, **SMALL)
    assert softmax(x).shape == (2, 10)


def test_a_block_for_square_maps_is_refused_where_a_map_is_not():
    with pytest.raises(ShapeError, match="square; got 4 x 6"):
        create_model("efficientvit_m0+elementwise", image_size=(64, 96))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 16, got 100"),
        ({"image_size": 8}, ShapeError, "multiples of 16, got 8"),
        ({"image_size": 0}, ShapeError, "positive"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"windows": (7, 7)}, OptionError, "windows: expected three positive"),
        ({"windows": (7, 0, 7)}, OptionError, "windows"),
        ({"kernels": (5, 4)}, OptionError, "kernels: expected odd"),
        ({"heads": (4, 4, 5)}, ShapeError, "5 heads do not divide a width of 192"),
        ({"window": 7}, OptionError, "window: expected an option of this model"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        create_model("efficientvit_m0", **options)


def test_images_of_another_size_are_refused():
    with pytest.raises(ShapeError, match="built for images of 64 x 64, got 64 x 96") as caught:
        small()(torch.zeros(1, 3, 64, 96))
    assert "image_size" in caught.value.hint


# --- released weights ---------------------------------------------------------------------------

LAYOUTS = {
    "microsoft": {
        "conv": "c",
        "linear": "l",
        "stem": "patch_embed.{double}".format,
        "block": lambda stage, j: f"blocks{stage + 1}.{j + (3 if stage else 0)}",
        "part": lambda stage, j: f"blocks{stage + 1}.{j}",
    },
    "timm": {
        "conv": "conv",
        "linear": "linear",
        "stem": "patch_embed.conv{number}".format,
        "block": "stages.{}.blocks.{}".format,
        "part": lambda stage, j: f"stages.{stage}.downsample.{('res1', 'patchmerge', 'res2')[j]}",
    },
}


def released(layout, widths, depths, heads, kernels, grids, classes):
    """Names and shapes of a released state dict, written down from its structure."""
    names, n = {}, LAYOUTS[layout]

    def norm(name, width):
        names.update({f"{name}.{p}": (width,) for p in NORM})
        names[f"{name}.num_batches_tracked"] = ()

    def conv(name, out, inside, k):
        names[f"{name}.{n['conv']}.weight"] = (out, inside, k, k)
        norm(f"{name}.bn", out)

    def ffn(name, width):
        conv(f"{name}.m.pw1", 2 * width, width, 1)
        conv(f"{name}.m.pw2", width, 2 * width, 1)

    channels = (3, widths[0] // 8, widths[0] // 4, widths[0] // 2, widths[0])
    for i in range(4):
        stem = n["stem"](double=2 * i, number=i + 1)
        conv(stem, channels[i + 1], channels[i], 3)
    for stage, (width, depth, h) in enumerate(zip(widths, depths, heads, strict=True)):
        if stage:
            before, hidden = widths[stage - 1], 4 * widths[stage - 1]
            for j, w in ((0, before), (2, width)):
                conv(f"{n['part'](stage, j)}.0.m", w, 1, 3)
                ffn(f"{n['part'](stage, j)}.1", w)
            merge = n["part"](stage, 1)
            conv(f"{merge}.conv1", hidden, before, 1)
            conv(f"{merge}.conv2", hidden, 1, 3)
            conv(f"{merge}.conv3", width, hidden, 1)
            for k, (a, b) in enumerate([(before, hidden), (hidden, before)], 1):
                names[f"{merge}.se.fc{k}.weight"] = (a, b, 1, 1)
                names[f"{merge}.se.fc{k}.bias"] = (a,)
        for j in range(depth):
            block = n["block"](stage, j)
            for k in (0, 1):
                conv(f"{block}.dw{k}.m", width, 1, 3)
                ffn(f"{block}.ffn{k}", width)
            attention = f"{block}.mixer.m.attn"
            cells = min(7, grids[stage]) ** 2
            names[f"{attention}.attention_biases"] = (h, cells)
            if layout == "microsoft":
                names[f"{attention}.attention_bias_idxs"] = (cells, cells)
            for head in range(h):
                conv(f"{attention}.qkvs.{head}", 32 + width // h, width // h, 1)
                conv(f"{attention}.dws.{head}", 16, 1, kernels[head])
            conv(f"{attention}.proj.1", width, width, 1)
    norm("head.bn", widths[-1])
    names[f"head.{n['linear']}.weight"] = (classes, widths[-1])
    names[f"head.{n['linear']}.bias"] = (classes,)
    return names


NORM = ("weight", "bias", "running_mean", "running_var")
M0 = ((64, 128, 192), (1, 2, 3), (4, 4, 4), (5, 5, 5, 5), (14, 7, 4), 1000)
M5 = ((192, 288, 384), (1, 3, 4), (3, 3, 4), (7, 5, 3, 3), (14, 7, 4), 1000)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "table"), [("efficientvit_m0", M0), ("efficientvit_m5", M5)])
def test_released_names_become_ours(layout, name, table):
    with torch.device("meta"):
        state = {k: torch.empty(v) for k, v in released(layout, *table).items()}
        model = create_model(name)
    mapped = {k: tuple(v.shape) for k, v in map_keys(state).items()}
    assert mapped == {k: tuple(v.shape) for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("patch_embed.4.c.weight", "stem.2.0.weight"),
        ("patch_embed.conv4.bn.bias", "stem.3.1.bias"),
        ("blocks1.0.dw1.m.c.weight", "stages.0.blocks.0.dw1.inner.0.weight"),
        ("blocks3.5.ffn0.m.pw2.bn.bias", "stages.2.blocks.2.ffn0.inner.1.1.bias"),
        ("blocks2.2.0.m.c.weight", "stages.1.downsample.2.0.inner.0.weight"),
        (
            "stages.1.downsample.res1.1.m.pw1.conv.weight",
            "stages.1.downsample.0.1.inner.0.0.weight",
        ),
        ("stages.2.downsample.patchmerge.se.fc2.bias", "stages.2.downsample.1.2.expand.bias"),
        ("blocks2.1.conv3.c.weight", "stages.1.downsample.1.3.0.weight"),
        (
            "blocks2.3.mixer.m.attn.dws.1.bn.weight",
            "stages.1.blocks.0.mixer.inner.block.local.1.1.weight",
        ),
        (
            "stages.0.blocks.0.mixer.m.attn.proj.1.conv.weight",
            "stages.0.blocks.0.mixer.inner.block.proj.0.weight",
        ),
        (
            "blocks1.0.mixer.m.attn.attention_biases",
            "stages.0.blocks.0.mixer.inner.block.relative_bias.table",
        ),
        ("head.bn.weight", "head.0.weight"),
        ("head_dist.l.bias", "head_dist.1.bias"),
        ("head.linear.weight", "head.1.weight"),
        ("module.blocks1.0.dw0.m.bn.bias", "stages.0.blocks.0.dw0.inner.1.bias"),
    ],
)
def test_where_a_released_tensor_goes(name, ours):
    assert list(map_keys({name: torch.zeros(1)})) == [ours]


def test_our_own_names_pass_unchanged():
    state = small(distillation=True).state_dict()
    assert list(map_keys(state)) == list(state)


@torch.no_grad()
def test_weights_of_another_size_load():
    source = small(image_size=224)
    target = small(image_size=192, features=True)
    load_weights(target, target.adapt_state(source.state_dict()))
    tables = [k for k in target.state_dict() if k.endswith("table")]
    assert [target.state_dict()[k].shape[1] for k in tables] == [49, 36, 9]
    assert [source.state_dict()[k].shape[1] for k in tables] == [49, 49, 16]
    for name, tensor in target.state_dict().items():
        if name not in tables:
            assert torch.equal(tensor, source.state_dict()[name]), name
