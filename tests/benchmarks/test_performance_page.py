"""The page of performance says what the record says, no more and no less."""

import copy
import json

import pytest

from benchmarks import peers
from benchmarks.peers import KINDS, Limits, busy, is_current, read_record, run, write_record
from benchmarks.performance_page import best_against_best, fastest, page, ratio, share
from benchmarks.ratios import compare, interval, mean

ROUNDS = 31
#: Drift that falls on all candidates of a round alike.
DRIFT = [1 + 0.3 * (n % 7) / 7 for n in range(ROUNDS)]


def entry(ms, *, ours=False):
    times = [1000 * ms * d * (1 + 0.002 * (n % 3)) for n, d in enumerate(DRIFT)]
    return {"ours": ours, "status": "ok", "of_scale": 1e-6, "us": times}


def row(**changed):
    candidates = {
        "naive": entry(10),
        "the same again": entry(9),
        "OpenVINO of the naive file": entry(8),
        "edgevit, onnxruntime": entry(9.5, ours=True),
        "edgevit, openvino": entry(7.9, ours=True),
        "ExecuTorch, naive": entry(14),
        "edgevit, executorch": entry(10, ours=True),
        "onnxslim": {"ours": False, "status": "absent", "reason": "onnxslim not installed"},
        "torch, compiled": {"ours": False, "status": "wrong", "of_scale": 6e-2},
    }
    return {
        "graph": "abc",
        "versions": {"torch": "2.13.0", "onnxslim": None},
        "batch": 1,
        "macs": 280_000_000,
        "seconds": {"make": 1, "race": 2},
        "cpu": {"model": "A Processor"},
        "peak": {"flops_per_s": 112e9, "method": "numpy product"},
        "load": 0.5,
        "others": 0.04,
        "created": "2026-01-02T03:04:05+00:00",
        "candidates": candidates,
        **changed,
    }


@pytest.fixture
def record():
    return {"batch-1": {"deit_small": row(), "pvt_tiny": row()}}


def test_a_ratio_is_taken_round_by_round():
    naive = [10.0 * d for d in DRIFT]
    found = compare(naive, [8.0 * d for d in DRIFT])
    assert found.median == pytest.approx(1.25)
    assert found.high - found.low < 1e-9  # the drift, far greater, fell on both


def test_an_interval_has_its_level_and_no_more_than_there_is():
    # Order statistics 10 and 22 of 31 are the narrowest that hold the median in 95 of 100.
    assert interval(list(range(31))) == (9, 21)
    assert interval([1.0, 2.0, 3.0]) == (1.0, 3.0)


def test_slower_needs_both_the_interval_and_a_difference_that_counts():
    naive = [10.0] * 9
    assert compare(naive, [10.5] * 9).slower
    assert not compare(naive, [10.1] * 9).slower
    assert not compare(naive, [9.0] * 4 + [12.0] * 5).slower


def test_a_geometric_mean_of_nothing_is_no_number():
    assert mean([2.0, 0.5]) == pytest.approx(1.0)
    assert mean([]) != mean([])


def test_the_fastest_is_neither_the_control_nor_one_that_is_wrong():
    found = row()
    found["candidates"]["the same again"] = entry(1)
    assert fastest(found, ours=False) == "OpenVINO of the naive file"
    assert fastest(found, ours=True) == "edgevit, openvino"
    assert best_against_best(found).median == pytest.approx(8 / 7.9)


def test_a_share_of_the_peak_counts_two_operations_a_mac():
    found = row()
    found["candidates"]["naive"]["us"] = [10_000.0] * ROUNDS
    assert share(found, "naive") == pytest.approx(2 * 280e6 / 0.010 / 112e9)
    assert share(found, "onnxslim") is None


def test_the_page_tells_what_holds_and_what_is_missed(record):
    text = page(record)
    assert "**holds**: deit_small in onnxruntime: 1.053 of naive; 1.03 wanted" in text
    assert "**missed**: pvt_tiny in onnxruntime: 1.053 of naive; 1.10 wanted" in text
    assert "**holds**: no model below 0.98 of naive in onnxruntime at batch 1, of 2" in text
    assert "**holds**: deit_small in ExecuTorch: 1.400 of its own naive; 1.35 wanted" in text
    assert "**holds**: the fastest of edgevit's files is not significantly slower" in text
    assert "geometric mean over 2 models: 1.266 of naive" in text
    assert "fastest against fastest, geometric mean over 2 models: 1.013" in text


def test_the_page_names_who_fell_behind(record):
    record["batch-1"]["pvt_tiny"]["candidates"]["edgevit, openvino"] = entry(9, ours=True)
    record["batch-16"] = {"elevit": row()}
    record["batch-16"]["elevit"]["candidates"]["edgevit, onnxruntime"] = entry(11, ours=True)
    text = page(record)
    assert "**missed**: the fastest of edgevit's files is not significantly slower" in text
    assert "others': pvt_tiny 0.889" in text
    assert "**missed**: no model below 0.98 of naive in onnxruntime at batch 16" in text
    assert "measured: elevit 0.909" in text


def test_the_table_says_why_there_is_no_figure(record):
    text = page(record)
    line = next(line for line in text.splitlines() if line.startswith("| deit_small | 1"))
    assert "| *wrong* (6e-02) |" in line
    assert "| absent |" in line
    assert "* onnxslim: onnxslim not installed" in text
    assert "| 1.266 ± 0 |" in line


def test_the_page_tells_the_circumstances(record):
    record["batch-1"]["pvt_tiny"] |= {"load": 1.2, "created": "2026-02-03T00:00:00+00:00"}
    text = page(record)
    for said in (
        "* processor: A Processor\n",
        "* load average when a row was done: 0.50 to 1.20\n",
        "* cores that others kept busy during a row: 0.04\n",
        "* rounds: 31\n",
        "* measured: 2026-01-02 to 2026-02-03\n",
        "* onnxslim not installed\n",
        "* peak: numpy product, one thread, 112 GFLOP/s\n",
    ):
        assert said in text


def test_a_record_comes_back_as_it_was_written(record, tmp_path):
    file = tmp_path / "performance.json"
    write_record(file, record)
    assert read_record(file) == record
    assert read_record(tmp_path / "none.json") == {}
    # A line a candidate: what changed shows as such.
    changed = copy.deepcopy(record)
    changed["batch-1"]["pvt_tiny"]["candidates"]["naive"]["us"][0] += 1
    before = file.read_text().splitlines()
    write_record(file, changed)
    assert sum(a != b for a, b in zip(before, file.read_text().splitlines(), strict=True)) == 1


def test_a_row_holds_while_graph_versions_and_candidates_are_the_same():
    known = row()
    same, names = {key: known[key] for key in ("graph", "versions")}, list(known["candidates"])
    assert is_current(known, same, names)
    assert not is_current(known, {**same, "graph": "abd"}, names)
    assert not is_current(known, {**same, "versions": {"torch": "2.14.0"}}, names)
    assert not is_current(known, same, names[1:])


def test_nothing_is_published_on_a_busy_machine(monkeypatch, tmp_path, capsys):
    def never(*_):
        raise AssertionError("measured on a busy machine")

    monkeypatch.setattr(peers.os, "getloadavg", lambda: (1.6, 1.0, 1.0))
    monkeypatch.setattr(peers, "apart", never)
    file = tmp_path / "performance.json"
    assert run([(KINDS[0], "elevit")], publish=file, settle_s=0) == 3
    assert not file.exists()
    assert "load 1.60 is above 1.5" in capsys.readouterr().out


def test_a_row_that_others_disturbed_is_not_published(monkeypatch, tmp_path):
    rows = iter([row(), row(others=0.8), row()])
    monkeypatch.setattr(peers.os, "getloadavg", lambda: (0.2, 0.2, 0.2))
    monkeypatch.setattr(peers, "apart", lambda *_: next(rows))
    file, tasks = tmp_path / "performance.json", [(KINDS[0], n) for n in ("a", "b", "c")]
    assert run(tasks, publish=file) == 3
    assert list(read_record(file)["batch-1"]) == ["a"]
    assert not busy(row(others=None))


def test_a_run_goes_on_where_it_was(monkeypatch, tmp_path, capsys):
    asked = []

    def apart(kind, model, only, limits, known):
        asked.append((model, known is not None))
        if model == "b":
            raise RuntimeError("its process died")
        return None if known else row()

    monkeypatch.setattr(peers.os, "getloadavg", lambda: (0.2, 0.2, 0.2))
    monkeypatch.setattr(peers, "apart", apart)
    file = tmp_path / "performance.json"
    tasks = [(KINDS[0], "a"), (KINDS[0], "b")]
    assert run(tasks, publish=file) == 1  # but the other row is there
    assert run(tasks, publish=file) == 1
    assert run(tasks, publish=file, again=True) == 1
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 0), ("a", 0), ("b", 0)]
    assert "a: published already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_row_is_measured_for_real():
    kind = KINDS[2]
    candidates = [c for c in kind.candidates() if "naive" in c.name or "same" in c.name]
    found = peers.examine("vit_cifar10", candidates, limits=Limits(rounds=2))
    assert [len(e["us"]) for e in found["candidates"].values()] == [2, 2]
    assert found["macs"] > 1e6
    assert json.loads(json.dumps(found)) == found
    assert ratio(found, "the same again") is not None
    assert peers.examine("vit_cifar10", candidates, known=found) is None


def test_a_candidate_that_is_wrong_or_breaks_gets_no_time(tmp_path):
    from benchmarks.ways import Candidate, Workbench, eager
    from edgevit.source import model_source

    bench = Workbench(model_source("vit_cifar10"), tmp_path)
    x = peers.np.random.default_rng(0).standard_normal(bench.source.inputs[0].shape, "float32")
    want = eager(bench)(x)

    def breaks(bench):
        raise RuntimeError(f"cannot write {bench.folder}/x\nand more")

    def off(bench):
        return lambda x: want + 1e-3

    racer, found = peers.load(Candidate("breaks", breaks), bench, x, want)
    assert (racer, found["status"], found["reason"]) == (None, "failed", "cannot write DIR/x")
    racer, found = peers.load(Candidate("off", off, ours=True), bench, x, want)
    assert (racer, found["status"], found["ours"]) == (None, "wrong", True)
    racer, found = peers.load(Candidate("gone", off, ("no_such_package",)), bench, x, want)
    assert (racer, found["status"]) == (None, "absent")
    racer, found = peers.load(Candidate("right", eager), bench, x, want)
    assert (racer.name, found["status"]) == ("right", "ok")


def test_a_race_with_a_floor_ends_when_it_is_told():
    def timed(factor, step=1):
        racer = peers.Racer("", lambda x: None)
        racer.seconds = [factor * (1 + 0.01 * (n * step % 5)) for n in range(12)]
        return racer

    assert peers.is_told([timed(1.0), timed(0.9)], peers.FLOOR)
    assert peers.is_told([timed(1.0), timed(1.2)], peers.FLOOR)
    assert not peers.is_told([timed(1.0), timed(1.02, step=2)], peers.FLOOR)
    assert not peers.is_told([timed(1.0)], peers.FLOOR)
    assert [kind.floor for kind in KINDS] == [None, None, None, peers.FLOOR, peers.FLOOR]


def test_a_row_is_measured_anew_when_an_exporter_has_changed(monkeypatch, tmp_path):
    before = peers.code(["onnx"])
    for name in ("base.py", "traceable.py", "onnx.py"):
        (tmp_path / name).write_text((peers.EXPORTERS / name).read_text())
    monkeypatch.setattr(peers, "EXPORTERS", tmp_path)
    assert peers.code(["onnx"]) != before
    assert peers.code(["tflite"]) != peers.code(["onnx"])
