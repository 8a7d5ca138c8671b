"""EfficientViT, SwiftFormer and EfficientFormerV2 as ONNX files of the oldest opset, any batch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import edgevit.zoo.attention.swift_additive
import edgevit.zoo.models.efficientformerv2
import edgevit.zoo.models.efficientvit
import edgevit.zoo.models.swiftformer  # noqa: F401
from edgevit.capture import capture
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.factory import create_model
from edgevit.zoo.randomize import randomize_

pytest.importorskip("onnxruntime")

CASES = {
    # 10 x 15 cells: windows with padding on both sides, then maps that are no squares.
    "efficientvit_m0": (
        (160, 240),
        {"widths": (32, 48, 64), "depths": (1, 1, 1), "features": True},
    ),
    "swiftformer_l3": ((64, 96), {"widths": (16, 24, 32, 40), "depths": (1, 1, 1, 1)}),
    "efficientformerv2_l": (
        (64, 96),
        {
            "widths": (8, 12, 16, 24),
            "expansions": ((2,), (2,), (2,), (2,)),
            "attention_blocks": 1,
            "heads": 2,
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_the_same(name, tmp_path):
    from exporters.onnx import OnnxExporter, OnnxOptions

    size, options = CASES[name]
    torch.manual_seed(0)
    model = randomize_(create_model(name, image_size=size, num_classes=10, **options)).train()
    coarse = F.interpolate(torch.randn(6, 3, 3, 3), size, mode="bilinear")
    for _ in range(30):  # BatchNorm meets the images, so that the output depends on them
        with torch.no_grad():
            model(coarse)
    program = capture(
        model.eval(), [TensorSpec("image", (1, 3, *size), "image")], dynamic_batch=True
    )
    exporter = OnnxExporter()
    artifact = exporter.export(program, tmp_path, OnnxOptions(opset=13))
    for runner in exporter.load(artifact, tmp_path):
        outputs = runner.run([coarse[:3].numpy()])
        for got, want in zip(outputs, program(coarse[:3]), strict=True):
            expected = want.numpy()
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
            assert np.abs(expected[0] - expected[1]).max() > 0.05 * np.abs(expected).max()
