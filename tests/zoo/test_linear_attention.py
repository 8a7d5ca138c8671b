"""SimA, its competitors' blocks and the class attention: against their formulas, in every order."""

import pytest
import torch
from torch.nn import functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention.class_attention import ClassAttention
from edgevit.zoo.attention.cosformer import CosformerAttention
from edgevit.zoo.attention.efficient import EfficientAttention
from edgevit.zoo.attention.elu import EluAttention
from edgevit.zoo.attention.linear import product
from edgevit.zoo.attention.sima import SimAAttention, l1_normalize, sima
from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.attention.xca import CrossCovarianceAttention, l2_normalize
from edgevit.zoo.counting import count_macs
from edgevit.zoo.factory import BlockCore, create_block
from edgevit.zoo.registry import build_block

ORDERED = {
    "sima": SimAAttention,
    "elu": EluAttention,
    "efficient": EfficientAttention,
    "cosformer": CosformerAttention,
}
BLOCKS = ORDERED | {"xca": CrossCovarianceAttention}


def qkv(tokens=12, width=8, heads=3, batch=2, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(3, batch, heads, tokens, width, dtype=dtype).unbind(0)


def l1(x):
    return F.normalize(x, p=1.0, dim=-2)


def reference(name, query, key, value):
    """The blocks' formulas by way of the N x N (for XCA d x d) map, in other words than theirs."""
    if name == "sima":
        return torch.einsum("bhnd,bhmd,bhme->bhne", l1(query), l1(key), value)
    if name == "xca":
        scores = torch.einsum(
            "bhnc,bhnd->bhcd", F.normalize(query, dim=-2), F.normalize(key, dim=-2)
        )
        return torch.einsum("bhcd,bhnd->bhnc", scores.softmax(-1), value)
    if name == "efficient":
        return torch.einsum("bhnd,bhmd,bhme->bhne", query.softmax(3), key.softmax(2), value)
    phi = torch.relu if name == "cosformer" else (lambda x: F.elu(x) + 1)
    weights = torch.einsum("bhnd,bhmd->bhnm", phi(query), phi(key))
    # A row of ReLUs may be all zero: then the output is zero, by the floor of the denominator.
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)) @ value


@pytest.mark.parametrize("name", BLOCKS)
def test_the_core_is_its_formula(name):
    query, key, value = qkv()
    block = build_block(name, dim=24, heads=3, tokens=(3, 4)).double()
    torch.testing.assert_close(block.core(query, key, value), reference(name, query, key, value))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_block_projects_splits_and_merges(name):
    torch.manual_seed(0)
    block = build_block(name, dim=24, heads=3, tokens=(3, 4))
    x = torch.randn(2, 12, 24)
    query, key, value = (split_heads(part, 3) for part in block.qkv(x).chunk(3, -1))
    expected = block.proj(merge_heads(reference(name, query, key, value)))
    torch.testing.assert_close(block(x), expected)
    assert not torch.allclose(block(x), block(2 * x + 1), atol=1e-3)


@pytest.mark.parametrize("name", ORDERED)
@pytest.mark.parametrize(("tokens", "width"), [(4, 16), (16, 4)])
def test_both_orders_agree(name, tokens, width):
    torch.manual_seed(0)
    tensors = qkv(tokens, width)
    outputs = [
        ORDERED[name](3 * width, 3, order=order).core(*tensors) for order in ("nn", "dd", "auto")
    ]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ["sima", "efficient"])
@pytest.mark.parametrize(
    ("tokens", "width", "macs"),
    # 2 N² d where N < d, else 2 N d².
    [(63, 64, 2 * 63 * 63 * 64), (64, 64, 2 * 64**3), (65, 64, 2 * 65 * 64 * 64)],
)
def test_the_cheaper_order_is_taken(name, tokens, width, macs):
    def count(order):
        block = BlockCore(ORDERED[name](width, 1, order=order))
        shape = (1, 1, tokens, width)
        return count_macs(block, [TensorSpec(n, shape) for n in ("query", "key", "value")])

    assert count("auto") == macs == min(count("nn"), count("dd"))


def test_the_order_weighs_queries_against_keys():
    query = torch.randn(1, 1, 200, 64)
    few, many = torch.randn(1, 1, 20, 64), torch.randn(1, 1, 500, 64)
    for keys in (few, many):
        for order in ("auto", "nn", "dd"):
            assert product(query, keys, keys, order).shape == query.shape
    torch.testing.assert_close(sima(query, few, few, "nn"), sima(query, few, few, "dd"))


@pytest.mark.parametrize(
    ("name", "tokens", "width", "macs"),
    [
        # The papers' Table 3: equal work for all models of a table.
        ("softmax", 256, 64, 67_108_864),
        ("sima", 256, 64, 67_108_864),
        ("elu", 256, 64, 67_108_864 + 8 * 256 * 64),
        ("sima", 64, 256, 67_108_864),
        ("xca", 64, 256, 67_108_864),
        ("elu", 64, 256, 67_108_864 + 8 * 64 * 256),
    ],
)
def test_the_single_block_benchmark_does_equal_work(name, tokens, width, macs):
    options = {"order": "nn" if tokens > width else "dd"} if name in ORDERED else {}
    block = create_block(name, tokens=tokens, head_dim=width, heads=8, **options)
    shape = (1, 8, tokens, width)
    assert count_macs(block, [TensorSpec(n, shape) for n in ("query", "key", "value")]) == macs


def test_every_channel_has_l1_norm_one_over_all_tokens_and_the_class_token_counts():
    x = torch.randn(2, 3, 197, 8)
    torch.testing.assert_close(l1_normalize(x).abs().sum(2), torch.ones(2, 3, 8))
    louder = torch.cat([torch.full((2, 3, 1, 8), 1000.0), x], 2)
    shrunk = l1_normalize(louder)[:, :, 1:] / l1_normalize(x)
    assert 0.05 < shrunk.min() < shrunk.max() < 0.3


def test_norms_of_nothing_are_not_a_division_by_zero():
    for normalize in (l1_normalize, l2_normalize):
        x = torch.zeros(1, 1, 4, 2, requires_grad=True)
        normalize(x).sum().backward()
        assert x.grad.isfinite().all()
    zeros = torch.zeros(1, 2, 4, 8)
    assert torch.equal(CosformerAttention(16, 2).core(zeros, zeros, zeros), zeros)


def test_sima_can_weigh_a_token_negatively_and_grows_with_its_value_alone():
    query, key, value = qkv()
    torch.testing.assert_close(sima(query, key, value), sima(7 * query, 0.1 * key, value))
    torch.testing.assert_close(2 * sima(query, key, value), sima(query, key, 2 * value))
    assert (l1(query) @ l1(key).transpose(-2, -1)).min() < 0


def test_the_temperature_sharpens_xca():
    torch.manual_seed(0)
    query, key, value = qkv(dtype=torch.float32)
    block = CrossCovarianceAttention(24, 3)
    flat = block.core(query, key, value)
    block.temperature.data[1] = 50.0
    changed = (block.core(query, key, value) - flat).abs().amax((0, 2, 3))
    assert changed[1] > 1e-2
    assert changed[0] == changed[2] == 0


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_capture_computes_the_same(name, dynamic):
    torch.manual_seed(0)
    block = build_block(name, dim=24, heads=3, tokens=(3, 4), prefix_tokens=1).eval()
    program = capture(block, [TensorSpec("x", (1, 13, 24))], dynamic_batch=dynamic)
    x = torch.randn(3 if dynamic else 1, 13, 24)
    torch.testing.assert_close(program(x)[0], block(x), rtol=0, atol=1e-6)


def test_softmax_class_attention_is_the_class_row_of_ordinary_attention():
    torch.manual_seed(0)
    block = ClassAttention(24, 3)
    token, patches = torch.randn(2, 1, 24), torch.randn(2, 12, 24)
    x = torch.cat([token, patches], 1)
    heads = [split_heads(layer(x), 3) for layer in (block.q, block.k, block.v)]
    row = F.scaled_dot_product_attention(*heads)[:, :, :1]
    torch.testing.assert_close(block(token, patches), block.proj(merge_heads(row)))


def test_sima_class_attention_normalises_over_all_tokens():
    torch.manual_seed(0)
    block = ClassAttention(24, 3, mixer="sima")
    token, patches = torch.randn(2, 1, 24), torch.randn(2, 12, 24)
    x = torch.cat([token, patches], 1)
    heads = [split_heads(layer(x), 3) for layer in (block.q, block.k, block.v)]
    row = reference("sima", *heads)[:, :, :1]
    torch.testing.assert_close(block(token, patches), block.proj(merge_heads(row)))


def test_what_cannot_be_is_refused():
    with pytest.raises(OptionError, match="order: expected auto or nn or dd, got 'dn'"):
        SimAAttention(16, 2, order="dn")
    with pytest.raises(ShapeError, match="3 heads do not divide a width of 16"):
        EluAttention(16, 3)
    with pytest.raises(OptionError, match="class_attention: expected softmax or sima"):
        ClassAttention(16, 2, mixer="xca")
    with pytest.raises(ShapeError, match="3 heads"):
        ClassAttention(16, 3)
