"""Every model of the zoo at its own size in ONNX; `make zoo` runs all formats.

All are counted whole. The file is a whole one for one of each family, for the others a shallow one,
but for those that are another's layers for another size of picture.
"""

import pytest
import torch
from matrix_kit import FAMILIES, check, check_counts, check_shallow

from benchmarks.zoo_cell import Subject
from edgevit.capture import capture
from edgevit.zoo.registry import list_models

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", list_models())
def test_a_model_in_onnx(name):
    subject = Subject("model", name)
    if name in FAMILIES:
        check(subject, ["onnx"])
        return
    check_counts(subject)
    sibling = name.replace("_tinyimagenet", "_cifar10")
    if sibling == name or sibling not in list_models():
        check_shallow(name, ["onnx"])


@pytest.mark.parametrize("name", [*FAMILIES, "hybrid_fnet_cifar10", "hybrid_mixer_cifar10"])
def test_a_batch_that_varies(name):
    source = Subject("model", name).source()
    program = capture(source.module, source.inputs, dynamic_batch=True)
    assert not [n.target for n in program.exported.graph.nodes if "fft" in str(n.target)]
    images = torch.randn(3, *source.inputs[0].shape[1:])
    (together,), (alone,) = program(images), program(images[1:])
    assert together.shape[0] == 3
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=2e-5 * float(alone.abs().max()))
