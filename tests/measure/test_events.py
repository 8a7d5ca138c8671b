from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from made_results import CONTEXT, FACTS, SUBJECT, blocks

from edgevit.measure import Job, Result, result_from_events
from edgevit.measure.results import SCHEMA

Event = dict[str, Any]
BARE = replace(SUBJECT, runtime_version=None, settings={}, region=None)
JOB = Job(
    context=replace(CONTEXT, device=replace(CONTEXT.device, facts={})),
    subjects={"a": BARE, "b": replace(BARE, name="deit_small")},
    protocol={"min_runs": 50},
    tolerances={"a": 5e-5, "b": 5e-5},
)


def subject_events(name: str) -> Iterator[Event]:
    yield {
        "event": "loaded",
        "id": name,
        "load_ns": 120_000_000,
        "first_ns": 80_500_000,
        "runtime": "onnxruntime 1.31.1",
        "settings": {"threads": 1},
        "region": "one inference",
    }
    outputs = [{"name": "logits", "ok": True, "max_abs": 2e-6, "scale": 3.0, "cosine": 1.0}]
    yield {"event": "checked", "id": name, "ok": True, "outputs": outputs, "reason": None}


def events() -> list[Event]:
    """A run of two subjects from its first event to its last."""
    told: list[Event] = [{"event": "facts", **FACTS}]
    for name in ("a", "b"):
        told += [{"event": "progress", "id": name, "stage": "load"}, *subject_events(name)]
    told.append({"event": "conditions", "when": "before", "load_average": [0.1, 0.1, 0.1]})
    told += [{"event": "warmed", "id": i, "runs": 12, "ns": 5e8, "inner": 1} for i in ("a", "b")]
    for first, second in zip(blocks(40), blocks(20, seed=1), strict=True):
        for name, block in (("a", first), ("b", second)):
            told.append({"event": "samples", "id": name, "round": block.round, "inner": 1})
            told[-1]["ns"] = list(block.ns)
    told.append({"event": "conditions", "when": "after", "load_average": [1.0, 0.4, 0.2]})
    return [*told, {"event": "done", "stopped": False}]


def without(kind: str, name: str | None = None) -> list[Event]:
    return [e for e in events() if e["event"] != kind or (name and e.get("id") != name)]


def results(told: list[Event], job: Job = JOB, **options: Any) -> list[Result]:
    # Events are JSON lines, so they come through JSON here too.
    made = result_from_events((json.loads(json.dumps(e)) for e in told), job, **options)
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for result in made:
        validator.validate(result.to_json())
        assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    return made


def test_a_whole_run() -> None:
    first, second = results(events())
    assert (first.status, first.reason) == (second.status, second.reason) == ("ok", None)
    assert first.samples_ns == blocks(40)
    assert second.samples_ns == blocks(20, seed=1)
    assert (first.subject.name, second.subject.name) == ("elevit", "deit_small")
    assert (first.load_ms, first.first_ms) == (120.0, 80.5)
    assert first.warmup is not None
    assert (first.warmup.runs, first.warmup.ms) == (12, 500.0)
    assert first.verification.status == "verified"
    assert (first.verification.max_abs, first.verification.tolerance) == (2e-6, 5e-5)
    assert first.subject.runtime_version == "onnxruntime 1.31.1"
    assert first.subject.settings == {"threads": 1}
    assert first.subject.region == "one inference"
    assert first.context.device.facts == FACTS
    assert first.conditions.before == {"load_average": [0.1, 0.1, 0.1]}
    assert first.conditions.after == {"load_average": [1.0, 0.4, 0.2]}
    assert first.protocol == {"min_runs": 50}
    assert first.memory is None


def test_the_runtime_is_in_the_facts_if_nowhere_else() -> None:
    first, second = results(without("loaded", "a"))
    assert first.subject.runtime_version == "1.31.1"
    assert first.load_ms is None
    assert second.subject.runtime_version == "onnxruntime 1.31.1"


def test_memory_comes_from_its_own_run() -> None:
    told = [
        {"event": "facts", "cpu": {"model": "another"}},
        {"event": "conditions", "when": "before", "load_average": [9, 9, 9]},
        {"event": "memory", "id": "a", "baseline_bytes": 50, "peak_bytes": 90, "method": "VmHWM"},
        {"event": "error", "id": "b", "kind": "load", "message": "out of memory"},
        {"event": "done", "stopped": True},
    ]
    first, second = results(events(), memory_events=told)
    assert first.memory is not None
    assert (first.memory.net_bytes, first.memory.method) == (40, "VmHWM")
    assert "less its level after imports" in first.memory.definition
    assert second.memory is None
    assert second.warnings == ("memory was not measured: out of memory",)
    # What it says of the machine does not count.
    assert (first.status, second.status) == ("ok", "ok")
    assert first.context.device.facts == FACTS


def test_loading_is_taken_from_the_process_that_had_nothing_else_to_load() -> None:
    loaded = next(e for e in events() if e["event"] == "loaded" and e["id"] == "a")
    told = [{**loaded, "load_ns": 30_000_000, "first_ns": 70_000_000}]
    first, second = results(events(), memory_events=told)
    assert (first.load_ms, first.first_ms) == (30.0, 70.0)
    assert second.load_ms == results(events())[1].load_ms


def test_memory_without_a_baseline() -> None:
    told = [{"event": "memory", "id": "a", "baseline_bytes": None, "peak_bytes": 90}]
    memory = results(events(), memory_events=told)[0].memory
    assert memory is not None
    assert memory.net_bytes is None


def test_the_verdict_decides() -> None:
    told = events()
    told[-2]["throttled"] = {"now": ["under-voltage"], "since_boot": []}
    assert {(r.status, r.reason) for r in results(told)} == {
        ("unstable", "throttled: under-voltage")
    }


def test_the_verdict_knows_threads_cpus_and_throttle_point() -> None:
    told = events()
    before = next(e for e in told if e.get("when") == "before")
    before["load_average"] = [2.5, 1, 1]
    two = replace(JOB, subjects={"a": BARE, "b": replace(BARE, threads=2)})
    assert [r.status for r in results(told, two)] == ["ok", "unstable"]
    told = events()
    told[-2]["temperature_c"] = {"cpu-thermal": 65.0}
    assert {r.status for r in results(told)} == {"ok"}
    assert {r.status for r in results(told, replace(JOB, throttle_point_c=60.0))} == {"unstable"}


def test_stopping_keeps_what_was_measured() -> None:
    told = [e for e in events() if e.get("round", 0) < 4][:-2]
    first, second = results([*told, {"event": "done", "stopped": True}])
    assert first.status == second.status == "stopped"
    assert first.samples_ns == blocks(40)[:4]
    assert first.reason == "stopped early, after 48 runs in 4 rounds"
    assert first.conditions.after is None


def test_a_run_that_breaks_off_anywhere_gives_results() -> None:
    told = events()
    for length in range(len(told)):
        first, second = results(told[:length])
        assert first.status == second.status == "failed"
        assert first.reason is not None
        assert "ended before it was done" in first.reason
        measured = [e for e in told[:length] if e["event"] == "samples" and e["id"] == "a"]
        assert len(first.samples_ns) == len(measured)


def cut_after_finishing(name: str) -> list[Event]:
    """The events until just after the subject's last samples, which say that it is finished."""
    told = events()
    last = max(i for i, e in enumerate(told) if e["event"] == "samples" and e["id"] == name)
    told[last]["finished"] = True
    return [e for e in told[: last + 1] if e.get("id") != "b" or e.get("round") != 9]


@pytest.mark.parametrize(
    "end",
    [
        [],
        [{"event": "done", "stopped": True}],
        [{"event": "error", "id": None, "kind": "crash", "message": "killed by SIGKILL"}],
        [{"event": "error", "id": "a", "kind": "crash", "message": "killed by SIGKILL"}],
    ],
    ids=["cut", "stopped", "crash", "crash while it was the only one"],
)
def test_what_was_finished_before_the_run_broke_off_is_whole(end: list[Event]) -> None:
    first, second = results([*cut_after_finishing("a"), *end])
    assert (first.status, first.reason) == ("ok", None)
    assert first.samples_ns == blocks(40)
    assert first.warnings == ("the run ended before the conditions were read a second time",)
    assert second.status in ("failed", "stopped")
    assert second.statistics is not None
    assert second.statistics.round_count == 9


def test_more_threads_than_cpus_are_a_warning() -> None:
    subjects = {"a": replace(BARE, threads=8), "b": replace(BARE, threads=4)}
    first, second = results(events(), replace(JOB, subjects=subjects))
    assert (first.warnings, second.warnings) == (("8 threads on 4 CPUs",), ())


def test_an_error_of_one_subject_is_its_own() -> None:
    told = without("samples", "a")
    told.insert(3, {"event": "error", "id": "a", "kind": "load", "message": "no such operator"})
    first, second = results(told)
    assert (first.status, first.reason) == ("failed", "no such operator")
    assert first.statistics is None
    assert second.status == "ok"


def test_an_error_of_the_job_fails_all() -> None:
    error = {"event": "error", "id": None, "kind": "busy", "message": "the device is measuring"}
    done = {"event": "done", "stopped": False}
    told = [error, {"event": "error", "id": None, "kind": "load", "message": "later"}, done]
    assert {(r.status, r.reason) for r in results(told)} == {("failed", "the device is measuring")}


def test_a_mismatch_is_one_whatever_else_happened() -> None:
    told = events()
    reason = "logits is off by 1.0e-01"
    for event in told:
        if event["event"] == "checked" and event["id"] == "a":
            event.update(ok=False, reason=reason)
            event["outputs"][0].update(ok=False, max_abs=0.1)
    told.insert(-1, {"event": "error", "id": "a", "kind": "mismatch", "message": reason})
    first, second = results(told)
    assert (first.status, first.reason) == ("mismatch", reason)
    assert first.verification.status == "mismatch"
    assert first.verification.max_abs == 0.1
    assert second.status == "ok"


def test_a_mismatch_may_come_as_an_error_alone() -> None:
    told = without("checked", "a")
    told.insert(-1, {"event": "error", "id": "a", "kind": "mismatch", "message": "2 outputs"})
    first = results(told)[0]
    assert (first.status, first.reason) == ("mismatch", "2 outputs")


def test_outputs_that_cannot_be_compared() -> None:
    told = events()
    checked = next(e for e in told if e["event"] == "checked")
    checked.update(ok=False, reason="logits is not finite")
    checked["outputs"][0].update(ok=False, max_abs=None, scale=None, cosine=None)
    first = results(told)[0]
    assert first.status == "mismatch"
    assert first.verification.max_abs is None


@pytest.mark.parametrize("told", ["absent", "null"])
def test_what_was_not_checked_is_unverified(told: str) -> None:
    run = without("checked", "a")
    if told == "null":
        run.insert(1, {"event": "checked", "id": "a", "ok": None, "reason": "no golden outputs"})
    first, second = results(run)
    assert first.verification.status == "unverified"
    assert first.verification.reason
    assert second.verification.status == "verified"


def test_no_runs_without_an_error_is_a_failure() -> None:
    first, second = results(without("samples", "a"))
    assert (first.status, first.reason) == ("failed", "no run was timed")
    assert second.status == "ok"


def test_warnings_are_kept_once() -> None:
    warning = {"event": "warning", "kind": "affinity", "message": "few CPUs"}
    own = {"event": "warning", "id": "b", "kind": "x", "message": "a slow path"}
    first, second = results([{**warning, "id": None}, {**warning}, own, *events()])
    assert first.warnings == ("few CPUs",)
    assert second.warnings == ("few CPUs", "a slow path")


@pytest.mark.parametrize(
    "event",
    [
        {"event": "samples", "id": "a", "round": 99, "inner": 1},
        {"event": "samples", "id": "a", "round": 99, "inner": 1, "ns": 5},
        {"event": "samples", "id": "a", "round": 99, "inner": 1, "ns": [0]},
        {"event": "samples", "id": "a", "round": 99, "inner": 1, "ns": [-3]},
        {"event": "samples", "id": "a", "round": 99, "inner": 1, "ns": ["x"]},
        {"event": "samples", "id": "a", "round": -1, "inner": 1, "ns": [3]},
        {"event": "samples", "id": "a", "round": 99, "inner": 0, "ns": [3]},
        {"event": "samples", "id": "a", "round": 99, "inner": 1, "ns": [float("nan")]},
        {"event": "samples", "id": "a", "round": 99, "inner": 1, "ns": [float("inf")]},
        {"event": "checked", "id": "a", "ok": True, "outputs": [3]},
        {"event": "loaded", "id": "a", "load_ns": "fast"},
        {"event": "warmed", "id": "a"},
    ],
    ids=lambda e: f"{e['event']} {e.get('ns')} {e.get('round')}",
)
def test_a_malformed_event_fails_its_subject_alone(event: Mapping[str, Any]) -> None:
    told = events()
    told.insert(-1, dict(event))
    first, second = results(told)
    assert first.status == "failed"
    assert first.reason is not None
    assert first.reason.startswith(f"malformed {event['event']} event")
    assert first.samples_ns == blocks(40)
    assert second.status == "ok"


def test_events_of_another_protocol_are_passed_over() -> None:
    told: list[Event] = [
        {"event": "telemetry", "id": "a", "watts": 3},
        {"event": "samples", "id": "unknown", "round": 0, "inner": 1, "ns": [1]},
        {"no": "event"},
    ]
    assert [r.status for r in results([*told, *events()])] == ["ok", "ok"]


def test_fractions_of_a_nanosecond_are_rounded() -> None:
    told = events()
    told.insert(-1, {"event": "samples", "id": "a", "round": 10, "inner": 3, "ns": [4e7 + 2 / 3]})
    last = results(told)[0].samples_ns[-1]
    assert (last.inner, last.ns) == (3, (40_000_001,))


@pytest.mark.parametrize("told", [{}, {"emulated": None}, {"emulated": ""}])
def test_a_device_that_sees_no_emulator_is_real(told: Event) -> None:
    run = [{"event": "facts", **FACTS, **told}, *without("facts")]
    assert not any(result.context.device.emulated for result in results(run))


def test_a_device_that_sees_that_it_is_emulated_says_so_in_every_result() -> None:
    why = "this process runs in qemu-aarch64-static"
    run = [{"event": "facts", **FACTS, "emulated": why}, *without("facts")]
    for result in results(run):
        assert result.context.device.emulated
        assert result.context.device.facts["emulated"] == why


def test_a_host_that_is_known_as_emulated_stays_so_whatever_its_agent_sees() -> None:
    device = replace(JOB.context.device, emulated=True)
    job = replace(JOB, context=replace(JOB.context, device=device))
    assert all(result.context.device.emulated for result in results(events(), job))


def test_facts_that_were_asked_before_do_not_hide_what_the_agent_sees() -> None:
    device = replace(JOB.context.device, facts={"machine": {"arch": "aarch64"}})
    job = replace(JOB, context=replace(JOB.context, device=device))
    run = [{"event": "facts", **FACTS, "emulated": "its CPU is x86"}, *without("facts")]
    assert all(result.context.device.emulated for result in results(run, job))


@pytest.mark.parametrize(
    ("backend", "settings", "status"),
    [
        ("tensorrt", {}, "unstable"),
        ("onnxruntime", {"providers": ["CUDAExecutionProvider"]}, "unstable"),
        ("onnxruntime", {"providers": ["CPUExecutionProvider"]}, "ok"),
    ],
)
def test_the_clock_of_a_gpu_is_looked_at_where_it_worked(
    backend: str, settings: dict[str, Any], status: str
) -> None:
    told = events()
    for event in told:
        if event["event"] == "conditions":
            now = 900_000 if event["when"] == "before" else 300_000
            event["gpu_frequency_khz"] = {"57000000.gpu": {"current": now, "max": 900_000}}
        if event["event"] == "loaded":
            event["settings"] = settings
    job = replace(JOB, subjects={"a": replace(BARE, backend=backend), "b": BARE})
    first, _ = results(told, job)
    assert first.status == status
    assert status == "ok" or first.reason == "the GPU's clock changed from 900 to 300 MHz"
