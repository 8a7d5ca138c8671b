"""Profiles of real files by real runtimes on this machine."""

from dataclasses import replace
from pathlib import Path

import pytest

import edgevit
from devices.base import Schedule
from devices.local import LocalDevice
from edgevit.bundle import Bundle
from edgevit.errors import CheckError, OptionError, UnavailableError, UnknownNameError, UsageError
from edgevit.measure.profile import Profile, read_profiles
from edgevit.profiling.summary import exp_shares, shares
from edgevit.verbs import peak as peaks
from edgevit.verbs.profile import profile

QUICK = Schedule(min_runs=4, min_seconds=0, warmup_runs=1, warmup_seconds=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("profiled")
    return edgevit.export("vit_cifar10", formats=["onnx", "torch"], output=folder / "vit")


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def profiled(bundle: Bundle, **options: object) -> Profile:
    given = {"schedule": QUICK, "peak": False, "output": None, **options}
    return profile(bundle.path, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("format_name", ["onnx", "torch"])
def test_operators_come_with_their_place(bundle: Bundle, format_name: str) -> None:
    made = profiled(bundle, format=format_name)
    blocks = [s for s in shares(made, "block") if s.name.startswith(("layers.", "blocks."))]
    assert made.verification.status == "verified"
    assert len(blocks) == len({s.name for s in blocks}) > 3
    assert len(made.plain_ns) == len(made.profiled_ns) >= 4
    assert all(len(op.samples_ns) == len(made.profiled_ns) for op in made.ops)
    assert exp_shares(made)["softmax"] > 0
    unknown = sum(op.median_ms for op in made.ops if op.layer is None)
    assert unknown < 0.02 * sum(op.median_ms for op in made.ops)
    assert 0 < made.ops_ms <= (made.profiled_ms or 0) * 1.05


def test_both_runtimes_count_the_same_products(bundle: Bundle) -> None:
    onnx, torch = (profiled(bundle, format=name) for name in ("onnx", "torch"))
    macs = bundle.manifest["model"]["macs"]
    for made in (onnx, torch):
        products = sum(op.flops for op in made.ops if op.kind == "product")
        assert products == pytest.approx(2 * macs, rel=0.03)


def test_fused_operators_name_all_their_sources(bundle: Bundle) -> None:
    made = profiled(bundle, format="onnx")
    gelus = [op for op in made.ops if op.op == "Gelu"]
    assert gelus
    assert all(any("/Erf" in source for source in op.sources) for op in gelus)
    assert all(op.layer and op.placed == "tensor" for op in gelus)


def test_blocks_are_left_out(bundle: Bundle) -> None:
    made = profiled(bundle, ablate="block", schedule=replace(QUICK, runs=30))
    left = [block for block in made.blocks if block.takes_ms is not None]
    reasons = [block.reason for block in made.blocks if block.takes_ms is None]
    assert len(left) > 3
    assert all(block.rounds >= 6 for block in left)
    assert reasons
    assert all(reasons)


def test_a_profile_is_written(bundle: Bundle, tmp_path: Path) -> None:
    made = profiled(bundle, output=tmp_path / "out")
    assert read_profiles(tmp_path / "out") == [made]


def test_the_peak_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    roof = peaks.peak("local", threads=1)
    assert roof.flops_per_s > roof.bytes_per_s > 1e8
    assert peaks.peak("local", threads=1) == roof
    assert profiled(bundle, peak=True).roof == roof
    assert peaks.peak("local", threads=1, fresh=True) != roof


def test_a_runtime_without_profiler_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevit.verbs import profile as verb

    real = LocalDevice.open

    class Session:
        def __init__(self, session):  # type: ignore[no-untyped-def]
            self.real = session

        def __enter__(self):  # type: ignore[no-untyped-def]
            return self

        def __exit__(self, *_):  # type: ignore[no-untyped-def]
            self.real.close()

        def push(self, folder):  # type: ignore[no-untyped-def]
            return self.real.push(folder)

        def run(self, job):  # type: ignore[no-untyped-def]
            yield {"event": "error", "id": "x", "kind": "unsupported", "message": "none here"}

    monkeypatch.setattr(LocalDevice, "open", lambda self: Session(real(self)))
    monkeypatch.setattr(verb, "ABLATABLE", ())
    with pytest.raises(UnavailableError, match="none here"):
        profiled(bundle)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "ort"}, UnknownNameError, "ort"),
        ({"format": "coreml"}, UsageError, "does not run coreml"),
        ({"format": "tflite"}, UsageError, "no tflite file"),
        ({"ablate": "op"}, OptionError, "op"),
        ({"device": "nowhere"}, UsageError, "nowhere"),
    ],
)
def test_bad_input(
    bundle: Bundle, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        profiled(bundle, **options)


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no bundle"):
        profile(str(tmp_path / "none"), output=None)


def test_a_device_without_the_runtime(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not on this board')")
    device = LocalDevice(environment={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(UnavailableError, match="not on this board"):
        profiled(bundle, device=device)


def test_a_file_that_computes_something_else_is_not_profiled(
    bundle: Bundle, tmp_path: Path
) -> None:
    import shutil

    from edgevit.bundle import hash_file

    copy = tmp_path / "other"
    shutil.copytree(bundle.path, copy)
    import json

    import numpy as np

    golden = dict(np.load(copy / "golden.npz"))
    golden = {k: v + 1 if k.startswith("output.") else v for k, v in golden.items()}
    np.savez_compressed(copy / "golden.npz", **golden)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["golden.npz"]["sha256"] = hash_file(copy / "golden.npz")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckError):
        profile(copy, schedule=QUICK, peak=False, output=None)
