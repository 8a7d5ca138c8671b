"""A model of each family in OpenVINO, and most of them, made small, in ExecuTorch: shallow ones."""

from importlib.util import find_spec

import pytest
from matrix_kit import shallow

from edgevit.verbs.export import export_source, make_plan
from edgevit.zoo.registry import list_models, model_info

pytestmark = pytest.mark.slow

#: The cheapest variant of each family.
FAMILIES = [
    "ceit_tiny", "cvt_13+sima", "deepvit_tiny", "deit_tiny", "deit_tiny+la", "deit_tiny+sima",
    "efficientformerv2_l", "efficientvit_m0", "elevit_noff", "hvt_small_4", "lavit_t", "pvt_tiny",
    "soft_tiny", "swiftformer_l3", "swin_tiny", "ccn_cifar10", "cvp_cifar10", "levil_cifar10",
    "pin_cifar10", "hybrid_rope_vil_cifar10", "fnet_cifar10", "xcit_tiny_20_p16",
]  # fmt: skip
#: Lowering for ExecuTorch goes by the number of operators, and takes minutes for the deep ones.
SHALLOW = [
    ("deit_tiny", 64), ("deit_tiny+sima", 64), ("efficientvit_m0", 64), ("elevit", 64),
    ("elevit_noff", 64), ("pvt_tiny", 64), ("swiftformer_l3", 64), ("cvp_cifar10", None),
    ("levil_cifar10", None), ("hybrid_rope_vil_cifar10", None), ("fnet_cifar10", None),
]  # fmt: skip


def proved(name, format_name, folder, image_size=None):
    """The file of a format, well inside the tolerance."""
    bundle = export_source(shallow(name, image_size), make_plan(format_name), folder)
    entry = bundle.artifact(format_name)
    assert entry["verification"]["status"] == "verified"
    for check in entry["verification"]["checks"]:
        assert check["comparisons"][0]["relative"] < check["tolerance"] / 4
    return entry


def test_each_family_is_there():
    wanted = {model_info(name).family for name in list_models()}
    assert {model_info(name).family for name in FAMILIES} == wanted


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs edgevit[openvino]")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_in_openvino(name, tmp_path):
    proved(name, "openvino", tmp_path)


@pytest.mark.skipif(find_spec("executorch") is None, reason="needs edgevit[executorch]")
@pytest.mark.parametrize(("name", "size"), SHALLOW)
def test_small_models_in_executorch(name, size, tmp_path):
    assert proved(name, "executorch", tmp_path, size)["facts"]["delegates"] > 0
