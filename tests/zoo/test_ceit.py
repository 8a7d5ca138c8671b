"""CeiT and CeiT with less attention: counts, its three parts, released names, what is refused."""

import pytest
import torch
from less_kit import (
    batch_norm,
    check_batch_independence,
    check_capture,
    check_forward,
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
from edgevit.zoo.models import ceit
from edgevit.zoo.models.less_common import TransformedAttention
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info
from edgevit.zoo.weights import load_weights

COUNTS = {
    "ceit_tiny": (6_356_904, 1.395),
    "ceit_small": (24_204_840, 4.760),
    "ceit_tiny+la": (6_377_940, 1.539),
    "ceit_small+la": (22_896_468, 4.872),
}
SMALL = {"image_size": 32, "width": 24, "heads": 3, "depth": 3, "num_classes": 5}


def small(name="ceit_tiny", **options):
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
    assert gmacs == pytest.approx(expected[1], rel=5e-4)
    assert noted(name) == deviations(name)[-1:]


@pytest.mark.parametrize("name", ["ceit_tiny", "ceit_small"])
def test_the_published_parameters_are_met(name):
    assert round(counts(name)[0] / 1e6, 1) == model_info(name).published["params_m"]


def test_less_attention_is_in_the_later_half():
    with torch.device("meta"):
        model = create_model("ceit_small+la")
    less = [isinstance(block.attn, TransformedAttention) for block in model.blocks]
    assert less == [False] * 6 + [True] * 6


def conv_norm(w, name, x, **options):
    return batch_norm(w, f"{name}.1", F.conv2d(x, w[f"{name}.0.weight"], **options))


def leff(w, name, x, grid):
    """Locally enhanced feed-forward: 1x1, depthwise 3x3, 1x1; the class token passes."""
    image = x[:, 1:].transpose(1, 2).unflatten(2, grid)
    hidden = len(w[f"{name}.expand.0.bias"])
    for part, options in (("expand", {}), ("local", {"padding": 1, "groups": hidden})):
        image = conv_norm(w, f"{name}.{part}", image, bias=w[f"{name}.{part}.0.bias"], **options)
        image = F.gelu(image)
    image = conv_norm(w, f"{name}.reduce", image, bias=w[f"{name}.reduce.0.bias"])
    return torch.cat([x[:, :1], image.flatten(2).transpose(1, 2)], 1)


def last_of_lca(w, tokens, heads):
    """The whole block for all class tokens, as released, and then the last of them."""
    y = layer_norm(w, "lca.norm1", tokens)
    q, k, v = (heads_of(linear(w, f"lca.attn.{part}", y), heads) for part in "qkv")
    out = joined(F.scaled_dot_product_attention(q, k, v))
    tokens = tokens + linear(w, "lca.attn.proj", out)
    tokens = tokens + mlp(w, "lca.mlp", layer_norm(w, "lca.norm2", tokens))
    return tokens[:, -1]


def reference(model, x):
    """The forward pass from the weights alone; and the maps of the less-attention layers."""
    config, w = model.config, model.state_dict()
    x = F.max_pool2d(conv_norm(w, "stem", x, stride=2, padding=3), 3, 2, 1)
    x = F.conv2d(x, w["patch_embed.weight"], w["patch_embed.bias"], stride=4)
    grid = x.shape[-2:]
    x = torch.cat([w["cls_token"].repeat(len(x), 1, 1), x.flatten(2).transpose(1, 2)], 1)
    x, less, tokens, scores = x + w["pos_embed"], [], [], None
    for i in range(config.depth):
        b = f"blocks.{i}"
        y = layer_norm(w, f"{b}.norm1", x)
        if 0 < config.less_from <= i + 1:
            v = heads_of(linear(w, f"{b}.attn.v", y), config.heads)
            scores = transformed(w, f"{b}.attn", scores)
            less.append(scores)
        else:
            parts = linear(w, f"{b}.attn.qkv", y).chunk(3, -1)
            q, k, v = (heads_of(part, config.heads) for part in parts)
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        x = x + linear(w, f"{b}.attn.proj", joined(scores.softmax(-1) @ v))
        x = x + leff(w, f"{b}.mlp", layer_norm(w, f"{b}.norm2", x), grid)
        tokens.append(x[:, 0])
    last = last_of_lca(w, torch.stack(tokens, 1) + w["layer_pos_embed"], config.heads)
    return linear(w, "head", layer_norm(w, "norm", last)), less


@pytest.mark.parametrize("options", [{}, {"less_from": 2}, {"image_size": (32, 48)}])
def test_the_forward_pass_is_ceits(options):
    check_forward(small(**options), reference, 2 if "less_from" in options else 0)


@pytest.mark.parametrize("options", [{}, {"less_from": 2}])
def test_the_capture_computes_the_same_at_any_batch(options):
    check_capture(small(**options))


def test_eval_is_independent_of_the_batch():
    check_batch_independence(small())
    check_batch_independence(small(less_from=2, less_bias=True, less_projection=False))


def test_one_training_step_leaves_finite_gradients_everywhere():
    # The last layer's patch tokens go nowhere, so its feed-forward for them has no gradient.
    model = small(less_from=2)
    for part in model.blocks[-1].mlp.children():
        part.requires_grad_(False)
    model.train()
    logits, loss = model.forward_with_loss(torch.randn(2, 3, 32, 32))
    (F.cross_entropy(logits, torch.tensor([0, 1])) + loss).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert loss != 0


def released(model):
    """The state under the names of the released code."""
    renamed = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in (
            ("stem.0.", "i2t.backbone.conv."),
            ("stem.1.", "i2t.backbone.bn."),
            ("patch_embed.", "i2t.proj."),
            ("layer_pos_embed", "pos_layer_embed"),
            (".mlp.expand.0.", ".leff.conv1."),
            (".mlp.expand.1.", ".leff.bn1."),
            (".mlp.local.0.", ".leff.conv2."),
            (".mlp.local.1.", ".leff.bn2."),
            (".mlp.reduce.0.", ".leff.conv3."),
            (".mlp.reduce.1.", ".leff.bn3."),
            ("lca.mlp.", "lca.feedforward."),
        ):
            key = key.replace(ours, theirs)
        if not key.startswith(("lca.attn.k.", "lca.attn.v.")):
            renamed[key.replace("lca.attn.q.", "lca.attn.qkv.")] = tensor
    for leaf in ("weight", "bias"):
        parts = [model.state_dict()[f"lca.attn.{part}.{leaf}"] for part in "qkv"]
        renamed[f"lca.attn.qkv.{leaf}"] = torch.cat(parts)
    return renamed


def test_released_names_load():
    model, other = small(), small(seed=3)
    state = released(model)
    assert {"i2t.backbone.bn.running_mean", "blocks.2.leff.conv2.weight"} <= state.keys()
    assert {"lca.attn.qkv.bias", "pos_layer_embed", "blocks.0.leff.bn3.bias"} <= state.keys()
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(model(x), other(x))
    load_weights(other, other.adapt_state(state))
    assert torch.equal(model(x), other(x))
    assert ceit.map_keys(model.state_dict()).keys() == model.state_dict().keys()


def test_positions_follow_the_image_size():
    model, other = small(), small(image_size=(64, 48))
    load_weights(other, other.adapt_state(model.state_dict()))
    assert other.pos_embed.shape == (1, 1 + 4 * 3, 24)
    assert torch.equal(other.pos_embed[:, 0], model.pos_embed[:, 0])


def test_another_block_takes_the_place_of_the_attention():
    model = small("ceit_tiny+sima")
    assert {type(block.attn) for block in model.blocks} == {SimAAttention}
    check_batch_independence(model)
    assert small(mixer_options={"rope": True}).blocks[0].attn.rope is not None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 16, got 100"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"less_from": 13}, OptionError, "less_from: expected 0 .never. or .* 2 to 12"),
        ({"less_from": 7, "mixer": "sima"}, OptionError, "softmax, whose scores are kept"),
        ({"less_from": 7, "mixer_options": {"rope": True}}, OptionError, "nothing with softmax"),
        ({"heads": 5}, ShapeError, "5 heads do not divide a width of 192"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model("ceit_tiny", **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for images of 32 x 32, got 48 x 32"):
        small()(torch.zeros(1, 3, 48, 32))
