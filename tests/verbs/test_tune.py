"""Tuning with real exports and real agents, on a block so small that it takes seconds."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bench_kit import Board, Session, limited, modes

import edgevit.tuning.space as space
import edgevit.verbs.tune as tuning
from devices.base import Event, Job, Schedule
from edgevit.bundle import held
from edgevit.errors import DeviceError, OptionError, OutputError, UnavailableError, UnknownNameError
from edgevit.progress import Progress
from edgevit.source import BlockSpec, slug
from edgevit.tuning.space import Candidate
from edgevit.tuning.state import RACING, State, Trial
from edgevit.verbs import tune_files, tune_races
from edgevit.verbs.export import export
from edgevit.verbs.subjects import entries_of
from edgevit.verbs.tune import parse_budget, tune

BLOCK = BlockSpec("softmax", 64, 32, heads=2)
BUDGET_S = 600.0  # on a busy machine everything takes long; races are cut below


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short races; the user's own data folder is left alone."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(tuning._Tuning, "_race_s", lambda self, divisor: 2.0)


def only(monkeypatch: pytest.MonkeyPatch, *settings: Mapping[str, Any]) -> None:
    """These settings of onnxruntime are the only variants."""
    monkeypatch.setattr(space, "FILES", {})
    monkeypatch.setattr(space, "SETTINGS", {"onnxruntime": settings})
    monkeypatch.setattr(space, "pass_sets", lambda: {"default": space.EXACT})


def board(tmp_path: Path, **options: Any) -> Board:
    return Board("board", tmp_path, **options)


def by_label(report: Mapping[str, Any]) -> dict[str, Any]:
    return {c["label"]: c for c in report["candidates"]}


class Slow:
    """Makes what a setting marks slower by a factor, in the samples that the host sees."""

    def __init__(self, factor: float, mark: str) -> None:
        self.factor, self.mark = factor, mark

    def __call__(self, session: Session, job: Job, event: Event) -> None:
        if event["event"] == "samples" and self.mark in event["id"]:
            event["ns"] = [round(ns * self.factor) for ns in event["ns"]]


def test_a_big_difference_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, {"optimization": "basic"})
    place = board(tmp_path, happens=Slow(3.0, "default 1t"))
    found = tune(BLOCK, device=place, formats=["onnx"], budget_s=BUDGET_S, output=tmp_path / "out")
    assert found.report["winner"]["settings"] == {"optimization": "basic"}
    assert found.report["ended"] == "significant"
    loser = by_label(found.report)["onnx default 1t"]
    assert loser["status"] == "lost"
    assert loser["against_winner"]["verdict"] == "slower"
    assert loser["samples"]
    assert json.loads(found.file.read_text())["winner"] == found.report["winner"]
    assert (found.bundle.path / "model.onnx").is_file()
    assert not (tmp_path / "out" / ".tune").exists()

    monkeypatch.setattr(tuning, "find_device", lambda name: place)
    bundle = export(
        BLOCK, device=place.profile, tuned=True, output=tmp_path / "exports", name="again"
    )
    assert bundle.formats == ["onnx"]
    assert bundle.manifest["graph_sha256"] == found.bundle.manifest["graph_sha256"]


def test_no_difference_takes_the_plainest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, {"spinning": False})
    monkeypatch.chdir(tmp_path)

    def alike(session: Session, job: Job, event: Event) -> None:
        if event["event"] == "samples":
            wobble = 1000 + (event["round"] * 7 + len(event["id"])) % 5
            event["ns"] = [wobble * 100] * len(event["ns"])

    found = tune(
        BLOCK,
        device=board(tmp_path, happens=alike),
        formats=["onnx"],
        budget_s=BUDGET_S,
        output="out",  # as most people give it
    )
    assert found.report["ended"] == "none faster"
    assert found.report["winner"]["label"] == "onnx default 1t"
    assert found.report["winner"]["tied"] == ["onnx default spinning=False 1t"]
    assert (
        "as fast, and not plainer"
        in by_label(found.report)["onnx default spinning=False 1t"]["reason"]
    )


def test_a_little_faster_is_taken_before_the_plainest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, {"spinning": False})
    found = tune(
        BLOCK,
        device=board(tmp_path, happens=_level(1.02)),
        formats=["onnx"],
        budget_s=BUDGET_S,
        output=tmp_path / "out",
    )
    assert found.report["winner"]["settings"] == {"spinning": False}
    assert found.report["winner"]["tied"] == []
    assert found.report["ended"] == "none faster"
    assert found.report["races"] == 1


def _level(default: float) -> Any:
    """What has no settings takes so many times what others take, but for a little noise."""
    noise = random.Random(0)

    def happens(session: Session, job: Job, event: Event) -> None:
        if event["event"] == "samples":
            level = default if event["id"] == "onnx default 1t" else 1.0
            event["ns"] = [round(1e6 * level * noise.uniform(0.999, 1.001))] * len(event["ns"])

    return happens


def test_the_plainest_stays_until_it_is_shown_to_be_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [{"optimization": name} for name in ("basic", "extended", "disabled")]
    only(monkeypatch, {"spinning": False}, *settings)
    noise = random.Random(0)

    def wobble(session: Session, job: Job, event: Event) -> None:
        if event["event"] == "samples":
            level = 1.01 if event["id"] == "onnx default 1t" else 1.0
            event["ns"] = [round(1e5 * level * noise.uniform(0.8, 1.25))] * len(event["ns"])

    found = tune(
        BLOCK,
        device=board(tmp_path, happens=wobble),
        formats=["onnx"],
        budget_s=20.0,
        output=tmp_path / "out",
    )
    default = by_label(found.report)["onnx default 1t"]
    others = [c for c in found.report["candidates"] if c["label"] != "onnx default 1t"]
    assert "in the slower half" in " ".join(c["reason"] or "" for c in others)
    assert "in the slower half" not in (default["reason"] or "")


def test_of_the_fastest_format_the_plainest_stays_too(tmp_path: Path) -> None:
    sets = ("none", "-fold_affine", "-fold_batchnorm", "-split_layers", "default")
    candidates = [Candidate("openvino", name) for name in sets] + [Candidate("onnx")]
    trials = []
    for place, candidate in enumerate(candidates):
        ns = [1_000_000 + 1000 * place]
        samples = [
            {"stage": 0, "slice": n % 4, "round": n, "inner": 1, "ns": ns} for n in range(16)
        ]
        trials.append(Trial(candidate, RACING, samples=samples))
    state = State(tmp_path / ".tune", "key", trials)
    nothing: Any = None
    race = tuning._Tuning(nothing, board(tmp_path), state, tmp_path, 1, 0, (1,), Progress())
    race._halve()
    left = [t.label for t in trials if t.status != RACING]
    assert left == ["openvino -split_layers 1t"]
    assert race._winner()[0].label == "onnx default 1t"


@pytest.mark.parametrize(
    ("spent", "takes", "why"),
    [(0, 19, None), (0, 21, "to make it takes about 21 s"), (40, 9, None), (40, 11, "share")],
)
def test_files_take_their_share_of_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spent: float, takes: float, why: str | None
) -> None:
    trial = Trial(Candidate("executorch"))
    state = State(tmp_path, "key", [trial], exporting_s=spent, budget_s=100.0)
    nothing: Any = None
    files = tune_files.Files(nothing, nothing, state, 0, Progress())
    monkeypatch.setattr(tune_files.Files, "_estimate", lambda self, trial: takes)
    told = files._too_long(trial)
    assert told is None if why is None else why in str(told)


@pytest.mark.parametrize(("max_opset", "max_ir"), [(23, 11), (22, 13), (23, 10)])
def test_attention_is_one_operator_where_the_device_reads_it(
    max_opset: int, max_ir: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = dataclasses.replace(BLOCK, projections=True)
    files = space.FILES["onnx"]
    only(monkeypatch)
    monkeypatch.setattr(space, "FILES", {"onnx": files})
    profile = limited("some", max_opset=max_opset, max_ir=max_ir)
    place = board(tmp_path, profile=profile, happens=Slow(3.0, "default 1t"))
    found = tune(block, device=place, formats=["onnx"], budget_s=BUDGET_S, output=tmp_path / "out")
    tried = by_label(found.report)["onnx default attention=True 1t"]
    if (max_opset, max_ir) == (23, 11):
        assert found.report["winner"]["label"] == tried["label"]
        assert found.bundle.artifact("onnx")["facts"]["operators"]["Attention"] == 1
    else:
        assert found.report["winner"]["options"] == {}
        assert tried["status"] == "out"
        assert "the device cannot load it: opset: expected" in tried["reason"]


def test_wrong_results_are_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, {"optimization": "nonsense"}, {"optimization": "basic"})
    whole = tune_races.Races.entry

    def strict(self: Any, trial: Any) -> Any:
        from dataclasses import replace

        entry = whole(self, trial)
        # No runtime agrees to the last bit of 1e-30 of the scale.
        return replace(entry, tolerance=1e-30) if "basic" in trial.label else entry

    monkeypatch.setattr(tune_races.Races, "entry", strict)
    found = tune(
        BLOCK,
        device=board(tmp_path),
        formats=["onnx"],
        budget_s=BUDGET_S,
        output=tmp_path / "out",
    )
    assert found.report["winner"]["label"] == "onnx default 1t"
    wrong = by_label(found.report)["onnx default optimization=basic 1t"]
    assert wrong["status"] == "out"
    assert wrong["reason"].startswith("wrong results")
    assert not wrong["samples"]
    unknown = by_label(found.report)["onnx default optimization=nonsense 1t"]
    assert unknown["status"] == "out"
    assert "nonsense" in unknown["reason"]


def test_interrupted_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, {"optimization": "basic"})
    place = board(tmp_path, happens=Slow(3.0, "basic"))
    asked: dict[str, Any] = {
        "device": place, "formats": ["onnx"], "budget_s": BUDGET_S, "output": tmp_path / "out",
    }  # fmt: skip
    whole = tune_races.Races.run
    monkeypatch.setattr(tune_races.Races, "run", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune(BLOCK, **asked)
    state = json.loads((tmp_path / "out" / ".tune" / "state.json").read_text())
    assert [t["status"] for t in state["trials"]] == ["racing", "racing"]
    monkeypatch.setattr(tune_races.Races, "run", whole)
    monkeypatch.setattr(tune_files, "export_source", _never)  # the files are there
    found = tune(BLOCK, **asked)
    assert found.report["winner"]["label"] == "onnx default 1t"
    assert found.report["exporting_s"] > state["exporting_s"] > 0
    assert {mode for mode, _ in modes(place)} == {"time"}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _never(*_: object, **__: object) -> None:
    raise AssertionError("exported again")


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError):
        tune(BLOCK, device="no-such-board", output=tmp_path / "out")
    with pytest.raises(UnknownNameError):
        tune(BLOCK, formats=["onix"], output=tmp_path / "out")
    with pytest.raises(OptionError, match="threads"):
        tune(BLOCK, formats=["onnx"], threads=[0], output=tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        tune(BLOCK, formats=["onnx"], output=tmp_path / "file" / "out")
    with pytest.raises(UnavailableError, match="too few"):
        tune(
            BLOCK, device=board(tmp_path), formats=["onnx"], budget_s=0.01, output=tmp_path / "out"
        )
    away = board(tmp_path)
    away.unreachable = "board does not answer"
    with pytest.raises(DeviceError, match="does not answer"):
        tune(BLOCK, device=away, formats=["onnx"], budget_s=BUDGET_S, output=tmp_path / "two")
    with pytest.raises(UnavailableError, match="never tuned") as never:
        export(BLOCK, device="rpi4", tuned=True, output=tmp_path / "exports")
    assert "edgevit tune" in str(never.value.hint)


def test_two_tunings_into_one_place(tmp_path: Path) -> None:
    with (
        held(tmp_path.resolve(), "tuning"),
        pytest.raises(OutputError, match="another tuning is writing"),
    ):
        tune(BLOCK, formats=["onnx"], budget_s=30, output=tmp_path)


def test_a_larger_budget_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    asked: dict[str, Any] = {
        "device": board(tmp_path), "formats": ["onnx"], "output": tmp_path / "out",
    }  # fmt: skip
    with pytest.raises(UnavailableError, match="too few"):
        tune(BLOCK, budget_s=0.01, **asked)
    monkeypatch.setattr(tune_files, "export_source", _never)  # the file is there
    assert tune(BLOCK, budget_s=BUDGET_S, **asked).report["ended"] == "only"


def test_a_busy_device_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    place = board(tmp_path)
    whole = tune_races._Hasty
    monkeypatch.setattr(tune_races, "_Hasty", lambda device, wait_s: whole(device, 0.5))
    asked: dict[str, Any] = {
        "device": place, "formats": ["onnx"], "budget_s": BUDGET_S, "output": tmp_path / "out",
    }  # fmt: skip
    found = tune(BLOCK, **asked)
    with closing(place.open()) as session:
        long = Schedule(min_seconds=60, warmup_seconds=0, max_seconds=60)
        file = session.push(found.bundle.path)
        (entry,) = entries_of(
            found.bundle, place.profile, ["onnx"], device="board", batch=1, options={},
            runtime=None, progress=Progress(),
        )  # fmt: skip
        events = session.run(Job("time", (entry.on_device(file),), schedule=long))
        assert next(e for e in events if e["event"] == "samples")
        with pytest.raises(DeviceError, match="nothing was measured"):
            tune(BLOCK, **asked)


KILLED = """
import sys
from edgevit.source import BlockSpec
from edgevit.verbs.tune import tune
tune(BlockSpec("softmax", 64, 32, heads=2), formats=["onnx"], budget_s=600, output=sys.argv[1])
"""


@pytest.mark.slow
def test_killed_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    state = out / ".tune" / "state.json"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out)])
    try:
        while not (state.is_file() and '"racing"' in state.read_text()):
            assert child.poll() is None
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    made = [t["label"] for t in json.loads(state.read_text())["trials"] if t["bundle"]]
    assert made
    again: list[str] = []
    whole = tune_files.export_source

    def watched(source: Any, plan: Any, place: Path, **rest: Any) -> Any:
        again.append(Path(place).name)
        return whole(source, plan, place, **rest)

    monkeypatch.setattr(tune_files, "export_source", watched)
    found = tune(BLOCK, formats=["onnx"], budget_s=BUDGET_S, output=out)
    assert found.report["winner"]["format"] == "onnx"
    assert not {slug(label) for label in made} & set(again)


@pytest.mark.parametrize("text", ["12x", "", "s", "-3s", "0", "nan", "inf"])
def test_no_budget(text: str) -> None:
    with pytest.raises(OptionError, match="budget"):
        parse_budget(text)


def test_budgets() -> None:
    assert [parse_budget(t) for t in ("120s", "2m", "90", "0.5h")] == [120, 120, 90, 1800]
