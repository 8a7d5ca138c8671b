"""Packages whose weights coremltools compressed, against the weights before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mil_kit import Forward, Saved, captured, run, save
from torch import nn

from exporters.mil import read_package
from exporters.quiet import quiet


def compressed(saved: Saved, kind: str, folder: Any) -> Any:
    """The package with its weights compressed, saved and read back."""
    with quiet():
        import coremltools.optimize.coreml as optimize
        from coremltools.models import MLModel

        apply, config = {
            "affine": (
                optimize.linear_quantize_weights,
                optimize.OpLinearQuantizerConfig(mode="linear", weight_threshold=16),
            ),
            "blocks": (
                optimize.linear_quantize_weights,
                optimize.OpLinearQuantizerConfig(
                    mode="linear_symmetric",
                    granularity="per_block",
                    block_size=16,
                    weight_threshold=16,
                ),
            ),
            "table": (
                optimize.palettize_weights,
                optimize.OpPalettizerConfig(nbits=4, mode="uniform", weight_threshold=16),
            ),
            "sparse": (
                optimize.prune_weights,
                optimize.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=16),
            ),
        }[kind]
        model = MLModel(str(saved.path), skip_model_load=True)
        small = apply(model, optimize.OptimizationConfig(global_config=config))
        small.save(str(folder / f"{kind}.mlpackage"))
    return read_package(folder / f"{kind}.mlpackage")


@pytest.mark.parametrize(
    ("kind", "target", "op", "coarseness"),
    [
        ("affine", "ios16", "constexpr_affine_dequantize", 2 / 255),
        ("affine", "ios18", "constexpr_blockwise_shift_scale", 2 / 255),
        ("blocks", "ios18", "constexpr_blockwise_shift_scale", 2 / 255),
        ("table", "ios16", "constexpr_lut_to_dense", 2 / 15),
        ("table", "ios18", "constexpr_lut_to_dense", 2 / 15),
        ("sparse", "ios16", "constexpr_sparse_to_dense", 1.0),
        ("sparse", "ios18", "constexpr_sparse_to_dense", 1.0),
    ],
)
def test_compressed_weights_are_unpacked(kind, target, op, coarseness, tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    program = captured(Forward(lambda m, x: m.layer(x), layer=layer), (1, 64, 64))
    mil = compressed(save(program, tmp_path, target=target, precision="fp32"), kind, tmp_path)
    assert op in {o.type for o in mil.ops}
    with torch.no_grad():
        weight = (run(mil, torch.eye(64)[None]) - layer.bias)[0].T
        far = (weight - layer.weight).abs().max() / layer.weight.abs().max()
        assert 1e-4 < far <= coarseness / 2 * 1.01
        if kind == "sparse":
            kept = weight.abs() > 1e-6
            assert kept.sum() == 64 * 32
            torch.testing.assert_close(weight[kept], layer.weight[kept], rtol=1e-4, atol=1e-6)
