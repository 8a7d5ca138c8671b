"""One small EleViT through every format, as a user exports it."""

import pytest

from edgevit.artifacts import verify_bundle
from edgevit.bundle import Bundle
from edgevit.errors import VerificationError
from edgevit.verbs.export import export

pytestmark = pytest.mark.slow

SMALL = {
    "image_size": 64,
    "model_options": {"widths": (16, 24, 32), "depths": (1, 1, 1), "stem": (8, 8)},
}
PROVED = {"onnx": "verified", "coreml": "reference", "tflite": "verified", "torch": "verified"}


@pytest.mark.parametrize("name", ["elevit", "elevit_qkdot_fvdot_noff"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_every_format_is_proved(tmp_path, name, activation):
    bundle = export(name, formats=list(PROVED), output=tmp_path, activation=activation, **SMALL)
    found = {f: e["verification"]["status"] for f, e in bundle.manifest["artifacts"].items()}
    assert found == PROVED
    for entry in bundle.manifest["artifacts"].values():
        for check in entry["verification"]["checks"]:
            # Well inside the tolerance, or the tolerance says nothing.
            assert check["comparisons"][0]["relative"] < check["tolerance"] / 4
    again = verify_bundle(Bundle.open(bundle.path))
    assert {f: r[0].status for f, r in again.items()} == PROVED


@pytest.mark.parametrize("axis", ["space", "channel"])
def test_the_other_softmax_axes_convert_too(tmp_path, axis):
    options = {**SMALL, "model_options": {**SMALL["model_options"], "softmax_axis": axis}}
    bundle = export("elevit", formats=["onnx", "coreml", "tflite"], output=tmp_path, **options)
    for entry in bundle.manifest["artifacts"].values():
        assert entry["verification"]["status"] in ("verified", "reference")


@pytest.mark.parametrize("name", ["fnet_cifar10", "hybrid_fnet_tinyimagenet"])
def test_what_overflows_in_half_precision_stays_in_fp32_without_being_asked(tmp_path, name):
    bundle = export(name, formats="coreml", output=tmp_path)
    facts = bundle.artifact("coreml")["facts"]
    assert facts["kept_fp32"]["ops"] == {"layer_norm": 9}
    assert len(facts["kept_fp32"]["tensors"]) == 18
    assert {r.status for r in verify_bundle(bundle)["coreml"]} == {"reference"}
    with pytest.raises(VerificationError, match="does not agree"):
        export(name, formats="coreml", output=tmp_path, options={"coreml": {"keep_fp32": ""}})


def test_a_file_kept_from_an_earlier_export_can_still_be_checked(tmp_path):
    export("elevit", formats="coreml", output=tmp_path, **SMALL)
    bundle = export("elevit", formats="torch", output=tmp_path, **SMALL)
    assert set(bundle.formats) == {"torch", "coreml"}
    assert {r.status for r in verify_bundle(bundle)["coreml"]} == {"reference"}
