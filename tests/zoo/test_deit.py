"""DeiT and ViT, with softmax and SimA: the counts of SimA's Table 1, released names, positions."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError, UnknownNameError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention import elementwise, elu, soft, softmax, xca  # noqa: F401
from edgevit.zoo.attention.sima import SimAAttention
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_model
from edgevit.zoo.models import deit
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info
from edgevit.zoo.weights import load_weights

COUNTS = {
    "deit_tiny": (5_717_416, 1.254),
    "vit_tiny": (5_717_416, 1.254),
    "deit_small": (22_050_664, 4.599),
    "vit_small": (22_050_664, 4.599),
    "deit_small_1head": (22_050_664, 4.599),
    "deit_small+sima": (22_050_664, 4.357),
    "deit_small+sima_1head": (22_050_664, 4.599),
    "deit_small+sima_relu": (22_050_664, 4.357),
}


def image(size, batch=1):
    return TensorSpec("image", (batch, 3, size, size), "image")


def small(name="deit_tiny+sima", **options):
    settings = {"image_size": 32, "width": 24, "heads": 3, "depth": 2, "num_classes": 5}
    return create_model(name, **(settings | options))


@pytest.mark.parametrize(("name", "counts"), COUNTS.items())
def test_parameters_and_macs(name, counts):
    params, gmacs = counts
    with torch.device("meta"):
        model = create_model(name)
    assert count_parameters(model) == params
    assert count_macs(model, [image(224)]) / 1e9 == pytest.approx(gmacs, rel=5e-4)


def test_parameters_with_ten_classes():
    with torch.device("meta"):
        assert count_parameters(create_model("deit_small", num_classes=10)) == 21_669_514


def test_the_rows_of_table_1_carry_the_papers_figures():
    top1 = {name: model_info(name).published.get("top1") for name in COUNTS if "small" in name}
    assert top1 == {
        "deit_small": 79.8,
        "vit_small": None,
        "deit_small_1head": 77.0,
        "deit_small+sima": 79.8,
        "deit_small+sima_1head": 79.4,
        "deit_small+sima_relu": 79.6,
    }


@pytest.mark.parametrize(
    ("name", "heads", "activation"),
    [
        ("deit_small+sima", 6, nn.GELU),
        ("deit_small+sima_1head", 1, nn.GELU),
        ("deit_small+sima_relu", 6, nn.ReLU),
    ],
)
def test_the_variants_differ_where_the_paper_says(name, heads, activation):
    with torch.device("meta"):
        model = create_model(name)
    for block in model.blocks:
        assert isinstance(block.attn, SimAAttention)
        assert block.attn.heads == heads
        assert type(block.mlp.act) is activation


def test_the_relu_variant_has_no_exponential():
    def operators(name):
        model = create_model(name, image_size=32, width=24, heads=3, depth=1)
        nodes = capture(model, [image(32)]).exported.graph.nodes
        return {str(node.target).removeprefix("aten.").split(".")[0] for node in nodes}

    exponentials = {"gelu", "softmax", "exp", "elu", "sigmoid", "tanh"}
    assert not operators("deit_small+sima_relu") & exponentials
    assert operators("deit_small+sima") & exponentials == {"gelu"}
    assert operators("deit_small") & exponentials == {"gelu", "softmax"}


def reference(model, x):
    """The forward pass by torch's own functions, from the weights alone."""
    w = model.state_dict()

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    stride = model.config.patch_size
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride)
    tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
    first = w["cls_token"].repeat(len(x), 1, 1)
    x = torch.cat([first, tokens], 1) + w["pos_embed"]
    for i in range(model.config.depth):
        b, heads = f"blocks.{i}", model.config.heads
        qkv = linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x))
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(f"{b}.attn.proj", out)
        hidden = F.gelu(linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x)))
        x = x + linear(f"{b}.mlp.fc2", hidden)
    return linear("head", norm("norm", x)[:, 0])


def test_the_forward_pass_is_deits():
    torch.manual_seed(0)
    model = randomize_(small("deit_tiny"))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), reference(model, x), rtol=0, atol=1e-5)
    assert (model(x)[0] - model(x)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_capture_computes_the_same(dynamic):
    torch.manual_seed(0)
    model = randomize_(create_model("deit_tiny+sima", image_size=64, depth=3))
    program = capture(model, [image(64)], dynamic_batch=dynamic)
    x = torch.randn(3 if dynamic else 1, 3, 64, 64)
    torch.testing.assert_close(program(x)[0], model(x), rtol=0, atol=1e-5)
    assert (model(x) - model(-x)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["deit_tiny", "deit_tiny+sima", "deit_tiny+soft", "deit_tiny+xca"])
def test_eval_is_independent_of_the_batch(name):
    torch.manual_seed(0)
    model = randomize_(small(name, image_size=64))
    x = torch.randn(3, 3, 64, 64) * torch.tensor([0.1, 1, 10]).view(3, 1, 1, 1)
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["deit_tiny", "deit_tiny+sima", "deit_tiny+elu"])
def test_one_training_step_leaves_finite_gradients_everywhere(name):
    torch.manual_seed(0)
    model = small(name).train()
    F.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_both_orders_of_the_product_give_the_same_logits():
    torch.manual_seed(0)
    models = [small(mixer_options={"order": order}) for order in ("nn", "dd")]
    state = randomize_(models[0]).state_dict()
    models[1].load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(models[0](x), models[1](x), rtol=0, atol=1e-5)


def test_a_rectangular_image_of_other_channels():
    model = small(image_size=(32, 64), in_chans=1)
    assert model(torch.zeros(2, 1, 32, 64)).shape == (2, 5)
    assert model.pos_embed.shape == (1, 1 + 2 * 4, 24)


def test_it_builds_and_moves_without_memory():
    with torch.device("meta"):
        model = create_model("deit_small+sima")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    moved = copy.deepcopy(small()).to("meta")
    assert moved(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 5)


def released(dim=24, depth=2, classes=5, tokens=5):
    """Names and shapes of the released DeiT and timm checkpoints."""
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, tokens, dim),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "head.weight": (classes, dim),
        "head.bias": (classes,),
    }
    layers = {"norm1": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim)}
    layers |= {"norm2": (dim,), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for i in range(depth):
        for name, shape in layers.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "_orig_mod."])
@pytest.mark.parametrize("name", ["deit_tiny", "vit_tiny", "deit_tiny+sima"])
def test_released_names_load(name, prefix):
    model, state = small(name), released()
    load_weights(model, model.adapt_state({prefix + key: value for key, value in state.items()}))
    assert torch.equal(model.blocks[1].mlp.fc2.bias, state["blocks.1.mlp.fc2.bias"])
    assert deit.map_keys(model.state_dict()).keys() == state.keys()


def test_positions_follow_the_image_size():
    state = released(tokens=1 + 14 * 14)
    model = small(image_size=(64, 96))
    load_weights(model, model.adapt_state(state))
    assert torch.equal(model.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert model.pos_embed.shape == (1, 1 + 4 * 6, 24)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("deit_tiny", {"image_size": 100}, ShapeError, "multiples of 16, got 100"),
        ("deit_tiny", {"num_classes": 0}, OptionError, "num_classes"),
        ("deit_tiny", {"activation": "silu"}, OptionError, "activation: expected gelu or relu"),
        ("deit_tiny", {"heads": 5}, ShapeError, "5 heads do not divide a width of 192"),
        ("deit_tiny", {"size": 3}, OptionError, "size: expected an option of this model"),
        ("deit_tiny+elementwise", {}, ShapeError, "class token"),
        ("deit_tiny+simba", {}, UnknownNameError, "unknown block 'simba'"),
    ],
)
def test_what_cannot_be_is_refused(name, options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model(name, **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="built for images of 32 x 32, got 48 x 32"):
        small()(torch.zeros(1, 3, 48, 32))
