"""Blocks of TFLite files: found by their weights, left out, and run by the real interpreter."""

from pathlib import Path

import numpy as np
import pytest

import edgevit
from devices.base import Schedule
from edgevit.bundle import Bundle
from edgevit.errors import UsageError
from edgevit.profiling.ablation import CannotLeaveOutError
from edgevit.profiling.ablation_tflite import TFLiteBlocks, layers_of_weights
from edgevit.verbs.profile import profile

pytestmark = pytest.mark.slow
QUICK = Schedule(runs=30, warmup_runs=1, warmup_seconds=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("profiled")
    return edgevit.export("vit_cifar10", formats=["onnx", "tflite"], output=folder / "vit")


def run(file: Path) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    interpreter.allocate_tensors()
    taken = interpreter.get_input_details()[0]
    noise = np.random.default_rng(0).standard_normal(taken["shape"], dtype=np.float32)
    interpreter.set_tensor(taken["index"], noise)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_blocks_are_those_of_the_onnx_file(bundle: Bundle, tmp_path: Path) -> None:
    blocks = TFLiteBlocks(
        bundle.path / "model.tflite", layers_of_weights(bundle.path / "model.onnx")
    )
    assert [n for n in blocks.names if n.startswith("layers.")] == [f"layers.{i}" for i in range(4)]
    blocks.write_whole(tmp_path / "whole.tflite")
    blocks.write_without("layers.2", tmp_path / "shorter.tflite")
    whole, shorter = run(tmp_path / "whole.tflite"), run(tmp_path / "shorter.tflite")
    assert np.array_equal(whole, run(bundle.path / "model.tflite"))
    assert shorter.shape == whole.shape
    assert np.abs(shorter - whole).max() > 1e-3
    sizes = [(tmp_path / f"{name}.tflite").stat().st_size for name in ("whole", "shorter")]
    assert sizes[1] < 0.85 * sizes[0]
    with pytest.raises(CannotLeaveOutError, match=r"shape|output"):
        blocks.write_without("head", tmp_path / "headless.tflite")


def test_a_profile_says_that_it_left_blocks_out(bundle: Bundle) -> None:
    made = profile(bundle, format="tflite", schedule=QUICK, peak=False, output=None)
    assert made.method == "block ablation"
    assert not made.ops
    assert any("no profiler" in note for note in made.notes)
    assert len([b for b in made.blocks if b.takes_ms is not None]) >= 3


def test_without_the_onnx_file_nobody_knows_the_blocks(tmp_path: Path, bundle: Bundle) -> None:
    alone = Bundle(bundle.path, {**bundle.manifest, "artifacts": {
        "tflite": bundle.manifest["artifacts"]["tflite"]}})  # fmt: skip
    with pytest.raises(UsageError, match="no onnx file"):
        profile(alone, format="tflite", schedule=QUICK, peak=False, output=None)
