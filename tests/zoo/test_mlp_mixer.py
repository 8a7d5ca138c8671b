"""Token mixing of the MLP-Mixer: against the definition."""

import pytest
import torch

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.mlp_mixer import MlpMixing
from edgevit.zoo.counting import count_parameters
from edgevit.zoo.factory import create_block


def define(block, x):
    """The perceptron on the tokens of one channel at a time, (N, C)."""
    first, second = block.expand, block.reduce
    columns = []
    for column in x.T:
        hidden = torch.nn.functional.gelu(first.weight[:, :, 0] @ column + first.bias)
        columns.append(second.weight[:, :, 0] @ hidden + second.bias)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("expansion", [1, 0.5, 2])
def test_it_computes_its_definition(expansion):
    torch.manual_seed(0)
    block = MlpMixing(6, tokens=(3, 4), prefix_tokens=1, expansion=expansion)
    assert block.expand.out_channels == int(13 * expansion)
    x = torch.randn(1, 13, 6)
    torch.testing.assert_close(block(x)[0], define(block, x[0]), rtol=1e-5, atol=1e-6)


def test_the_default_is_that_of_vision_xformers():
    assert count_parameters(MlpMixing(128, 4, tokens=(32, 32))) == 2 * (1024 * 1024 + 1024)


def test_the_core_mixes_the_value():
    torch.manual_seed(0)
    core = create_block("mlp_mixer", tokens=16, head_dim=4, heads=3)
    query, key, value = torch.randn(3, 1, 3, 16, 4)
    for head in range(3):
        expected = define(core.block, value[0, head])
        torch.testing.assert_close(core(query, key, value)[0, head], expected)


def test_what_cannot_be_is_refused():
    with pytest.raises(OptionError, match="expansion"):
        MlpMixing(16, tokens=(4, 4), expansion=0)
    with pytest.raises(OptionError, match="tokens"):
        MlpMixing(16)
    with pytest.raises(ShapeError, match="mixes 16 tokens, got 15"):
        MlpMixing(16, tokens=(4, 4))(torch.zeros(1, 15, 16))
