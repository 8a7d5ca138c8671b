"""The SOFT block against its formula, and its backbone with the attentions of SimA's Table 2."""

import pytest
import torch
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention import linformer, nystrom, performer, softmax  # noqa: F401
from edgevit.zoo.attention.soft import SoftAttention, gaussian_kernel, newton_inverse
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import BlockCore, create_model
from edgevit.zoo.models import soft
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import model_info
from edgevit.zoo.weights import load_weights

COUNTS = {
    "soft_tiny": (13_069_056, 2.157),
    "soft_small": (24_110_092, 3.806),
    "soft_tiny+softmax": (13_302_792, 3.539),
    "soft_tiny+linformer": (13_562_100, 2.007),
    "soft_tiny+performer": (13_302_792, 2.151),
    "soft_tiny+nystrom": (13_304_112, 2.187),
}
SMALL = {"image_size": 64, "widths": (16, 16, 32, 32), "depths": (1, 1, 1, 1)}
SMALL |= {"heads": (1, 2, 2, 2), "num_classes": 5}


def image(size, batch=1):
    return TensorSpec("image", (batch, 3, size, size), "image")


@pytest.mark.parametrize(("name", "counts"), COUNTS.items())
def test_parameters_and_macs(name, counts):
    params, gmacs = counts
    with torch.device("meta"):
        model = create_model(name)
    assert count_parameters(model) == params
    assert count_macs(model, [image(224)]) / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_the_newton_products_are_what_the_published_flops_leave_out():
    with torch.device("meta"):
        model = create_model("soft_tiny", mixer_options={"iterations": 0})
    assert count_macs(model, [image(224)]) / 1e9 == pytest.approx(1.97, abs=5e-3)


def test_the_plain_name_is_the_one_with_soft():
    assert model_info("soft_tiny+soft").name == "soft_tiny"
    assert model_info("soft_tiny+soft").published["top1"] == 79.3


@pytest.mark.parametrize("name", COUNTS)
def test_every_mixer_sits_in_the_first_three_stages_only(name):
    with torch.device("meta"):
        model = create_model(name)
    mixers = [type(layer.attn).__name__ for stage in model.stages for layer in stage.blocks]
    expected = {
        "softmax": "SoftmaxAttention",
        "linformer": "LinformerAttention",
        "performer": "PerformerAttention",
        "nystrom": "NystromAttention",
    }.get(name.partition("+")[2], "SoftAttention")
    last = model.config.depths[-1]
    assert set(mixers[:-last]) == {expected}
    assert set(mixers[-last:]) == {"SoftmaxAttention"}


def reference(block, x):
    """The block's formula head by head, with distances from differences and no sharing of work."""
    outputs = []
    width = x.shape[-1] // block.heads
    prefix = x.shape[1] - block.grid[0] * block.grid[1]
    query, value = block.query(x) / width**0.25, block.value(x)
    for head in range(block.heads):
        part = slice(head * width, (head + 1) * width)
        q, v = query[..., part], value[..., part]
        grid = q[:, prefix:].transpose(1, 2).reshape(-1, width, *block.grid)
        marks = F.gelu(block.norm(block.landmarks(grid).flatten(2).transpose(1, 2)))
        one, two = (
            torch.exp(-0.5 * (a[:, :, None] - marks[:, None]).square().sum(-1)) for a in (q, marks)
        )
        p, largest = two + 0.01 * torch.eye(two.shape[-1]), two.sum(-1).amax(-1)[:, None, None]
        z = 1.8 * p / largest**2
        for _ in range(block.iterations):
            z = 2 * z - z @ p @ z
        out = one @ z @ (one.transpose(1, 2) @ v)
        weight = block.residual.weight[head : head + 1].expand(width, -1, -1, -1)
        plane = v[:, prefix:].transpose(1, 2).reshape(-1, width, *block.grid)
        conv = F.conv2d(plane, weight, padding=weight.shape[-1] // 2, groups=width)
        conv = torch.cat([v[:, :prefix], conv.flatten(2).transpose(1, 2)], 1)
        outputs.append(out + conv)
    return block.proj(torch.cat(outputs, -1))


@pytest.mark.parametrize("prefix", [0, 1])
def test_the_block_is_its_formula(prefix):
    torch.manual_seed(0)
    options = {"ratio": 2, "kernel": 5, "prefix_tokens": prefix}
    block = randomize_(SoftAttention(12, 3, tokens=(6, 4), **options)).double()
    torch.set_default_dtype(torch.float64)
    try:
        x = torch.randn(2, prefix + 24, 12)
        torch.testing.assert_close(block(x), reference(block, x))
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_newton_steps_invert():
    torch.manual_seed(0)
    a = torch.randn(2, 3, 9, 4, dtype=torch.float64) * 2
    kernel, ridge = gaussian_kernel(a, a), 0.01 * torch.eye(9, dtype=torch.float64)
    inverse = newton_inverse(kernel, ridge, 20)
    torch.testing.assert_close(inverse, torch.linalg.inv(kernel + ridge))


def test_the_kernel_is_one_at_no_distance_and_falls():
    a = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected[0, 1] = expected[1, 0] = torch.exp(torch.tensor(-12.5))
    torch.testing.assert_close(gaussian_kernel(a, a), expected)


@pytest.mark.parametrize(
    ("grid", "ratio"), [((56, 56), 8), ((14, 14), 2), ((16, 16), 2), ((7, 7), 1), ((5, 3), 1)]
)
def test_the_default_ratio_comes_nearest_to_49_landmarks(grid, ratio):
    assert SoftAttention(8, 2, tokens=grid).landmarks.stride == (ratio, ratio)


@pytest.mark.parametrize(("order", "tokens", "width"), [("nn", 256, 64), ("dd", 64, 256)])
def test_the_timing_form_works_on_the_map_of_its_order(order, tokens, width):
    block = SoftAttention(8 * width, 8, tokens=(8, tokens // 8), order=order)
    specs = [TensorSpec(n, (1, 8, tokens, width)) for n in ("query", "key", "value")]
    assert count_macs(BlockCore(block), specs) == 67_108_864


def test_the_timing_form_is_the_kernel_times_the_value():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 6, 4).unbind(0)
    half = 2**-0.5
    distance = (query[:, :, :, None] - key[:, :, None]) * half
    expected = torch.exp(-0.5 * distance.square().sum(-1)) @ value
    tokens = SoftAttention(8, 2, tokens=(2, 3)).core(query, key, value)
    torch.testing.assert_close(tokens, expected)
    channels = SoftAttention(8, 2, tokens=(2, 3), order="dd").core(query, key, value)
    scaled = [x.transpose(-2, -1) * 6**-0.25 for x in (query, key)]
    distance = scaled[0][:, :, :, None] - scaled[1][:, :, None]
    weights = torch.exp(-0.5 * distance.square().sum(-1))
    torch.testing.assert_close(channels, torch.einsum("bhcd,bhnd->bhnc", weights, value))


def test_the_residual_convolution_can_be_left_out():
    torch.manual_seed(0)
    with_it, without = (SoftAttention(8, 2, tokens=(4, 4), kernel=k) for k in (3, 0))
    without.load_state_dict(with_it.state_dict(), strict=False)
    x = torch.randn(1, 16, 8)
    assert without.residual is None
    assert (with_it(x) - without(x)).abs().max() > 1e-3


@pytest.mark.parametrize("mixer", ["soft", "softmax", "linformer", "performer", "nystrom"])
def test_one_training_step_leaves_finite_gradients_everywhere(mixer):
    torch.manual_seed(0)
    model = create_model("soft_tiny", mixer=mixer, **SMALL).train()
    logits = model(torch.randn(2, 3, 64, 64))
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_capture_computes_the_same_at_any_batch():
    torch.manual_seed(0)
    model = randomize_(create_model("soft_tiny", mixer_options={"iterations": 2}, **SMALL))
    program = capture(model, [image(64)], dynamic_batch=True)
    x = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(program(x)[0], model(x), rtol=0, atol=2e-5)
    assert (model(x)[0] - model(x)[1]).abs().max() > 1e-3


def test_eval_is_independent_of_the_batch():
    torch.manual_seed(0)
    model = randomize_(create_model("soft_tiny", **SMALL))
    x = torch.randn(3, 3, 64, 64) * torch.tensor([0.1, 1, 10]).view(3, 1, 1, 1)
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-4, atol=1e-5)


def test_the_layers_normalise_after_the_residual_and_the_last_stages_before():
    torch.manual_seed(0)
    model = randomize_(create_model("soft_tiny", **SMALL))
    layer, last = model.stages[0].blocks[0], model.stages[3].blocks[0]
    x = torch.randn(2, 16 * 16, 16)
    y = layer.norm1(x + layer.attn(x))
    hidden = F.gelu(layer.mlp.fc1(y), approximate="tanh")
    expected = layer.norm2(y + layer.mlp.fc2(hidden))
    torch.testing.assert_close(layer(x), expected)
    x = torch.randn(2, 5, 32)
    y = x + last.attn(last.norm1(x))
    expected = y + last.mlp.fc2(F.gelu(last.mlp.fc1(last.norm2(y))))
    torch.testing.assert_close(last(x), expected)


def test_every_embedding_convolution_has_bias_norm_and_relu():
    model = create_model("soft_tiny", **SMALL)
    kinds = [[type(layer).__name__ for layer in s.patch_embed[-1]] for s in model.stages]
    assert kinds == [["Conv2d", "BatchNorm2d", "ReLU"]] * 4
    convolutions = [layer[0] for stage in model.stages for layer in stage.patch_embed]
    assert [conv.stride[0] for conv in convolutions] == [2, 1, 2, 2, 2, 2]
    assert all(conv.bias is not None for conv in convolutions)


def released(model):
    """The state under the names of the released code."""
    renamed = {}
    for key, tensor in model.state_dict().items():
        name = key
        if key.startswith("stages."):
            _, stage, rest = key.split(".", 2)
            number = int(stage) + 1
            if rest == "cls_token":
                name = rest
            elif rest == "pos_embed":
                name = f"pos_embed{number}"
            elif rest.startswith("patch_embed."):
                _, layer, part, leaf = rest.split(".")
                name = f"patch_embed{number}.proj.{3 * int(layer) + int(part)}.{leaf}"
            elif number == 4:
                name = "block4." + rest.removeprefix("blocks.")
                if ".attn.qkv." in name:
                    for part, rows in (("q", slice(0, 32)), ("kv", slice(32, 96))):
                        renamed[name.replace("qkv", part)] = tensor[rows]
                    continue
            else:
                name = f"block{number}." + rest.removeprefix("blocks.").replace("0.", "0.att.", 1)
                for ours, theirs in (
                    (".attn.query.", ".mha.W_q."),
                    (".attn.value.", ".mha.W_v."),
                    (".attn.proj.", ".mha.ff."),
                    (".attn.landmarks.", ".mha.attn.Qlandmark_op."),
                    (".attn.norm.", ".mha.attn.Qnorm_act.0."),
                    (".attn.residual.", ".mha.attn.conv."),
                    (".mlp.fc", ".ff"),
                ):
                    name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def test_released_names_load():
    model, other = (randomize_(create_model("soft_tiny", **SMALL), seed) for seed in (1, 2))
    state = released(model)
    assert {"block1.0.att.mha.attn.Qlandmark_op.weight", "block4.0.attn.kv.bias"} <= state.keys()
    assert {"patch_embed1.proj.7.running_var", "pos_embed4", "cls_token"} <= state.keys()
    load_weights(other, other.adapt_state(state))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), other(x))


def test_positions_follow_the_image_size():
    model = create_model("soft_tiny", **SMALL)
    other = create_model("soft_tiny", **(SMALL | {"image_size": (96, 64)}))
    load_weights(other, other.adapt_state(model.state_dict()))
    assert other.stages[0].pos_embed.shape == (1, 24 * 16, 16)
    assert torch.equal(other.stages[3].pos_embed[:, 0], model.stages[3].pos_embed[:, 0])


def test_our_own_names_pass_through():
    with torch.device("meta"):
        state = create_model("soft_tiny", **SMALL).state_dict()
    assert soft.map_keys(state).keys() == state.keys()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 32, got 100"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"mixer_options": {"ratio": 3}}, ShapeError, "ratio of 3 does not divide a map of 56 x"),
        ({"mixer_options": {"kernel": 4}}, OptionError, "kernel: expected an odd number"),
        ({"mixer_options": {"ratio": 0}}, OptionError, "ratio: expected a whole number"),
        ({"mixer_options": {"iterations": -1}}, OptionError, "iterations"),
        ({"mixer_options": {"order": "auto"}}, OptionError, "order: expected nn or dd"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        create_model("soft_tiny", **options)
