"""Models written the usual way compute what the zoo's own do."""

import pytest
import torch

from benchmarks.textbook import textbook
from edgevit.source import model_source


@pytest.mark.parametrize(
    "name", ["deit_tiny", "deit_tiny+sima", "xcit_tiny_20_p16", "pvt_tiny", "swin_tiny"]
)
def test_the_results_are_the_same(name):
    source = model_source(name, seed=0)
    written = textbook(source)
    x = torch.randn(source.inputs[0].shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want, got = source.module(x), written.module(x)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_it_is_written_otherwise():
    source = model_source("deit_tiny", seed=0)
    graphs = [
        torch.export.export(s.module, (torch.zeros(source.inputs[0].shape),)).graph
        for s in (source, textbook(source))
    ]
    wide = [sum(len(n.args[1]) == 5 for n in g.nodes if "permute" in str(n.target)) for g in graphs]
    assert wide == [0, 12]


def test_a_model_without_such_attention_has_no_other_way():
    assert textbook(model_source("elevit", seed=0)) is None
