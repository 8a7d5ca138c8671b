"""CvT-13 with softmax, SimA and others: the counts of SimA's Table 1, and its parts."""

import copy

import pytest
import torch
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention import softmax, xca  # noqa: F401
from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_model
from edgevit.zoo.models.cvt import CORES, ConvProjectionAttention, QuickGELU, map_keys
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.weights import load_weights

COUNTS = {"cvt_13": (19_997_480, 4.566), "cvt_13+sima": (19_997_480, 4.159)}
MIXERS = ["softmax", *CORES]


def image(size):
    return TensorSpec("image", (1, 3, size, size), "image")


def small(name="cvt_13", **options):
    settings = {"image_size": 32, "widths": (8, 12, 24), "depths": (1, 1, 2), "heads": (1, 3, 4)}
    return create_model(name, **(settings | {"num_classes": 5} | options))


@pytest.mark.parametrize(("name", "counts"), COUNTS.items())
def test_parameters_and_macs(name, counts):
    params, gmacs = counts
    with torch.device("meta"):
        model = create_model(name)
    assert count_parameters(model) == params
    assert count_macs(model, [image(224)]) / 1e9 == pytest.approx(gmacs, rel=5e-4)


def test_the_stages_are_at_a_quarter_an_eighth_and_a_sixteenth():
    model = small(image_size=(64, 96))
    assert [stage.grid for stage in model.stages] == [(16, 24), (8, 12), (4, 6)]
    assert [stage.cls_token is not None for stage in model.stages] == [False, False, True]
    assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 5)


def reference(block, x, mixer):
    """The attention written out: convolutions, class token past them, projections, core."""
    prefix, side = block.prefix_tokens, block.grid
    plane = x[:, prefix:].transpose(1, 2).reshape(len(x), -1, *side)
    parts = []
    for name, stride in (("q", 1), ("k", 2), ("v", 2)):
        conv, norm = getattr(block, f"conv_proj_{name}")
        assert conv.bias is None
        out = F.conv2d(plane, conv.weight, stride=stride, padding=1, groups=x.shape[-1])
        tokens = torch.cat([x[:, :prefix], norm(out).flatten(2).transpose(1, 2)], 1)
        parts.append(split_heads(getattr(block, f"proj_{name}")(tokens), block.heads))
    query, key, value = parts
    if mixer == "softmax":
        scores = query @ key.transpose(-2, -1) / x.shape[-1] ** 0.5
        out = scores.softmax(-1) @ value
    else:
        query, key = (F.normalize(part, p=1.0, dim=-2) for part in (query, key))
        out = query @ key.transpose(-2, -1) @ value
    return block.proj(merge_heads(out))


@pytest.mark.parametrize("mixer", ["softmax", "sima"])
@pytest.mark.parametrize("prefix", [0, 1])
def test_the_attention_is_its_formula(mixer, prefix):
    torch.manual_seed(0)
    block = ConvProjectionAttention(24, 3, (5, 4), prefix_tokens=prefix, mixer=mixer)
    block = randomize_(block).eval().double()
    x = torch.randn(2, prefix + 20, 24, dtype=torch.float64)
    torch.testing.assert_close(block(x), reference(block, x, mixer))


def test_the_activation_is_the_quick_gelu():
    model = small()
    assert type(model.stages[0].blocks[0].mlp.act) is QuickGELU
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_in_place_of_the_softmax_keeps_the_parameters(mixer):
    model = small(mixer=mixer)
    kinds = {type(block.attn) for stage in model.stages for block in stage.blocks}
    assert kinds == {ConvProjectionAttention}
    assert model.state_dict().keys() == small().state_dict().keys()


def test_another_block_replaces_the_whole_attention():
    model = small("cvt_13+xca")
    kinds = {type(block.attn).__name__ for stage in model.stages for block in stage.blocks}
    assert kinds == {"CrossCovarianceAttention"}
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("mixer", [*MIXERS, "xca"])
def test_eval_is_independent_of_the_batch(mixer):
    torch.manual_seed(0)
    model = randomize_(small(mixer=mixer))
    x = torch.randn(3, 3, 32, 32) * torch.tensor([0.1, 1, 10]).view(3, 1, 1, 1)
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-4, atol=1e-5)


def test_every_mixer_computes_something_else():
    torch.manual_seed(0)
    state = randomize_(small()).state_dict()
    x = torch.randn(1, 3, 32, 32)
    logits = []
    for mixer in MIXERS:
        model = small(mixer=mixer)
        model.load_state_dict(state)
        logits.append(model(x))
    for i, one in enumerate(logits):
        assert all((one - other).abs().max() > 1e-5 for other in logits[:i])


@pytest.mark.parametrize("mixer", ["sima", "efficient"])
def test_both_orders_of_the_product_give_the_same_logits(mixer):
    torch.manual_seed(0)
    models = [small(mixer=mixer, mixer_options={"order": order}) for order in ("nn", "dd")]
    models[1].load_state_dict(randomize_(models[0]).state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(models[0](x), models[1](x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cvt_13", "cvt_13+sima"])
def test_one_training_step_leaves_finite_gradients_everywhere(name):
    torch.manual_seed(0)
    model = small(name, image_size=64).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([0, 1])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["cvt_13", "cvt_13+sima"])
def test_the_capture_computes_the_same_at_any_batch(name):
    torch.manual_seed(0)
    model = randomize_(small(name))
    program = capture(model, [image(32)], dynamic_batch=True)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(program(x)[0], model(x), rtol=0, atol=1e-5)
    assert (model(x) - model(-x)).abs().max() > 1e-3


def test_it_builds_and_moves_without_memory():
    moved = copy.deepcopy(small()).to("meta")
    assert moved(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 5)


def test_released_names_load():
    model, other = (randomize_(small(), seed) for seed in (1, 2))
    state = {}
    for key, tensor in model.state_dict().items():
        name = key.replace("stages.", "stage", 1)
        for part in "qkv":
            name = name.replace(f"conv_proj_{part}.0.", f"conv_proj_{part}.conv.")
            name = name.replace(f"conv_proj_{part}.1.", f"conv_proj_{part}.bn.")
        state[name] = tensor
    assert "stage2.blocks.1.attn.conv_proj_k.bn.running_var" in state
    assert {"stage0.patch_embed.norm.weight", "stage2.cls_token", "head.bias"} <= state.keys()
    load_weights(other, other.adapt_state(state))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), other(x))
    assert map_keys(model.state_dict()).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 16, got 100"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"heads": (1, 5, 6)}, ShapeError, "5 heads do not divide a width of 192"),
        ({"mixer": "sima", "mixer_options": {"order": "n"}}, OptionError, "order: expected auto"),
        ({"mixer_options": {"rank": 3}}, OptionError, "mixer_options: expected order, got 'rank'"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model("cvt_13", **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for images of 32 x 32, got 64 x 64"):
        small()(torch.zeros(1, 3, 64, 64))
