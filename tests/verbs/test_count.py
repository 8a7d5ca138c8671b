from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import edgevit
from devices.base import Event
from edgevit.bundle import Bundle
from edgevit.errors import UnavailableError
from edgevit.measure.results import Result, read_results
from edgevit.verbs import count as verb
from edgevit.verbs.count import TOLERANCE, count


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("count")
    block = edgevit.BlockSpec("sima", 64, 32, 2)
    return edgevit.export(block, formats=["onnx"], output=folder)


def counting(
    monkeypatch: pytest.MonkeyPatch, totals: dict[int, int | None], events: list[Event]
) -> None:
    """Totals by runs in place of valgrind's."""
    monkeypatch.setattr(verb, "_method", lambda: "callgrind, made up")
    monkeypatch.setattr(verb, "_run", lambda entry, runs, seed: (totals[runs], events))


def test_one_inference_is_the_difference_of_the_runs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: Event = {"id": bundle.path.name + ".onnx"}
    events: list[Event] = [
        {**told, "event": "checked", "ok": True, "outputs": [], "reason": None},
        {**told, "event": "samples", "round": 0, "inner": 1, "ns": [9, 9], "finished": True},
        {"event": "done", "stopped": False},
    ]
    counting(monkeypatch, {100: 5_000_000, 200: 9_000_000}, events)
    (result,) = count([bundle], output=tmp_path)
    assert result.instructions is not None
    assert result.instructions.per_inference == 40_000
    assert result.status == "ok"
    assert result.samples_ns == ()  # times under valgrind are nobody's
    assert read_results(tmp_path) == [result]


def test_an_agent_that_fails_has_no_count(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    name = bundle.path.name + ".onnx"
    wrong: Event = {"event": "error", "id": name, "kind": "load", "message": "no such file"}
    counting(monkeypatch, {100: 1}, [wrong, {"event": "done", "stopped": False}])
    (result,) = count([bundle], output=None)
    assert (result.status, result.reason, result.instructions) == ("failed", "no such file", None)


def test_without_valgrind_it_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UnavailableError, match="not installed here") as caught:
        count([bundle], output=None)
    assert "apt-get install valgrind" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_a_bigger_block_executes_more(tmp_path: Path) -> None:
    def counted(tokens: int) -> Result:
        block = edgevit.BlockSpec("sima", tokens, 32, 2)
        bundle: Any = edgevit.export(block, formats=["onnx"], output=tmp_path / str(tokens))
        (result,) = count([bundle], output=None)
        return result

    small, large = counted(64), counted(128)
    assert small.verification.status == "verified"
    assert small.instructions is not None
    assert large.instructions is not None
    # Each token costs: twice as many, nearly twice the work.
    assert 1.4 < large.instructions.per_inference / small.instructions.per_inference < 2.5
    assert small.instructions.tolerance == TOLERANCE
