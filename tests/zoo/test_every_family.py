"""A model of each family, and every block, in the other formats; `make zoo` runs all models."""

import pytest
from matrix_kit import check

from benchmarks.zoo_cell import Subject
from edgevit.zoo.registry import list_blocks, list_models, model_info

pytestmark = pytest.mark.slow

#: The cheapest variant of each family.
FAMILIES = [
    "ceit_tiny", "cvt_13+sima", "deepvit_tiny", "deit_tiny", "deit_tiny+la", "efficientformerv2_l",
    "efficientvit_m0", "elevit_noff", "hvt_small_4", "lavit_t", "pvt_tiny", "soft_tiny",
    "swiftformer_l3", "swin_tiny", "ccn_cifar10", "cvp_cifar10", "levil_cifar10", "pin_cifar10",
    "hybrid_rope_vil_cifar10", "fnet_cifar10", "xcit_tiny_20_p16+sima",
]  # fmt: skip


def test_each_family_is_there():
    wanted = {model_info(name).family for name in list_models()}
    assert {model_info(name).family for name in FAMILIES} == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_in_core_ml_and_tflite(name):
    check(Subject("model", name), ["coreml", "tflite"])


@pytest.mark.parametrize("name", list_blocks())
def test_a_block_in_every_format(name):
    check(Subject("block", name), ["onnx", "coreml", "tflite"])
