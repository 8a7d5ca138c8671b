"""Parity of a suite over SSH: how far off each file was on a board, as a share of its scale.

    python -m benchmarks.board_suite loopback FOLDER [--suite NAME] [--limit SECONDS]
    python -m benchmarks.board_suite arm64 FOLDER ...

``loopback`` is an SSH server on this machine, ``arm64`` the Raspberry Pi stand-in of the tests. The
commands are those of a user: `edgevit devices add`, then one `edgevit bench` a subject, so that one
that takes too long costs itself alone. Files and results stay in FOLDER; the same command again
does only what is not there yet. What computes least comes first, and times mean nothing here: none
are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import edgevit
from benchmarks.boards import kit
from edgevit.errors import EdgevitError
from edgevit.source import BlockSpec
from edgevit.verbs.suites import DEFAULT, find_suite

FORMAT = "onnx"
#: One timed run, after one first inference and those of the golden samples.
SHORT = ("--runs", "1", "--warmup", "0", "--no-memory", "--threads", "1")
#: Seconds that a subject has to end in after Ctrl-C.
GRACE_S = 60


@contextlib.contextmanager
def loopback(folder: Path, home: Path) -> Iterator[list[str]]:
    """A server of this machine, and what tells `edgevit devices add` of it."""
    with kit().Sshd(folder / "sshd") as sshd:
        (home / ".ssh" / "known_hosts").write_text(sshd.host_key)
        yield [
            "--profile", "generic-x86-64", "--host", f"127.0.0.1:{sshd.port}",
            "--identity", str(sshd.key), "--python", sys.executable,
        ]  # fmt: skip


@contextlib.contextmanager
def arm64(folder: Path, home: Path) -> Iterator[list[str]]:
    """The Raspberry Pi stand-in, likewise."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "standins"))
    from arm64.board import Board

    with Board(folder) as board:
        host = board.introduce(home)
        yield [
            "--profile", host.profile, "--host", f"{host.user}@{host.address}:{host.port}",
            "--identity", str(host.identity), "--emulated",
        ]  # fmt: skip


BOARDS = {"loopback": loopback, "arm64": arm64}


def label(subject: str | BlockSpec) -> str:
    return subject.label if isinstance(subject, BlockSpec) else subject


def export(subject: str | BlockSpec, folder: Path) -> Path:
    """The subject's bundle in that folder, made if it is not there."""
    found = sorted(folder.glob("*/manifest.json"))
    if found:
        return found[0].parent
    return edgevit.export(subject, formats=[FORMAT], output=folder).path


def bench(bundle: Path, name: str, output: Path, limit: float) -> str | None:
    """Bench a bundle on the board; why there is no result, or None."""
    command = [
        sys.executable, "-m", "edgevit", "bench", str(bundle), "--device", name, *SHORT,
        "-o", str(output),
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        said = child.communicate(timeout=limit)[1]
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=GRACE_S)
        return f"stopped after {limit:.0f} s"
    last = said.decode().strip().splitlines()[-1:]
    return None if child.returncode == 0 else " ".join(["failed:", *last])


def result_of(output: Path) -> dict[str, Any] | None:
    """What was found out before: a file that was checked, whatever became of it."""
    for path in output.glob("*.json"):
        result: dict[str, Any] = json.loads(path.read_text())
        if result["verification"]["status"] in ("verified", "mismatch"):
            return result
    return None


def worst(result: Mapping[str, Any]) -> float:
    """The largest deviation as a share of its output's scale."""
    return max(
        output["max_abs"] / output["scale"] if output["scale"] else float("inf")
        for output in result["verification"]["outputs"]
    )


def row(result: Mapping[str, Any]) -> str:
    verification = result["verification"]
    cosine = min(output["cosine"] for output in verification["outputs"])
    return (
        f"{verification['status']} | {worst(result):.1e} | {verification['tolerance']:.0e} | "
        f"{1 - cosine:.1e} |"
    )


def exported(
    subjects: Sequence[str | BlockSpec], folder: Path
) -> Iterator[tuple[str, Path | EdgevitError]]:
    """Names of subjects, and their bundles or why there is none."""
    for subject in subjects:
        name = label(subject)
        try:
            yield name, export(subject, folder / name.replace(":", "-"))
        except EdgevitError as error:
            yield name, error


def macs(bundle: Path | EdgevitError) -> int:
    """What an inference costs; nothing if there is no file."""
    if isinstance(bundle, EdgevitError):
        return 0
    return int(json.loads((bundle / "manifest.json").read_text())["model"]["macs"])


def work(
    board: str, subjects: Sequence[str | BlockSpec], bundles: Path, results: Path, limit: float
) -> None:
    print("| subject | status | worst share of scale | tolerated | 1 - cosine |")
    print("|---|---|---|---|---|", flush=True)
    for name, bundle in sorted(exported(subjects, bundles), key=lambda pair: macs(pair[1])):
        if isinstance(bundle, EdgevitError):
            print(f"| {name} | not exported: {bundle} | | | |", flush=True)
            continue
        output, why, start = results / bundle.parent.name, None, time.monotonic()
        if result_of(output) is None:
            why = bench(bundle, board, output, limit)
        result = result_of(output)
        shown = row(result) if result else f"{why} | | | |"
        print(f"| {name} | {shown}", flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("board", choices=BOARDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suite", default=DEFAULT)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a subject")
    given = parser.parse_args()
    # A shell that starts this in the background has Ctrl-C ignored, and so would the benches.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = given.folder.resolve()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        # The user of these boards has a home and a configuration of their own.
        home = Path(name) / "user"
        (home / ".ssh").mkdir(parents=True)
        os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        os.environ |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
        os.environ.pop("SSH_AUTH_SOCK", None)
        (Path(name) / "board").mkdir()
        flags = stack.enter_context(BOARDS[given.board](Path(name) / "board", home))
        add = [sys.executable, "-m", "edgevit", "devices", "add", given.board, *flags]
        subprocess.run(add, check=True, stdout=subprocess.DEVNULL)
        subjects = find_suite(given.suite).subjects
        work(given.board, subjects, folder / "bundles", folder / given.board, given.limit)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
