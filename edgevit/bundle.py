"""A bundle: the folder that an export leaves behind, and that travels to a device.

    elevit/
      model.onnx  model.mlpackage/  model.tflite  model.pt2     the formats asked for
      golden.npz                                                inputs and expected outputs
      manifest.json                                             what it is, hashes, checks

A bundle appears whole or not at all: it is written beside its place under another name and then
renamed. ``manifest.schema.json`` describes the manifest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import BundleError, OutputError, UsageError

__all__ = [
    "GOLDEN",
    "MANIFEST",
    "SCHEMA",
    "SCHEMA_VERSION",
    "Bundle",
    "hash_file",
    "held",
    "write_bundle",
]

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("manifest.schema.json")
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"


def hash_file(path: Path) -> str:
    """sha256 of a file's content; of a folder, over its files' names and contents."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if _HAS_DIGEST else _hash(stream)


_HAS_DIGEST = hasattr(hashlib, "file_digest")  # Python 3.11


def _hash(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Args:
        path: the folder.
        manifest: content of ``manifest.json``.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle and check every file's hash.

        Raises:
            UsageError: there is no bundle at that place.
            BundleError: the manifest is damaged or of another schema, or a file is missing,
                changed or not in the manifest.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            raise UsageError(
                f"{folder} is no bundle: it has no {MANIFEST}",
                hint="give the folder that `edgevit export` wrote",
            )
        bundle = cls(folder, _read_manifest(folder / MANIFEST))
        bundle._check_hashes()
        return bundle

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.manifest["model"]["name"])

    @property
    def formats(self) -> list[str]:
        """The formats in the bundle."""
        return list(self.manifest["artifacts"])

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest, which holds the hash of everything else."""
        return hash_file(self.path / MANIFEST)

    def artifact(self, format_name: str) -> Mapping[str, Any]:
        """The manifest's entry of one format.

        Raises:
            UsageError: the bundle does not have that format.
        """
        artifacts: Mapping[str, Any] = self.manifest["artifacts"]
        if format_name not in artifacts:
            raise UsageError(
                f"{self.path} has no {format_name} file, only {', '.join(artifacts)}",
                hint=f"edgevit export {self.name} --format {format_name}",
            )
        entry: Mapping[str, Any] = artifacts[format_name]
        return entry

    def golden(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Inputs and expected outputs by name, samples along the first axis."""
        return self.golden_arrays("input"), self.golden_arrays("output")

    def golden_arrays(self, kind: str) -> dict[str, NDArray[Any]]:
        """Golden arrays of a kind by name; empty if the bundle has none of it.

        Args:
            kind: ``"input"``, ``"output"``, or ``"half_weights_<format>"``, the outputs of the
                program with that rounded to fp16 what the format's file rounds.
        """
        with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
            names = [name for name in arrays.files if name.startswith(f"{kind}.")]
            return {name.removeprefix(f"{kind}."): arrays[name] for name in names}

    def _check_hashes(self) -> None:
        wrong = []
        for name, entry in self.manifest["files"].items():
            file = self.path / name
            if not file.exists():
                wrong.append(f"{name} is missing")
            elif hash_file(file) != entry["sha256"]:
                wrong.append(f"{name} has changed since it was written")
        if wrong:
            raise BundleError(
                f"bundle {self.path} is damaged or edited: {'; '.join(wrong)}",
                hint="export it again; nothing in it can be trusted",
            )


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} is damaged: {error}", hint="export the bundle again") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version!r}; this edgevit reads {SCHEMA_VERSION}",
            hint="export the bundle again, or use the edgevit that wrote it",
        )
    if missing := {"model", "artifacts", "files"} - manifest.keys():
        raise BundleError(f"{file} lacks {', '.join(sorted(missing))}")
    return dict(manifest)


def save_golden(
    folder: Path,
    inputs: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    half_weights: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
) -> None:
    """Write ``golden.npz``: arrays ``<kind>.<name>``, samples first; see ``golden_arrays``."""
    arrays = {f"input.{n}": a for n, a in inputs.items()}
    arrays |= {f"output.{n}": a for n, a in outputs.items()}
    for name, rounded in (half_weights or {}).items():
        arrays |= {f"half_weights_{name}.{n}": a for n, a in rounded.items()}
    np.savez_compressed(folder / GOLDEN, **arrays)  # type: ignore[arg-type]


def carry_golden(old: Bundle, folder: Path, formats: Sequence[str]) -> None:
    """Add what an earlier bundle of the same graph has of outputs with rounded weights.

    Args:
        old: the earlier bundle.
        folder: of the new one, with its golden arrays.
        formats: whose files are taken over.
    """
    kinds = {f"half_weights_{name}" for name in formats}
    with np.load(old.path / GOLDEN) as before, np.load(folder / GOLDEN) as now:
        carried = {n: before[n] for n in before.files if n.partition(".")[0] in kinds}
        arrays = {n: now[n] for n in now.files} | carried
    if carried:
        np.savez_compressed(folder / GOLDEN, **arrays)


@contextlib.contextmanager
def write_bundle(destination: str | Path) -> Iterator[Path]:
    """A folder to fill; it takes the destination's place if the block ends well, else it goes.

    Raises:
        OutputError: the destination is a file, cannot be written, the disk is full, or another
            export is writing there.
    """
    target = Path(destination).resolve()
    _check_destination(target)
    with held(target, "export"):
        for leftover in target.parent.glob(f".{target.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with _disk_errors(target):
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            with _disk_errors(target):
                yield partial
                partial.chmod(0o755)  # mkdtemp makes it private
                _replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: Path, manifest: dict[str, Any], files: Mapping[str, Path]) -> None:
    """Hash the files and write ``manifest.json``, the last file of a bundle."""
    entries = {n: {"sha256": hash_file(p), "bytes": size_of(p)} for n, p in files.items()}
    text = json.dumps(manifest | {"files": entries}, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _check_destination(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; a bundle is a folder", hint="choose another -o")
    foreign = target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file()
    if foreign:
        raise OutputError(
            f"{target} holds something that is no bundle, and is not overwritten",
            hint="choose another -o, or remove the folder",
        )
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """What the disk refuses, in words."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise OutputError(
            f"cannot write {target}: {os.strerror(error.errno).lower()}",
            hint="nothing was left behind; choose another -o or make room",
        ) from error


_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EEXIST, errno.EFBIG, errno.ENAMETOOLONG,
}  # fmt: skip


@contextlib.contextmanager
def held(target: Path, what: str) -> Iterator[None]:
    """Keep others from writing to a folder meanwhile.

    Args:
        target: the folder, resolved.
        what: is writing there (``"export"``); the others are told.

    Raises:
        OutputError: somebody else is writing there.
    """
    from filelock import FileLock, Timeout
    from platformdirs import user_cache_path

    # The lock lives in the cache, not beside the bundle, so that nothing is left in the output.
    name = hashlib.sha256(str(target).encode()).hexdigest()[:24]
    locks = user_cache_path("edgevit") / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"another {what} is writing {target}", hint="wait for it, or choose another -o"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _replace(partial: Path, target: Path) -> None:
    """Put the new folder in place of the old one; if that fails, the old one stays."""
    retired = partial.with_name(partial.name + "-old")
    if target.exists():
        target.rename(retired)
    try:
        partial.rename(target)
    except OSError:
        if retired.exists():
            retired.rename(target)
        raise
    shutil.rmtree(retired, ignore_errors=True)
