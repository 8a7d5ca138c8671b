"""Every model of the zoo as it is, and one of each family in every format; blocks likewise.

`make zoo` runs the rest of the matrix: every model in every format.
"""

import pytest
import torch

from benchmarks.zoo_cell import Subject, counts, export
from edgevit.capture import capture
from edgevit.zoo.registry import list_blocks, list_models, model_info

pytestmark = pytest.mark.slow

#: The cheapest variant of each family.
FAMILIES = [
    "ceit_tiny", "cvt_13+sima", "deepvit_tiny", "deit_tiny", "deit_tiny+la", "efficientformerv2_l",
    "efficientvit_m0", "elevit_noff", "hvt_small_4", "lavit_t", "pvt_tiny", "soft_tiny",
    "swiftformer_l3", "swin_tiny", "ccn_cifar10", "cvp_cifar10", "levil_cifar10", "pin_cifar10",
    "hybrid_rope_vil_cifar10", "fnet_cifar10", "xcit_tiny_20_p16", "xcit_tiny_20_p16+sima",
]  # fmt: skip


def test_each_family_is_there():
    wanted = {model_info(name).family for name in list_models()}
    assert {model_info(name).family for name in FAMILIES} == wanted


def check(subject, formats):
    source = subject.source()
    assert "off" not in counts(subject, source)
    for name, cell in export(source, formats):
        assert cell["status"] == ("reference" if name == "coreml" else "verified"), cell["reason"]
        # Whatever BatchNorm is left has a name in the source model.
        layers = dict(source.module.named_modules())
        assert all(kept in layers for kept in cell["batchnorms_kept"])
    return source


@pytest.mark.parametrize("name", list_models())
def test_a_model_in_onnx(name):
    source = check(Subject("model", name), ["onnx"])
    program = capture(source.module, source.inputs, dynamic_batch=True)
    assert not [n.target for n in program.exported.graph.nodes if "fft" in str(n.target)]
    images = torch.randn(3, *source.inputs[0].shape[1:])
    (together,), (alone,) = program(images), program(images[1:])
    assert together.shape[0] == 3
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=2e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_in_core_ml_and_tflite(name):
    check(Subject("model", name), ["coreml", "tflite"])


@pytest.mark.parametrize("name", list_blocks())
def test_a_block_in_every_format(name):
    check(Subject("block", name), ["onnx", "coreml", "tflite"])
