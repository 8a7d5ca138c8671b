"""LaViT and the backbones that it goes into as ONNX files of the oldest opset, any batch."""

import numpy as np
import pytest
import torch
from less_kit import image, rows

from edgevit.capture import capture
from edgevit.zoo.factory import create_model
from edgevit.zoo.models import ceit, deepvit, hvt, lavit, swin  # noqa: F401
from edgevit.zoo.randomize import randomize_, settle_

pytest.importorskip("onnxruntime")

ONE_STAGE = {"image_size": (64, 96), "width": 24, "heads": 3, "depth": 4, "less_from": 3}
FOUR = {"widths": (8, 16, 24, 32), "heads": (1, 2, 3, 4), "expansions": (2, 2, 2, 2)}
FOUR |= {"image_size": (64, 96), "depths": (1, 1, 3, 2), "less_from": (0, 0, 2, 2)}
SWIN = {"width": 12, "heads": (1, 2, 3, 3), "window": 4, "depths": (4, 3, 2, 2)}
CASES = {
    "lavit_s": FOUR,
    "lavit_t": FOUR | {"square": True, "features": True, "less_projection": False},
    "swin_tiny+la": SWIN | {"image_size": (64, 128), "less_from": (3, 3, 0, 2)},
    "vit_tiny+la": ONE_STAGE,
    "deepvit_small+la": ONE_STAGE | {"reattention_from": 2},
    "ceit_tiny+la": ONE_STAGE,
    "hvt_small_4+la": ONE_STAGE | {"pools": 2, "less_from": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_the_same(name, tmp_path):
    from exporters.onnx import OnnxExporter, OnnxOptions

    torch.manual_seed(0)
    model = randomize_(create_model(name, num_classes=10, **CASES[name]))
    spec = image(model.config.image)
    program = capture(settle_(model, [spec]), [spec], dynamic_batch=True)
    exporter = OnnxExporter()
    artifact = exporter.export(program, tmp_path, OnnxOptions(opset=13))
    x = rows(model)
    for runner in exporter.load(artifact, tmp_path):
        for got, want in zip(runner.run([x.numpy()]), program(x), strict=True):
            expected = want.numpy()
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
            assert np.abs(expected[0] - expected[1]).max() > 0.02 * np.abs(expected).max()
