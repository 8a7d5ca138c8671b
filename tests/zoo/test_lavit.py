"""LaViT and its plug-in variants: counts in every reading, forward pass, loss, what is refused."""

import itertools

import pytest
import torch
from less_kit import (
    batch_norm,
    check_batch_independence,
    check_capture,
    check_training_step,
    counts,
    deviations,
    heads_of,
    image,
    joined,
    layer_norm,
    linear,
    mlp,
    noted,
    transformed,
)
from torch import nn
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError, WeightsError
from edgevit.zoo.attention.less_attention import diagonality_loss
from edgevit.zoo.factory import create_model
from edgevit.zoo.models import lavit, pvt  # noqa: F401
from edgevit.zoo.models.lavit import AttentionResidual, ReducedLessAttention
from edgevit.zoo.models.less_common import TransformedAttention
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info
from edgevit.zoo.weights import load_weights

NAMES = ("lavit_t", "lavit_s", "lavit_b")
#: By reading and output Linear: parameters and GMACs of the three models.
COUNTS = {
    (False, True): [(12_544_491, 1.892), (22_786_886, 3.700), (41_218_585, 6.388)],
    (False, False): [(12_179_115, 1.858), (21_850_694, 3.593), (39_415_129, 6.074)],
    (True, True): [(11_759_412, 1.988), (20_467_612, 4.028), (34_368_756, 7.490)],
    (True, False): [(11_394_036, 1.955), (19_531_420, 3.921), (32_565_300, 7.176)],
}
PLUGGED = ("vit_tiny", "vit_small", "deit_tiny", "deit_small", "pvt_tiny", "pvt_small")
SMALL = {"image_size": 64, "widths": (8, 16, 24, 32), "heads": (1, 2, 3, 4), "num_classes": 5}
SMALL |= {"expansions": (2, 2, 2, 2), "depths": (1, 2, 3, 3), "less_from": (0, 0, 2, 2)}
ISOTROPIC = {"image_size": 32, "width": 24, "heads": 3, "depth": 4, "num_classes": 5}
ISOTROPIC |= {"less_from": 3}


def scramble_(model):
    """Transforms far from the identity, so that their order and orientation are seen."""
    randomize_(model)
    for name, parameter in model.named_parameters():
        if ".transform." in name:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def small(name="lavit_s", **options):
    torch.manual_seed(0)
    return scramble_(create_model(name, **(SMALL | options)))


def small_vit(**options):
    torch.manual_seed(0)
    return scramble_(create_model("vit_tiny+la", **(ISOTROPIC | options)))


@pytest.mark.parametrize(("reading", "index"), list(itertools.product(COUNTS, range(3))))
def test_parameters_and_macs_in_all_readings(reading, index):
    defaults = {"square": False, "less_projection": True}
    options = dict(zip(defaults, reading, strict=True))
    params, gmacs = counts(NAMES[index], **(options if options != defaults else {}))
    assert params == COUNTS[reading][index][0]
    assert gmacs == pytest.approx(COUNTS[reading][index][1], rel=5e-4)


@pytest.mark.parametrize("name", [*NAMES, *(f"{n}+la" for n in PLUGGED)])
def test_the_note_says_how_far_off_the_published_figures_are(name):
    assert noted(name) == deviations(name)


def scalars(model, part):
    return sum(p.numel() for name, p in model.named_parameters() if part in name)


def test_what_the_transforms_and_the_residual_cost():
    with torch.device("meta"):
        models = [create_model(name) for name in NAMES]
        square = create_model("lavit_s", square=True)
        bare = create_model("lavit_s", residual=False)
    assert [scalars(model, ".transform.") for model in models] == [45_817, 173_268, 617_255]
    assert [scalars(model, ".residual.") for model in models] == [138, 138, 138]
    assert scalars(square, ".residual.") == 164
    assert scalars(bare, ".residual.") == 0


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("lavit_t", (0, 0, 2, 2)),
        ("lavit_s", (0, 0, 3, 2)),
        ("lavit_b", (0, 0, 4, 3)),
        ("pvt_tiny+la", (0, 0, 2, 2)),
        ("pvt_small+la", (0, 0, 3, 2)),
    ],
)
def test_where_less_attention_starts(name, starts):
    with torch.device("meta"):
        model = create_model(name)
    for stage, start in zip(model.stages, starts, strict=True):
        less = [isinstance(block.attn, ReducedLessAttention) for block in stage.blocks]
        assert less == [0 < start <= layer for layer in range(1, len(less) + 1)]
    assert all((stage.residual is None) == ("+la" in name) for stage in model.stages[1:])


#: GMACs of ViT with less attention in the last 6, 7, 8 and 9 layers, and without counting Θ and Ψ.
VIT = {
    "tiny": [(1.397, 1.122), (1.421, 1.100), (1.445, 1.078), (1.469, 1.056)],
    "small": [(4.711, 4.161), (4.730, 4.088), (4.749, 4.015), (4.768, 3.942)],
}
PER_LAYER = {"tiny": (5_717_416, 3_506, 3), "small": (22_050_664, -218_062, 6)}


@pytest.mark.parametrize(("size", "layers"), list(itertools.product(VIT, range(6, 10))))
def test_parameters_and_macs_of_vit(size, layers):
    base, change, heads = PER_LAYER[size]
    params, gmacs = counts(f"vit_{size}+la", less_from=13 - layers)
    assert params == base + layers * change
    counted, uncounted = VIT[size][layers - 6]
    assert gmacs == pytest.approx(counted, rel=5e-4)
    assert gmacs - layers * heads * 2 * 197**3 / 1e9 == pytest.approx(uncounted, rel=5e-4)


def test_pvt_with_less_attention_is_lavit_without_the_residual():
    for name, lavits in (("pvt_tiny+la", COUNTS[False, True][0]), ("pvt_small+la", (22_786_886,))):
        assert counts(name)[0] == lavits[0] - 138


def test_the_start_layers_of_vit_and_deit():
    with torch.device("meta"):
        models = [create_model(f"{name}+la") for name in PLUGGED[:4]]
    counted = [sum(isinstance(b.attn, TransformedAttention) for b in m.blocks) for m in models]
    assert counted == [8, 8, 6, 6]
    assert model_info("deit_small+la").published["top1"] == 80.4


def residual_of(w, name, scores, factors, prefix):
    """Equation 6, the depthwise convolution written as a sum over blocks of the map."""
    rows, columns = (n // f for n, f in zip(scores.shape[2:], factors, strict=True))
    blocks = scores.unflatten(3, (columns, factors[1])).unflatten(2, (rows, factors[0]))
    added = torch.einsum("bhripq,hiq->bhrp", blocks, w[f"{name}.depthwise.weight"][:, 0])
    added = batch_norm(w, f"{name}.norm", added + w[f"{name}.depthwise.bias"].view(-1, 1, 1))
    added = torch.einsum("bhnm,kh->bknm", added, w[f"{name}.pointwise.weight"][:, :, 0, 0])
    added = (added + w[f"{name}.pointwise.bias"].view(-1, 1, 1)) * w[f"{name}.gamma"].view(-1, 1, 1)
    padded = added.new_zeros(*added.shape[:2], rows + prefix, columns + prefix)
    padded[:, :, prefix:, prefix:] = added
    return padded


FACTORS = {False: (None, (4, 1), (4, 1), (4, 1)), True: (None, (4, 1), None, (4, 4))}


def reference(model, x):
    """The forward pass by torch's own functions, from the weights alone; and the maps by layer."""
    config, w = model.config, model.state_dict()
    scores, less = None, []
    for stage in range(4):
        s, heads = f"stages.{stage}", config.heads[stage]
        weight, bias = (w[f"{s}.patch_embed.proj.{part}"] for part in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride=4 if stage == 0 else 2)
        height, width = x.shape[-2:]
        x = layer_norm(w, f"{s}.patch_embed.norm", x.permute(0, 2, 3, 1).flatten(1, 2), 1e-5)
        if stage == 3:
            x = torch.cat([w[f"{s}.cls_token"].repeat(len(x), 1, 1), x], 1)
        x = x + w[f"{s}.pos_embed"]
        factors = FACTORS[config.square][stage] if config.residual else None
        added = 0
        if factors is not None:
            added = residual_of(w, f"{s}.residual", scores, factors, prefix=int(stage == 3))
        for i in range(config.depths[stage]):
            b = f"{s}.blocks.{i}"
            y = source = layer_norm(w, f"{b}.norm1", x)
            ratio = 1 if config.square and stage > 1 else config.reductions[stage]
            if ratio > 1:
                image = y.unflatten(1, (height, width)).permute(0, 3, 1, 2)
                kernel = w[f"{b}.attn.reduce.conv.weight"]
                image = F.conv2d(image, kernel, w[f"{b}.attn.reduce.conv.bias"], stride=ratio)
                source = image.flatten(2).transpose(1, 2)
                source = layer_norm(w, f"{b}.attn.reduce.norm", source, 1e-5)
            if 0 < config.less_from[stage] <= i + 1:
                v = heads_of(linear(w, f"{b}.attn.v", source), heads)
                scores = transformed(w, f"{b}.attn", scores)
                less.append(scores)
            else:
                q = heads_of(linear(w, f"{b}.attn.q", y), heads)
                k, v = (heads_of(t, heads) for t in linear(w, f"{b}.attn.kv", source).chunk(2, -1))
                scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
                scores = scores + added if i == 0 else scores
            out = joined(scores.softmax(-1) @ v)
            kept = f"{b}.attn.proj.weight" in w
            x = x + (linear(w, f"{b}.attn.proj", out) if kept else out)
            x = x + mlp(w, f"{b}.mlp", layer_norm(w, f"{b}.norm2", x))
        if stage < 3:
            x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return linear(w, "head", layer_norm(w, "norm", x)[:, 0]), less


READINGS = [
    {},
    {"square": True},
    {"less_projection": False},
    {"residual": False},
    {"image_size": (32, 64)},
]


@pytest.mark.parametrize("options", READINGS)
def test_the_forward_pass_is_the_papers(options):
    model = small(**options)
    x = torch.randn(2, 3, *model.config.image)
    logits, _ = reference(model, x)
    torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_the_residual_is_seen_in_the_logits():
    model = small()
    x = torch.randn(1, 3, 64, 64)
    for stage in (1, 2, 3):
        before = model(x)
        model.stages[stage].residual.gamma.data.mul_(2)
        assert (model(x) - before).abs().max() > 1e-4


def vit_reference(model, x):
    """The forward pass of a ViT with less attention; the maps by layer besides."""
    config, w = model.config, model.state_dict()
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    x = torch.cat([w["cls_token"].repeat(len(x), 1, 1), x.flatten(2).transpose(1, 2)], 1)
    x, less = x + w["pos_embed"], []
    for i in range(config.depth):
        b = f"blocks.{i}"
        y = layer_norm(w, f"{b}.norm1", x)
        if i + 1 >= config.less_from:
            v = heads_of(linear(w, f"{b}.attn.v", y), config.heads)
            scores = transformed(w, f"{b}.attn", scores)  # noqa: F821
            less.append(scores)
        else:
            parts = linear(w, f"{b}.attn.qkv", y).chunk(3, -1)
            q, k, v = (heads_of(part, config.heads) for part in parts)
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        x = x + linear(w, f"{b}.attn.proj", joined(scores.softmax(-1) @ v))
        x = x + mlp(w, f"{b}.mlp", layer_norm(w, f"{b}.norm2", x))
    return linear(w, "head", layer_norm(w, "norm", x)[:, 0]), less


def test_the_forward_pass_of_vit():
    model = small_vit()
    x = torch.randn(2, 3, 32, 32)
    logits, _ = vit_reference(model, x)
    torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize("sign", ["purpose", "printed"])
@pytest.mark.parametrize("after", ["scores", "weights"])
def test_the_loss_is_the_sum_over_the_less_attention_layers(sign, after):
    model = small_vit()
    x = torch.randn(2, 3, 32, 32)
    logits, maps = vit_reference(model, x)
    maps = [m.softmax(-1) if after == "weights" else m for m in maps]
    got, loss = model.forward_with_loss(x, loss_sign=sign, loss_map=after)
    assert len(maps) == 2
    torch.testing.assert_close(got, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, sum(diagonality_loss(m, sign) for m in maps))


def test_the_loss_of_a_reduced_map_averages_the_queries_of_each_cell():
    model = small(image_size=(64, 96))
    x = torch.randn(2, 3, 64, 96)
    _, maps = reference(model, x)
    expected = 0
    for scores in maps:
        squared = scores
        if scores.shape[-2] != scores.shape[-1]:  # stage 3: 4 x 6 queries, 2 x 3 keys
            assert scores.shape[-2:] == (24, 6)
            cells = [
                scores[:, :, [12 * r + 2 * c + at for at in (0, 1, 6, 7)]].mean(2)
                for r, c in itertools.product(range(2), range(3))
            ]
            squared = torch.stack(cells, 2)
        expected = expected + diagonality_loss(squared)
    assert len(maps) == 4
    torch.testing.assert_close(model.forward_with_loss(x)[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("square", [False, True])
def test_the_features_are_a_pyramid(square):
    model = small(features=True, square=square)
    x = torch.randn(2, 3, 64, 64)
    shapes = [tuple(m.shape[1:]) for m in model(x)]
    assert shapes == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]
    maps, loss = model.forward_with_loss(x)
    assert len(maps) == 4
    assert float(loss.detach()) != 0
    check_batch_independence(model)


@pytest.mark.parametrize("options", [{}, {"square": True, "features": True}])
def test_the_capture_computes_the_same_at_any_batch(options):
    check_capture(small(**options))


def test_the_capture_of_vit_computes_the_same_at_any_batch():
    check_capture(small_vit())


def test_the_loss_leaves_no_trace_in_the_captured_graph():

    program = capture(small_vit(), [image(32)])
    targets = {str(node.target) for node in program.exported.graph.nodes}
    assert not {t for t in targets if "diagonal" in t or "abs" in t or "avg_pool" in t}


@pytest.mark.parametrize("options", [{}, {"square": True}, {"less_bias": True}])
def test_eval_is_independent_of_the_batch(options):
    check_batch_independence(small(**options))
    check_batch_independence(small_vit(less_bias="less_bias" in options))


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({}, {}),
        ({"square": True}, {"loss_sign": "printed"}),
        ({"residual_norm": "group"}, {"loss_map": "weights"}),
        ({"residual_norm": "none", "less_bias": True}, {}),
        ({"less_from": (0, 0, 1, 1)}, {}),
    ],
)
def test_one_training_step_leaves_finite_gradients_everywhere(options, loss):
    model = small(**options)
    assert check_training_step(model, **loss) != 0
    assert check_training_step(small_vit(), **loss) != 0


def test_a_step_down_the_loss_of_its_purpose_raises_the_diagonal():
    model = small_vit()
    x = torch.randn(2, 3, 32, 32)

    def share():
        _, maps = vit_reference(model, x)
        return sum(float(m.diagonal(dim1=-2, dim2=-1).mean() - m.mean()) for m in maps)

    before = share()
    transforms = [p for name, p in model.named_parameters() if ".transform." in name]
    gradients = torch.autograd.grad(model.forward_with_loss(x)[1], transforms)
    for parameter, gradient in zip(transforms, gradients, strict=True):
        parameter.data.sub_(1e-3 * gradient)
    assert share() > before + 1e-3


def test_a_fresh_less_attention_layer_nearly_repeats_the_map_before():
    torch.manual_seed(0)
    model = create_model("vit_tiny+la", **ISOTROPIC)
    _, maps = vit_reference(model, torch.randn(1, 3, 32, 32))
    assert (maps[1] - maps[0]).abs().max() < 0.1 * maps[0].abs().max()
    for name, parameter in model.blocks[3].attn.named_parameters():
        if name.endswith("weight"):
            assert float(parameter.detach().std()) == pytest.approx(24**-0.5, rel=0.2)
        elif name.endswith("bias"):
            assert not parameter.any()


def test_the_residual_starts_small_and_adds_nothing_to_the_class_token():
    torch.manual_seed(0)
    residual = AttentionResidual(2, 3, (4, 1), prefix_tokens=1).eval()
    added = residual(torch.randn(2, 2, 16, 4))
    assert added.shape == (2, 3, 5, 5)
    assert added[:, :, 0].abs().max() == added[:, :, :, 0].abs().max() == 0
    assert 0 < added.abs().max() < 1e-4


def test_pvts_weights_do_not_pass_for_lavits():
    small_pvt = {key: value for key, value in SMALL.items() if key != "less_from"}
    state = create_model("pvt_tiny", **small_pvt).state_dict()
    model = small()
    with pytest.raises(WeightsError, match="missing"):
        load_weights(model, model.adapt_state(state))


def test_weights_survive_saving_and_a_classifiers_load_into_a_backbone():
    model, other, backbone = small(), small(seed=3), small(features=True)
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(model(x), other(x))
    load_weights(other, other.adapt_state(model.state_dict()))
    assert torch.equal(model(x), other(x))
    load_weights(backbone, backbone.adapt_state(model.state_dict()))
    last, own = model.stages[3].blocks[2].attn, backbone.stages[3].blocks[2].attn
    assert torch.equal(own.transform.theta, last.transform.theta[1:, 1:])
    assert torch.equal(own.transform.psi, last.transform.psi[1:, 1:])
    third = backbone.stages[2].blocks[2].attn.transform.psi
    assert torch.equal(third, model.stages[2].blocks[2].attn.transform.psi)
    load_weights(backbone, backbone.adapt_state(backbone.state_dict()))


def test_weights_of_another_image_size_are_refused():
    model = small(image_size=96)
    with pytest.raises(WeightsError, match=r"transform\.psi: "):
        load_weights(model, model.adapt_state(small().state_dict()))


def test_it_builds_without_memory():
    with torch.device("meta"):
        for name in ("lavit_t", "deit_tiny+la"):
            assert {p.device.type for p in create_model(name).parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("lavit_t", {"image_size": 100}, ShapeError, "multiples of 32, got 100"),
        ("lavit_t", {"less_from": (1, 0, 0, 0)}, OptionError, "each stage: 2 to 2, 1 to 2"),
        ("lavit_t", {"less_from": (0, 0, 3, 0)}, OptionError, "less_from: expected 0 .never. or"),
        ("lavit_t", {"less_from": (0, 0, 1, 0), "residual": False}, OptionError, "2 to 2, 2 to 2"),
        ("lavit_t", {"less_from": (0, 0, 1, 0), "square": True}, OptionError, "1 to 2, 2 to 2"),
        ("lavit_t", {"less_from": (2, 2)}, OptionError, "less_from"),
        ("lavit_t", {"residual_norm": "layer"}, OptionError, "batch or group or none, got 'layer'"),
        ("lavit_t", {"mixer": "sima"}, OptionError, "spatial_reduction, whose scores are kept"),
        ("vit_tiny+la", {"less_from": 13}, OptionError, "stage: 2 to 12, got .13,."),
        ("vit_tiny+la", {"less_from": 1}, OptionError, "stage: 2 to 12, got .1,."),
        ("vit_tiny+la", {"mixer": "sima"}, OptionError, "softmax, whose scores are kept"),
        ("vit_tiny+la", {"mixer_options": {"rope": True}}, OptionError, "nothing with softmax"),
        ("vit_tiny+la", {"heads": 5}, ShapeError, "5 heads do not divide a width of 192"),
    ],
)
def test_what_cannot_be_is_refused(name, options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model(name, **options)


def test_an_image_of_another_size_is_refused():
    for model in (small(), small_vit(image_size=64)):
        with pytest.raises(ShapeError, match="built for images of 64 x 64, got 96 x 64"):
            model(torch.zeros(1, 3, 96, 64))


def test_the_loss_refuses_other_signs_and_maps():
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(OptionError, match="loss_map: expected scores or weights, got 'logits'"):
        small_vit().forward_with_loss(x, loss_map="logits")
    with pytest.raises(OptionError, match="loss_sign: expected printed or purpose, got 'plus'"):
        small_vit().forward_with_loss(x, loss_sign="plus")
