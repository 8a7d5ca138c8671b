"""The run over the whole zoo: it goes on where it was, and what breaks costs itself alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import zoo_matrix
from benchmarks.zoo_cell import Subject, failed, matrix_digest
from benchmarks.zoo_matrix import (
    chosen,
    is_current,
    merge,
    print_matrix,
    read_state,
    run,
    tasks,
    write_state,
)
from edgevit.errors import UnknownNameError, VerificationError
from edgevit.progress import Progress
from edgevit.source import BlockSpec, block_source

pytest.importorskip("onnxruntime")
ROOT = Path(zoo_matrix.__file__).resolve().parent.parent


@dataclass(frozen=True)
class Small(Subject):
    """A block that takes no time."""

    tokens: int = 4
    breaks: str = ""

    def source(self):
        if self.breaks == "dies":
            os._exit(9)
        if self.breaks == "hangs":
            time.sleep(600)
        if self.breaks == "fails":
            raise VerificationError(f"off, see {Path.home()}/x and {ROOT}/edgevit/y.py\nand more")
        return block_source(BlockSpec(self.name, self.tokens, 8, 2))


def small(name="elementwise", **how):
    return Small("block", name, **how)


class Notes(Progress):
    def __init__(self):
        self.notes, self.steps = [], []

    def advance(self, name, done, total, detail=""):
        self.steps.append(detail)

    def note(self, message):
        self.notes.append(message)


def examine(file, *subjects, **how):
    notes = Notes()
    return run(subjects, ["onnx"], file=file, jobs=1, progress=notes, **how), notes


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The state after one run of one block."""
    file = tmp_path_factory.mktemp("zoo") / "zoo.json"
    examine(file, small())
    return file.read_text()


@pytest.fixture
def file(done, tmp_path):
    """The same, to be changed; a cell that is made again loses its mark."""
    path = tmp_path / "zoo.json"
    state = json.loads(done)
    cell(state)["mark"] = True
    write_state(path, state)
    return path


def cell(state, name="elementwise"):
    return state[f"block {name}"]["formats"]["onnx"]


def change(file, **values):
    state = read_state(file)
    state["block elementwise"] |= values
    write_state(file, state)


def test_what_a_cell_says(done):
    found = cell(json.loads(done))
    assert found["status"] == "verified"
    assert found["bytes"] > 0
    assert found["checks"][0]["max_abs"] <= found["checks"][0]["tolerated"]
    assert str(ROOT) not in done
    assert "/tmp" not in done


def test_unchanged_is_not_looked_at(file):
    _, notes = examine(file, small())
    assert notes.notes == ["1 files, 1 unchanged; 1 at a time"]
    assert notes.steps == []


def test_again_means_again(file):
    state, _ = examine(file, small(), again=True)
    assert "mark" not in cell(state)


def test_code_that_leaves_the_graph_alone_makes_no_file_again(file):
    change(file, code="of another day")
    state, notes = examine(file, small())
    assert len(notes.steps) == 1
    assert cell(state)["mark"]
    assert state["block elementwise"]["code"] == matrix_digest()
    assert read_state(file) == state


def test_another_size_is_exported_anew_though_the_graph_is_the_same(file):
    before = read_state(file)["block elementwise"]["graph"]
    change(file, code="of another day")
    state, _ = examine(file, small(tokens=9))
    assert "mark" not in cell(state)
    assert cell(state)["status"] == "verified"
    assert state["block elementwise"]["graph"] == before


def test_another_graph_is_exported_anew(file):
    change(file, code="of another day")
    state = read_state(file)
    cell(state)["key"] = zoo_matrix.cell_key("0" * 64, "onnx")
    write_state(file, state)
    state, _ = examine(file, small())
    assert "mark" not in cell(state)
    assert cell(state)["status"] == "verified"


def test_a_new_graph_in_one_format_makes_the_others_stale(done):
    state = json.loads(done)
    entry = state["block elementwise"]
    entry["formats"]["coreml"] = {
        "status": "reference",
        "key": zoo_matrix.cell_key(entry["graph"], "coreml"),
        "inputs": [],
    }
    for name in ("onnx", "coreml"):
        assert is_current(entry, name, matrix_digest())
        assert not is_current(entry, name, "of another day")
    fresh = {"graph": "0" * 64, "code": matrix_digest(), "formats": {"onnx": cell(state)}}
    merge(state, "block elementwise", fresh)
    assert not is_current(state["block elementwise"], "coreml", matrix_digest())


def test_other_tools_make_a_cell_stale(done, monkeypatch):
    entry = json.loads(done)["block elementwise"]
    versions = zoo_matrix.tool_versions() | {"onnxruntime": "99"}
    monkeypatch.setattr(zoo_matrix, "tool_versions", lambda: versions)
    assert not is_current(entry, "onnx", matrix_digest())


def test_what_breaks_costs_itself_alone_and_is_tried_again(tmp_path):
    file = tmp_path / "zoo.json"
    broken = [small("elu", breaks="dies"), small("sima", breaks="fails")]
    state, notes = examine(file, *broken, small())
    assert cell(state)["status"] == "verified"
    assert cell(state, "elu")["reason"] == "its process died: exit code 9"
    assert cell(state, "sima")["reason"] == "off, see ~/x and edgevit/y.py"
    assert sum("sima" in note for note in notes.notes) == 1
    assert print_matrix(state, [*broken, small()], ["onnx"]) == 2
    state, notes = examine(file, small("elu"), small())
    assert len(notes.steps) == 1
    assert cell(state, "elu")["status"] == "verified"
    assert cell(state, "sima")["status"] == "failed"


def test_what_hangs_is_ended(tmp_path):
    state, _ = examine(tmp_path / "zoo.json", small(breaks="hangs"), patience_s=6)
    assert cell(state)["reason"] == "not done after 6 s"


def test_a_broken_run_does_not_lose_what_other_formats_found(file):
    change(file, code="of another day")
    state = run([small(breaks="dies")], ["coreml"], file=file, jobs=1)
    assert cell(state)["mark"]
    assert state["block elementwise"]["code"] == "of another day"


def test_counts_that_are_off_are_an_error(done, capsys):
    state = json.loads(done)
    assert print_matrix(state, [small()], ["onnx"]) == 0
    state["block elementwise"]["counts"]["off"] = "registered are 1 and 2"
    assert print_matrix(state, [small()], ["onnx"]) == 1
    assert "counts are off: registered are 1 and 2" in capsys.readouterr().out


def test_models_come_in_the_first_format_before_anything_else():
    found = tasks([small("elu"), Subject("model", "a"), Subject("model", "b")], ["onnx", "tflite"])
    words = [f"{subject.name} {name}" for subject, name in found]
    assert words == ["a onnx", "b onnx", "elu onnx", "elu tflite", "a tflite", "b tflite"]


def test_models_that_are_gone_leave_the_state(file):
    state = read_state(file)
    state["a_model_of_old"] = state["block elementwise"]
    write_state(file, state)
    assert set(examine(file, small())[0]) == {"block elementwise"}


def test_the_file_has_a_line_a_cell_in_order(done, tmp_path):
    state = json.loads(done)
    one = state["block elementwise"]
    both = {"zz": one, "aa": one | {"formats": {"tflite": cell(state), "onnx": cell(state)}}}
    write_state(tmp_path / "a.json", both)
    text = (tmp_path / "a.json").read_text()
    assert re.findall(r'^ *"(\w+)":', text, re.MULTILINE) == ["aa", "onnx", "tflite", "zz", "onnx"]
    assert read_state(tmp_path / "a.json") == both


def test_names_and_wildcards():
    assert [s.key for s in chosen(["xca", "efficientvit_m0"])] == ["block xca", "efficientvit_m0"]
    assert len(chosen(["efficientvit_*"])) == 8
    with pytest.raises(UnknownNameError) as caught:
        chosen(["efficientvit_m0", "deit_tinny"])
    assert "deit_tiny" in caught.value.hint


def test_a_reason_is_one_line_without_paths(tmp_path):
    assert failed(ValueError())["reason"] == "ValueError"
    assert str(tmp_path) not in failed(OSError(f"no room in {tmp_path}/model.onnx"))["reason"]


def command(*arguments):
    return [sys.executable, "-m", "benchmarks.zoo_matrix", *arguments]


def test_wrong_names_on_the_command_line():
    done = subprocess.run(command("deit_tinny"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown model or block 'deit_tinny'; did you mean deit_tiny" in done.stderr
    done = subprocess.run(command("--format", "onx"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean onnx?" in done.stderr


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path):
    file = tmp_path / "zoo.json"
    names = ["el*wise", "s*max", "sima", "xca"]
    run_it = command(*names, "--format", "onnx", "--jobs", "1", "--state", str(file))
    process = subprocess.Popen(run_it, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert "0 unchanged" in process.stderr.readline()
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    before = read_state(file)
    assert 1 <= len(before) < len(chosen(names))
    done = subprocess.run(run_it, cwd=ROOT, capture_output=True, text=True)
    assert f"{len(before)} unchanged" in done.stderr
    after = read_state(file)
    assert {name: after[name] for name in before} == before
    assert done.returncode == 0, done.stdout
    assert "block xca" in done.stdout
