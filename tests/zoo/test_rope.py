"""Rotary embedding: against complex numbers, and the property that it is made for."""

import pytest
import torch

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.rope import RotaryEmbedding
from edgevit.zoo.attention.softmax import SoftmaxAttention


def test_it_is_a_complex_rotation_of_neighbouring_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 50, 32)
    frequencies = 10000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)
    angles = torch.arange(50, dtype=torch.float64)[:, None] * frequencies
    pairs = torch.view_as_complex(x.double().reshape(2, 3, 50, 16, 2))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    expected = torch.view_as_real(turned).flatten(-2).float()
    torch.testing.assert_close(RotaryEmbedding(50, 32)(x), expected, rtol=0, atol=1e-5)


def test_products_depend_on_the_difference_of_positions_alone():
    torch.manual_seed(0)
    rope = RotaryEmbedding(40, 8)
    query = rope(torch.randn(8).expand(1, 1, 40, 8))[0, 0]
    key = rope(torch.randn(8).expand(1, 1, 40, 8))[0, 0]
    products = query @ key.T
    for shift in range(-20, 21, 5):
        diagonal = products.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert (products.diagonal(0)[0] - products.diagonal(7)[0]).abs() > 1e-2


def test_the_first_position_stays_and_lengths_are_kept():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 9, 6)
    turned = RotaryEmbedding(9, 6)(x)
    assert torch.equal(turned[..., 0, :], x[..., 0, :])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned[..., 1:, :], x[..., 1:, :], atol=1e-2)


def test_an_odd_width_is_refused():
    with pytest.raises(ShapeError, match="even, got 7"):
        RotaryEmbedding(4, 7)


def test_softmax_attention_with_rope_feels_the_order_of_its_tokens():
    torch.manual_seed(0)
    x = torch.randn(1, 10, 16)
    order = torch.randperm(10)
    for rope, feels in ((False, False), (True, True)):
        block = SoftmaxAttention(16, 2, tokens=(3, 3), prefix_tokens=1, rope=rope).eval()
        same = torch.allclose(block(x)[:, order], block(x[:, order]), atol=1e-5)
        assert same != feels


def test_softmax_attention_with_rope_needs_the_token_map():
    with pytest.raises(OptionError, match="tokens: expected height and width"):
        SoftmaxAttention(16, 2, rope=True)


def test_softmax_attention_takes_narrower_heads():
    block = SoftmaxAttention(16, 2, head_dim=4)
    assert block.qkv.weight.shape == (24, 16)
    assert block(torch.randn(1, 5, 16)).shape == (1, 5, 16)
    with pytest.raises(ShapeError, match="at least one head and channel"):
        SoftmaxAttention(16, 2, head_dim=0)
