"""Fourier mixing: against torch's own transform."""

import pytest
import torch

from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention.fourier import FourierMixing
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_block


@pytest.mark.parametrize(("tokens", "prefix", "dim"), [((32, 32), 1, 128), ((3, 5), 0, 6)])
def test_it_is_the_real_part_of_the_transform(tokens, prefix, dim):
    torch.manual_seed(0)
    x = torch.randn(2, tokens[0] * tokens[1] + prefix, dim)
    exact = torch.fft.fft(torch.fft.fft(x.double(), dim=-1), dim=-2).real.float()
    mixed = FourierMixing(dim, tokens=tokens, prefix_tokens=prefix)(x)
    assert (mixed - exact).abs().max() < 1e-4 * exact.abs().max()
    assert (mixed - exact).norm() < 1e-5 * exact.norm()


def test_it_has_constants_and_no_parameters():
    block = FourierMixing(16, tokens=(4, 4))
    assert count_parameters(block) == 0
    assert not block.state_dict()
    assert {buffer.dtype for buffer in block.buffers()} == {torch.float32}


def test_its_products_are_counted():
    block = FourierMixing(128, tokens=(32, 32), prefix_tokens=1)
    macs = count_macs(block, [TensorSpec("x", (1, 1025, 128))])
    assert macs == 2 * 1025 * 128 * (1025 + 128)
    assert macs / 1e6 == pytest.approx(302.5, abs=0.05)


def test_the_core_transforms_the_value():
    torch.manual_seed(0)
    core = create_block("fourier", tokens=16, head_dim=4, heads=3)
    query, key, value = torch.randn(3, 2, 3, 16, 4)
    rows = value.transpose(1, 2).reshape(2, 16, 12)
    exact = torch.fft.fft2(rows).real.reshape(2, 16, 3, 4).transpose(1, 2)
    torch.testing.assert_close(core(query, key, value), exact, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_is_refused():
    with pytest.raises(OptionError, match="tokens"):
        FourierMixing(16)
    with pytest.raises(ShapeError, match="transforms 16 tokens, got 15"):
        FourierMixing(16, tokens=(4, 4))(torch.zeros(1, 15, 16))
