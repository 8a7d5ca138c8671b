"""Swin, also with less attention: counts, windows cell by cell, released names, what is refused."""

import itertools

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
from edgevit.zoo.factory import create_model
from edgevit.zoo.models import swin
from edgevit.zoo.models.swin import LessWindowAttention, Windows
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info
from edgevit.zoo.weights import load_weights

COUNTS = {
    "swin_tiny": (28_288_354, 4.491),
    "swin_small": (49_606_258, 8.741),
    "swin_tiny+la": (25_936_292, 4.236),
    "swin_small+la": (44_032_230, 7.934),
}
SMALL = {"image_size": 64, "width": 12, "heads": (1, 2, 3, 4), "window": 4, "num_classes": 5}
SMALL |= {"depths": (2, 2, 2, 1)}
#: Maps of 16 and 8 with shifted windows of 4, of 4 and 2 with one window.
LESS = {"depths": (4, 3, 3, 2), "less_from": (3, 3, 2, 2)}


def small(name="swin_tiny", **options):
    torch.manual_seed(0)
    model = randomize_(create_model(name, **(SMALL | options)))
    for key, parameter in model.named_parameters():
        if ".transform." in key or key.endswith(".bias.table"):
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(("name", "expected"), COUNTS.items())
def test_parameters_and_macs(name, expected):
    params, gmacs = counts(name)
    assert params == expected[0]
    assert gmacs == pytest.approx(expected[1], rel=5e-4)


@pytest.mark.parametrize("name", ["swin_tiny", "swin_small"])
def test_the_published_figures_are_met(name):
    params, gmacs = counts(name)
    assert round(params / 1e6, 1) == model_info(name).published["params_m"]
    assert round(gmacs, 1) == model_info(name).published["flops_g"]


@pytest.mark.parametrize("name", ["swin_tiny+la", "swin_small+la"])
def test_the_note_says_how_far_off_the_published_flops_are(name):
    assert noted(name) == deviations(name)


@pytest.mark.parametrize(
    ("name", "starts"), [("swin_tiny+la", (0, 0, 3, 2)), ("swin_small+la", (0, 0, 4, 2))]
)
def test_where_less_attention_starts(name, starts):
    with torch.device("meta"):
        model = create_model(name)
    for stage, start in zip(model.stages, starts, strict=True):
        less = [isinstance(block.attn, LessWindowAttention) for block in stage.blocks]
        assert less == [0 < start <= layer for layer in range(1, len(less) + 1)]


def windows_of(grid, window, shift):
    """By window the cells in it, each with the part of the map that it may see, row by row."""

    def part(at, side, size, move):
        return (at >= side - size) + (at >= side - move) if move else 0

    height, width = grid
    for top, left in itertools.product(range(0, height, window[0]), range(0, width, window[1])):
        cells, parts = [], []
        for y, x in itertools.product(range(window[0]), range(window[1])):
            down, across = top + y, left + x
            cells.append((down + shift[0]) % height * width + (across + shift[1]) % width)
            parts.append(
                (part(down, height, window[0], shift[0]), part(across, width, window[1], shift[1]))
            )
        yield cells, parts


def bias_of(table, window):
    """(heads, cells, cells), entry by entry."""
    cells = list(itertools.product(range(window[0]), range(window[1])))
    width = 2 * window[1] - 1
    rows = [
        [(a - c + window[0] - 1) * width + b - d + window[1] - 1 for c, d in cells]
        for a, b in cells
    ]
    return table[torch.tensor(rows)].permute(2, 0, 1)


def attention(w, name, y, heads, grid, window, shift, before):
    """Attention of tokens (B, H W, C), one window after the other; and its scores by window."""
    whole = tuple(-(-side // size) * size for side, size in zip(grid, window, strict=True))
    image = y.new_zeros(len(y), *whole, y.shape[2])
    image[:, : grid[0], : grid[1]] = y.unflatten(1, grid)
    y = image.flatten(1, 2)
    out, after = torch.zeros_like(y), []
    for number, (cells, parts) in enumerate(windows_of(whole, window, shift)):
        apart = torch.tensor([[-100.0 * (a != b) for b in parts] for a in parts])
        inside = y[:, cells]
        if f"{name}.qkv.weight" in w:
            q, k, v = (heads_of(p, heads) for p in linear(w, f"{name}.qkv", inside).chunk(3, -1))
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            scores = scores + bias_of(w[f"{name}.bias.table"], window)
        else:
            v = heads_of(linear(w, f"{name}.v", inside), heads)
            scores = transformed(w, name, before[number])
        after.append(scores)
        out[:, cells] = linear(w, f"{name}.proj", joined((scores + apart).softmax(-1) @ v))
    return out.unflatten(1, whole)[:, : grid[0], : grid[1]].flatten(1, 2), after


def reference(model, x):
    """The forward pass from the weights alone; and the maps of the less-attention layers."""
    config, w = model.config, model.state_dict()
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=4)
    grid = x.shape[-2:]
    x = layer_norm(w, "patch_embed.norm", x.flatten(2).transpose(1, 2), 1e-5)
    less, planes = [], []
    for stage in range(4):
        s = f"stages.{stage}"
        if stage:
            image = x.unflatten(1, grid)
            corners = [image[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
            x = layer_norm(w, f"{s}.downsample.norm", torch.cat(corners, -1).flatten(1, 2), 1e-5)
            x = linear(w, f"{s}.downsample.reduction", x)
            grid = tuple(side // 2 for side in grid)
        window = tuple(min(config.window, side) for side in grid)
        last = {}
        for i in range(config.depths[stage]):
            b, heads = f"{s}.blocks.{i}", config.heads[stage]
            shift = tuple(config.window // 2 * (i % 2) * (g > config.window) for g in grid)
            y = layer_norm(w, f"{b}.norm1", x, 1e-5)
            mixed, last[shift] = attention(
                w, f"{b}.attn", y, heads, grid, window, shift, last.get(shift)
            )
            if f"{b}.attn.v.weight" in w:
                less.append(torch.stack(last[shift], 1).flatten(0, 1))
            x = x + mixed
            x = x + mlp(w, f"{b}.mlp", layer_norm(w, f"{b}.norm2", x, 1e-5))
        planes.append(x.mT.unflatten(2, grid))
    if config.features:
        return planes, less
    return linear(w, "head", layer_norm(w, "norm", x, 1e-5).mean(1)), less


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": (32, 64)},
        {"image_size": (96, 160)},  # whose maps of 6 x 10 windows of 4 do not divide
        LESS,
        LESS | {"image_size": (64, 32)},
        LESS | {"image_size": (96, 64), "depths": (4, 3, 4, 2), "less_from": (3, 3, 3, 2)},
    ],
)
def test_the_forward_pass_is_swins_window_by_window(options):
    check_forward(small(**options), reference, 6 if "depths" in options else 0)


@pytest.mark.parametrize("options", [{}, {"image_size": (96, 160)}, LESS])
def test_the_features_are_the_maps_that_leave_the_stages(options):
    model = small(features=True, **options)
    x = torch.randn(2, 3, *model.config.image)
    maps, expected = model(x), reference(model, x)[0]
    assert len(maps) == 4
    for got, want in zip(maps, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert (want[0] - want[1]).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(512, 512), (800, 1280)])
def test_the_features_have_the_sizes_that_detection_wants(size):
    with torch.device("meta"):
        model = create_model("swin_tiny", image_size=size, features=True)
        maps = model(torch.empty(1, 3, *size))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (96 << i, size[0] // (4 << i), size[1] // (4 << i)) for i in range(4)
    ]


def test_a_backbone_takes_the_weights_of_a_classifier():
    model, backbone = small(), small(features=True, seed=3)
    load_weights(backbone, backbone.adapt_state(model.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    last = backbone(x)[-1]
    pooled = model.norm(last.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(model.head(pooled), model(x))


@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (2, 0), (0, 1)])
def test_windows_cut_and_join_a_rolled_map(shift):
    torch.manual_seed(0)
    windows = Windows((8, 12), (4, 4), shift)
    x = torch.randn(2, 8, 12, 3)
    rolled = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    cut = windows.split(x)
    assert cut.shape == (2 * 6, 16, 3)
    expected = rolled[:, 4:8, 8:12].reshape(2, 16, 3)
    assert torch.equal(cut.reshape(2, 6, 16, 3)[:, 5], expected)
    assert torch.equal(windows.join(cut), x)


def test_what_a_shift_brings_together_stays_apart():
    """No cell of the first row has a say in the last one, though they share windows."""
    torch.manual_seed(0)
    block = small().stages[0].blocks[1]
    assert block.attn.windows.shift == (2, 2)
    x = torch.randn(1, 16, 16, 12)
    changed = x.clone()
    changed[:, :2] += 1
    difference = (block(changed, None)[0] - block(x, None)[0]).abs().amax((0, 2, 3))
    assert difference[:2].min() > 1e-3
    assert difference[2:].max() < 1e-5


@pytest.mark.parametrize("options", [{}, LESS, {"features": True, "image_size": (96, 160)}])
def test_the_capture_computes_the_same_at_any_batch(options):
    check_capture(small(**options))


@pytest.mark.parametrize("options", [{}, LESS, LESS | {"less_bias": True}])
def test_eval_is_independent_of_the_batch(options):
    check_batch_independence(small(**options))


def test_one_training_step_leaves_finite_gradients_everywhere():
    assert check_training_step(small()) == 0
    assert check_training_step(small(**LESS, less_projection=False)) != 0


def released(model, *, downsample):
    """The state under timm's names, or Microsoft's, whose stages end with the patch merging."""
    renamed = {}
    for key, tensor in model.state_dict().items():
        name = key.replace("stages.", "layers.").replace(
            ".bias.table", ".relative_position_bias_table"
        )
        if downsample == "last" and ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        elif downsample == "first" and name.startswith("head."):
            name = name.replace("head.", "head.fc.")
        renamed[name] = tensor
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    return renamed


@pytest.mark.parametrize("downsample", ["first", "last"])
def test_released_names_load(downsample):
    model, other = small(), small(seed=3)
    state = released(model, downsample=downsample)
    layer = {"first": 3, "last": 2}[downsample]
    assert f"layers.{layer}.downsample.reduction.weight" in state
    assert "layers.0.blocks.1.attn.relative_position_bias_table" in state
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(model(x), other(x))
    load_weights(other, other.adapt_state(state))
    assert torch.equal(model(x), other(x))
    assert swin.map_keys(model.state_dict()).keys() == model.state_dict().keys()


def test_bias_tables_follow_the_window():
    model, other = small(), small(image_size=192, window=6)
    load_weights(other, other.adapt_state(model.state_dict()))
    ours, theirs = (m.stages[0].blocks[0].attn.bias.table for m in (other, model))
    assert (ours.shape, theirs.shape) == ((121, 1), (49, 1))
    image = theirs.detach().T.reshape(1, 1, 7, 7)
    resized = F.interpolate(image, (11, 11), mode="bicubic", align_corners=False)
    torch.testing.assert_close(ours.detach()[:, 0], resized.flatten())


def test_it_builds_without_memory():
    with torch.device("meta"):
        model = create_model("swin_tiny+la")
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 32, got 100"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"window": 1}, OptionError, "window: expected a whole number of at least 2"),
        ({"mixer": "sima"}, OptionError, "mixer: expected window, as other blocks cannot"),
        ({"heads": (3, 6, 12, 25)}, ShapeError, "25 heads do not divide a width of 768"),
        ({"less_from": (0, 0, 2, 2)}, OptionError, "0, 0, 3 to 6, 2 to 2, got .0, 0, 2, 2."),
        ({"less_from": (0, 0, 7, 2)}, OptionError, "less_from"),
        ({"feature": True}, OptionError, "feature: expected an option of this model"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model("swin_tiny", **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for images of 64 x 64, got 96 x 64"):
        small()(torch.zeros(1, 3, 96, 64))
