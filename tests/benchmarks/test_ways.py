"""Files without one of the rewrites, for what each of them brings."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from benchmarks.ways import (
    NothingToDoError,
    Workbench,
    attention_joined,
    onnx_session,
    ours,
    pass_candidates,
    rewritten_but,
)
from edgevit.passes import EXACT, TIDYING
from edgevit.verbs.export import make_source
from edgevit.zoo.factory import create_model
from exporters.onnx import REWRITES


class Normed(nn.Module):
    """A residual, with a norm behind it or not."""

    def __init__(self, norm):
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 16), norm

    def forward(self, x):
        return self.norm(x + torch.relu(self.linear(x)))


def bench(norm, folder):
    source, _ = make_source(Normed(norm).eval(), input_shape=(3, 8, 16))
    return Workbench(source, folder)


def test_norms_are_fused_again_for_comparison(tmp_path):
    work = bench(nn.LayerNorm(16), tmp_path)
    files = [ours(work, runner="onnxruntime"), rewritten_but(work, rule="keep_norms_apart")]
    kinds = [Counter(node.op_type for node in onnx.load(file).graph.node) for file in files]
    assert kinds[0]["Sum"] == kinds[1]["Add"] - kinds[0]["Add"] == 1
    assert kinds[1]["Sum"] == 0
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 16), dtype=np.float32)
    first, second = (onnx_session(file)(x) for file in files)
    assert np.abs(first - second).max() < 1e-5


def test_without_such_a_norm_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(NothingToDoError):
        rewritten_but(bench(nn.Identity(), tmp_path), rule="keep_norms_apart")


def test_attention_is_joined_for_comparison(tmp_path):
    model = create_model("deit_tiny", depth=2, image_size=32).eval()
    source, _ = make_source(model, input_shape=(3, 32, 32))
    work = Workbench(source, tmp_path)
    files = [ours(work, runner="onnxruntime"), attention_joined(work)]
    kinds = [Counter(node.op_type for node in onnx.load(file).graph.node) for file in files]
    assert [(kind["Softmax"], kind["Attention"]) for kind in kinds] == [(2, 0), (0, 2)]


def test_without_attention_there_is_none_to_join(tmp_path):
    with pytest.raises(NothingToDoError):
        attention_joined(bench(nn.Identity(), tmp_path))


def test_every_exact_rewrite_has_its_column():
    names = " ".join(candidate.name for candidate in pass_candidates())
    rules = [*EXACT, *(rule.__name__ for rule in REWRITES)]
    assert [n for n in rules if n not in TIDYING and f"without {n}" not in names] == []
