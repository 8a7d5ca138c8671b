"""From a bare board to a table, with the commands that a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arm64.board import Board

pytestmark = pytest.mark.slow

Completed = subprocess.CompletedProcess[str]
Edgevit = Callable[..., Completed]

BLOCK = ("--block", "sima", "--shape", "64,16", "--heads", "4")
SHORT = ("--seconds", "0.1", "--warmup", "0", "--no-memory")


@pytest.fixture
def bare_pi(arm64_ways: tuple[str, ...], tmp_path: Path) -> Iterator[Board]:
    """A Raspberry Pi with what its system brings, no runtime, and no way to any server of names."""
    folder = tmp_path / "board"
    folder.mkdir()
    with Board(folder, bare=True) as board:
        yield board


@pytest.fixture
def edgevit(at_home: Path, tmp_path: Path) -> Edgevit:
    """The command, in a folder of the test's own."""

    def run(*words: str) -> Completed:
        return subprocess.run(
            [sys.executable, "-m", "edgevit", *words],
            cwd=tmp_path, env={**os.environ, "COLUMNS": "200"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip

    return run


def test_from_a_bare_board_to_a_table(bare_pi: Board, edgevit: Edgevit, at_home: Path) -> None:
    bare_pi.introduce(at_home)
    target = f"{bare_pi.user}@127.0.0.1:{bare_pi.port}"
    added = edgevit("devices", "add", "pi", "-p", "rpi4", "--host", target,
                    "--identity", str(bare_pi.identity))  # fmt: skip
    assert added.returncode == 0, added.stderr

    first = edgevit("bench", *BLOCK, *SHORT, "--device", "pi", "--format", "onnx")
    assert first.returncode != 0
    assert "No module named 'onnxruntime'" in first.stdout
    looked = edgevit("devices", "check", "pi")
    assert looked.returncode == 3
    assert "edgevit devices setup pi" in looked.stdout

    # The wheels come from here; this is the one step that needs a network, if they are not kept.
    made = edgevit("devices", "setup", "pi", "--json")
    if made.returncode and "cannot be fetched" in made.stderr:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["proved"] == ["numpy", "onnxruntime", "ai_edge_litert.interpreter"]
    assert told["versions"]["onnxruntime"] == "1.31.1"
    assert told["versions"]["ai-edge-litert"] == "2.3.0"
    again = edgevit("devices", "setup", "pi", "--json")
    assert json.loads(again.stdout)["done"] == []

    looked = edgevit("devices", "check", "pi", "--json")
    assert looked.returncode == 0, looked.stdout
    found = {one["what"]: one for one in json.loads(looked.stdout)["findings"]}
    assert found["python"]["text"].endswith("/home/pi/.cache/edgevit/venv/bin/python")
    assert found["onnxruntime"]["level"] == found["tflite"]["level"] == "ok"

    done = edgevit("bench", *BLOCK, *SHORT, "--device", "pi", "--json")
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (at_home.parent / "results").glob("*.json")]
    assert {result["subject"]["format"] for result in results} == {"onnx", "tflite"}
    for result in results:
        assert result["status"] in ("ok", "unstable"), result["reason"]
        assert result["verification"]["status"] == "verified"
        # Nobody said that it is none: its own agent saw it.
        assert result["context"]["device"]["emulated"] is True

    table = edgevit("table", "results", "--include", "all", "--format", "json")
    assert table.returncode == 0, table.stderr
    for row in json.loads(table.stdout)["rows"]:
        assert row["emulated"] is True
        assert row.get("median_ms") is None
