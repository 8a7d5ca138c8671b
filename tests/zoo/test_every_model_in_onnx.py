"""Every model of the zoo at its own size in ONNX; `make zoo` runs the other formats."""

import pytest
import torch
from matrix_kit import check

from benchmarks.zoo_cell import Subject
from edgevit.capture import capture
from edgevit.zoo.registry import list_models

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", list_models())
def test_a_model_in_onnx(name):
    source = check(Subject("model", name), ["onnx"])
    program = capture(source.module, source.inputs, dynamic_batch=True)
    assert not [n.target for n in program.exported.graph.nodes if "fft" in str(n.target)]
    images = torch.randn(3, *source.inputs[0].shape[1:])
    (together,), (alone,) = program(images), program(images[1:])
    assert together.shape[0] == 3
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=2e-5 * float(alone.abs().max()))
