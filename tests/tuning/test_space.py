"""What may be tried, from general rules."""

from __future__ import annotations

from devices.profile import load_profile
from edgevit.passes import EXACT, TIDYING
from edgevit.tuning.space import Candidate, pass_sets, usable_formats, variants


def test_pass_sets_leave_out_one() -> None:
    sets = pass_sets()
    assert next(iter(sets)) == "default"
    assert sets["default"] == EXACT
    assert sets["none"] == ()
    for name in EXACT:
        if name in TIDYING:
            assert f"-{name}" not in sets
        else:
            assert set(EXACT) - set(sets[f"-{name}"]) == {name}


def test_what_is_left_out_has_a_reason() -> None:
    usable, left = usable_formats(load_profile("jetson-nano"))
    assert "onnx" in usable
    assert "jetson-nano has no runtime for it" in left["tflite"] or "tflite" in usable
    assert not set(usable) & set(left)


def test_variants_differ_in_one_thing() -> None:
    found = variants(Candidate("onnx"), "onnxruntime", ["fold_batchnorm"], (1, 2))
    labels = [c.label for c in found]
    assert len(set(labels)) == len(labels)
    assert "onnx default 1t" not in labels
    assert "onnx default 2t" in labels
    assert "onnx default optimization=basic 1t" in labels
    assert "onnx -fold_batchnorm 1t" in labels
    # It found nothing, so leaving it out changes nothing.
    assert "onnx -residual_into_depthwise 1t" not in labels
    plain = [c.plainness + (c.threads != 1) for c in found]
    assert set(plain) == {1}
