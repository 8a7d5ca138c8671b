"""Backbones for dense prediction: pyramids of maps as files with several outputs."""

import numpy as np
import pytest

from edgevit.artifacts import verify_bundle
from edgevit.verbs.export import export

PYRAMID = {"widths": (8, 16, 24, 32), "heads": (1, 2, 3, 4), "expansions": (2, 2, 2, 2)}
XCIT = {"width": 16, "heads": 2, "depth": 2}
#: A small one of each family, with channels and scales of its maps.
FAMILIES = {
    "efficientvit_m0": (
        {"widths": (32, 48, 64), "depths": (1, 1, 1)},
        [(32, 16), (48, 32), (64, 64)],
    ),
    "pvt_tiny": (PYRAMID | {"depths": (1, 1, 1, 1)}, [(8, 4), (16, 8), (24, 16), (32, 32)]),
    "lavit_t": (
        PYRAMID | {"depths": (1, 1, 2, 2), "less_from": (0, 0, 2, 2)},
        [(8, 4), (16, 8), (24, 16), (32, 32)],
    ),
    "xcit_tiny_12_p8": (XCIT, [(16, s) for s in (4, 8, 16, 32)]),
    "xcit_small_12_p16+sima": (XCIT, [(16, s) for s in (4, 8, 16, 32)]),
    "swin_tiny": (
        {"width": 12, "heads": (1, 2, 3, 4), "window": 3, "depths": (2, 2, 2, 1)},
        [(12, 4), (24, 8), (48, 16), (96, 32)],
    ),
}
PROVED = {"onnx": "verified", "coreml": "reference", "tflite": "verified"}


def exported(name, formats, folder, size):
    """A bundle of a small model with features, its outputs and status checked."""
    options, maps = FAMILIES[name]
    bundle = export(
        name,
        formats=formats,
        output=folder,
        image_size=size,
        model_options={"features": True, **options},
    )
    wanted = [[1, c, -(-size[0] // s), -(-size[1] // s)] for c, s in maps]
    for format_name in formats:
        entry = bundle.artifact(format_name)
        assert [out["shape"] for out in entry["outputs"]] == wanted
        assert entry["verification"]["status"] == PROVED[format_name]
        for check in entry["verification"]["checks"]:
            assert len(check["comparisons"]) == len(maps)
    return bundle


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pyramid_is_a_file_of_several_outputs(tmp_path, name):
    bundle = exported(name, ["onnx"], tmp_path, (64, 96))
    _, outputs = bundle.golden()
    assert list(outputs) == [f"output_{i}" for i in range(len(outputs))]
    for values in outputs.values():  # a map that hardly hears its picture proves nothing
        assert np.ptp(values, axis=0).max() > 0.01 * np.abs(values).max()
    assert [r.status for r in verify_bundle(bundle)["onnx"]] == ["verified"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_core_ml_and_tflite_have_them_too(tmp_path, name):
    exported(name, ["coreml", "tflite"], tmp_path, (128, 192))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(512, 512), (800, 1280)])
def test_sizes_for_detection_are_exported(tmp_path, size):
    exported("efficientvit_m0", ["onnx", "coreml"], tmp_path, size)
