import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from edgevit.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    Bundle,
    hash_file,
    save_golden,
    write_bundle,
    write_manifest,
)
from edgevit.errors import BundleError, OutputError, UsageError


def fill(folder, text="content"):
    (folder / "model.onnx").write_text(text)
    package = folder / "model.mlpackage" / "Data"
    package.mkdir(parents=True)
    (package / "weights.bin").write_bytes(b"\0" * 10)
    x = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    save_golden(folder, {"image": x}, {"logits": x * 2})
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": "tiny"},
        "artifacts": {"onnx": {"file": "model.onnx"}},
    }
    write_manifest(folder, manifest, {p.name: p for p in folder.iterdir()})


def write(target, text="content"):
    with write_bundle(target) as folder:
        fill(folder, text)
    return Bundle.open(target)


def write_and_raise(target, error, text):
    with write_bundle(target) as folder:
        fill(folder, text)
        raise error


def only(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_bundle_appears_whole(tmp_path):
    bundle = write(tmp_path / "out" / "tiny")
    assert only(tmp_path / "out") == ["tiny"]
    assert (bundle.name, bundle.formats) == ("tiny", ["onnx"])
    inputs, outputs = bundle.golden()
    np.testing.assert_array_equal(outputs["logits"], inputs["image"] * 2)
    assert len(bundle.digest) == 64


def test_a_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        write_and_raise(tmp_path / "tiny", RuntimeError, "new")
    assert only(tmp_path) == []


def test_an_interrupted_export_leaves_the_old_bundle(tmp_path):
    write(tmp_path / "tiny", "old")
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(tmp_path / "tiny", KeyboardInterrupt, "new")
    assert only(tmp_path) == ["tiny"]
    assert (Bundle.open(tmp_path / "tiny").path / "model.onnx").read_text() == "old"


def test_what_a_killed_export_left_is_cleaned_up(tmp_path):
    script = f"""
        import os, signal
        from edgevit.bundle import write_bundle
        with write_bundle({str(tmp_path / "tiny")!r}) as folder:
            (folder / "model.onnx").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode < 0
    assert any(n.startswith(".tiny.partial") for n in only(tmp_path))
    write(tmp_path / "tiny")
    assert only(tmp_path) == ["tiny"]


def test_replacing_a_bundle(tmp_path):
    write(tmp_path / "tiny", "old")
    write(tmp_path / "tiny", "new")
    assert (tmp_path / "tiny" / "model.onnx").read_text() == "new"


def test_two_exports_into_one_place(tmp_path):
    with write_bundle(tmp_path / "tiny") as folder:
        fill(folder)
        with (
            pytest.raises(OutputError, match="another export is writing"),
            write_bundle(tmp_path / "tiny"),
        ):
            pass
    Bundle.open(tmp_path / "tiny")


def test_the_destination_is_a_file(tmp_path):
    (tmp_path / "tiny").write_text("mine")
    with pytest.raises(OutputError, match="is a file"), write_bundle(tmp_path / "tiny"):
        pass
    assert (tmp_path / "tiny").read_text() == "mine"


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"), write_bundle(tmp_path / "out" / "tiny"):
        pass


def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="not overwritten"), write_bundle(tmp_path / "tiny"):
        pass


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root and is refused here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_keeps_the_old_bundle(small_disk):
    write(small_disk / "tiny", "old")
    with (
        pytest.raises(OutputError, match="no space left"),
        write_bundle(small_disk / "tiny") as folder,
    ):
        (folder / "model.onnx").write_bytes(b"x" * 2**20)
    assert only(small_disk) == ["tiny"]
    assert (Bundle.open(small_disk / "tiny").path / "model.onnx").read_text() == "old"


def test_a_read_only_place(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="read-only"), write_bundle(small_disk / "tiny"):
        pass


def test_a_folder_without_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; the read-only file system is tried instead")
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission denied"), write_bundle(tmp_path / "tiny"):
        pass


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "model.onnx").write_text("edited"), "model.onnx has changed"),
        (lambda b: (b / "golden.npz").unlink(), "golden.npz is missing"),
        (
            lambda b: (b / "model.mlpackage/Data/weights.bin").write_bytes(b"\0" * 9 + b"\1"),
            "model.mlpackage has changed",
        ),
        (lambda b: (b / MANIFEST).write_text("{"), "is damaged"),
        (lambda b: (b / MANIFEST).write_text('{"schema_version": 99}'), "schema version 99"),
        (lambda b: (b / MANIFEST).write_text('{"schema_version": 1}'), "lacks artifacts"),
        (lambda b: (b / MANIFEST).write_text("[]"), "schema version None"),
    ],
)
def test_a_damaged_bundle_is_refused(tmp_path, damage, message):
    path = write(tmp_path / "tiny").path
    damage(path)
    with pytest.raises(BundleError, match=message):
        Bundle.open(path)


def test_no_bundle_there(tmp_path):
    with pytest.raises(UsageError, match="is no bundle"):
        Bundle.open(tmp_path)


def test_a_format_that_the_bundle_lacks(tmp_path):
    with pytest.raises(UsageError, match="has no coreml file, only onnx"):
        write(tmp_path / "tiny").artifact("coreml")


def test_a_folders_hash_depends_on_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
    assert hash_file(tmp_path / "a") == hash_file(tmp_path / "b")
    (tmp_path / "b" / "file").rename(tmp_path / "b" / "other")
    assert hash_file(tmp_path / "a") != hash_file(tmp_path / "b")


def test_the_manifest_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"), write_bundle(tmp_path / "tiny") as folder:
        write_manifest(folder, {"drift": float("nan")}, {})
    assert json.dumps({}) == "{}"
