"""The page of performance says what the record says, no more and no less."""

import copy
import json
import math
import shutil
import sys
import weakref

import pytest

from benchmarks import costs, peers, performance_page, races, rows, sources
from benchmarks.peers import KINDS, busy, run
from benchmarks.performance_page import best_against_best, fastest, page, ratio, share
from benchmarks.races import Limits
from benchmarks.ratios import compare, mean
from benchmarks.record import read_record, write_record
from benchmarks.rows import Made, is_current, make_row, race_row
from benchmarks.sources import format_digest
from benchmarks.ways import Candidate, Workbench, eager

ROUNDS = 31
#: Drift that falls on all candidates of a round alike.
DRIFT = [1 + 0.3 * (n % 7) / 7 for n in range(ROUNDS)]


def entry(ms, *, ours=False):
    times = [1000 * ms * d * (1 + 0.002 * (n % 3)) for n, d in enumerate(DRIFT)]
    openings = [times, [t * 1.01 for t in times], times[:20]]
    return {"ours": ours, "status": "ok", "of_scale": 1e-6, "us": openings}


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
        "created": "2026-12-02T03:04:05+00:00",
        "candidates": candidates,
        **changed,
    }


@pytest.fixture
def record():
    return {"batch-1": {"deit_small": row(), "pvt_tiny": row()}}


def test_a_ratio_is_taken_round_by_round():
    naive = [[10.0 * d for d in DRIFT]] * 2
    found = compare(naive, [[8.0 * d for d in DRIFT]] * 2)
    assert found.value == pytest.approx(1.25)
    assert found.high - found.low < 1e-9  # the drift, far greater, fell on both


def test_an_interval_is_of_openings_however_many_rounds_they_have():
    naive = [[10.0] * 100] * 3
    found = compare(naive, [[9.0] * 100, [10.0] * 100, [10 / 0.9] * 100])
    assert found.value == pytest.approx(1)
    # Student's 97.5 % quantile with two degrees of freedom, times ln(1 / 0.9) / sqrt(3).
    assert found.high == pytest.approx(math.exp(4.3027 * 0.10536 / 3**0.5), rel=1e-3)
    assert found.low == pytest.approx(1 / found.high)
    assert compare(naive[:1], naive[:1]).high == math.inf


def test_slower_needs_both_the_interval_and_a_difference_that_counts():
    naive = [[10.0] * 9] * 4
    assert compare(naive, [[10.5] * 9] * 4).slower
    assert not compare(naive, [[10.1] * 9] * 4).slower
    assert not compare(naive, [[9.0] * 9, [12.0] * 9] * 2).slower
    assert not compare(naive[:1], [[10.5] * 9]).slower


def test_a_geometric_mean_of_nothing_is_no_number():
    assert mean([2.0, 0.5]) == pytest.approx(1.0)
    assert mean([]) != mean([])


def test_the_fastest_is_neither_the_control_nor_one_that_is_wrong():
    found = row()
    found["candidates"]["the same again"] = entry(1)
    assert fastest(found, ours=False) == "OpenVINO of the naive file"
    assert fastest(found, ours=True) == "edgevit, openvino"
    assert best_against_best(found).value == pytest.approx(8 / 7.9)


def test_a_share_of_the_peak_counts_two_operations_a_mac():
    found = row()
    found["candidates"]["naive"]["us"] = [[10_000.0] * ROUNDS]
    assert share(found, "naive") == pytest.approx(2 * 280e6 / 0.010 / 112e9)
    assert share(found, "onnxslim") is None


def test_the_page_tells_what_holds_and_what_is_missed(record):
    text = page(record)
    assert "**holds**: deit_small in onnxruntime: 1.053 of naive; 1.03 wanted" in text
    assert "**missed**: pvt_tiny in onnxruntime: 1.053 of naive; 1.10 wanted" in text
    assert "**holds**: no model below 0.98 of naive in onnxruntime at batch 1, of 2" in text
    assert "**holds**: the fastest of edgevit's files is not significantly slower" in text
    assert "geometric mean over 2 models: 1.266 of naive" in text
    assert "fastest against fastest, geometric mean over 2 models: 1.013" in text


def test_attention_joined_counts_where_it_is_faster(record):
    record["batch-1"]["pvt_tiny"]["candidates"]["edgevit, attention joined"] = entry(9, ours=True)
    said = "pvt_tiny in onnxruntime: 1.053 of naive, 1.111 with attention joined; 1.10 wanted"
    assert f"**holds**: {said}" in page(record)


@pytest.mark.parametrize(
    ("ms", "choice", "said"),
    [
        (9.0, {}, "**holds**: pvt_tiny in onnxruntime: 1.111 ± 0 of naive; 1.10 wanted"),
        (
            9.5,
            {"with attention joined": 9.0},
            "**holds**: pvt_tiny in onnxruntime: 1.053 ± 0 of naive, the fastest of 2 choices "
            "1.111 ± 0 (with attention joined); 1.10 wanted",
        ),
        (
            9.5,
            {"without turn_maps": 9.3},
            "**out of reach of every choice**: pvt_tiny in onnxruntime: 1.053 ± 0 of naive, the "
            "fastest of 2 choices 1.075 ± 0 (without turn_maps); 1.10 wanted",
        ),
        # One that nobody gets without asking for it does not count, but it is not out of reach.
        (
            9.5,
            {"without turn_maps": 9.0},
            "**missed**: pvt_tiny in onnxruntime: 1.053 ± 0 of naive, the fastest of 2 choices "
            "1.111 ± 0 (without turn_maps); 1.10 wanted",
        ),
    ],
)
def test_a_race_of_every_choice_is_what_a_gain_is_judged_by(record, ms, choice, said):
    candidates = {"naive": entry(10), "the same again": entry(8)}
    candidates["edgevit, onnxruntime"] = entry(ms, ours=True)
    candidates |= {name: entry(value, ours=True) for name, value in choice.items()}
    record["choices"] = {"pvt_tiny": row(candidates=candidates)}
    text = page(record)
    assert said in text
    assert "**holds**: deit_small in onnxruntime: 1.053 of naive; 1.03 wanted" in text
    assert "Every choice for onnxruntime" in text


def test_what_a_loud_race_cannot_tell_is_not_out_of_reach(record):
    own = entry(9.5, ours=True)
    luck = (0.94, 1.0, 1.06)
    own["us"] = [[us * by for us in times] for times, by in zip(own["us"], luck, strict=True)]
    candidates = {"naive": entry(10), "edgevit, onnxruntime": own}
    record["choices"] = {"pvt_tiny": row(candidates=candidates)}
    assert "**missed**: pvt_tiny in onnxruntime: 1.0" in page(record)


def test_the_page_names_who_fell_behind(record):
    record["batch-1"]["pvt_tiny"]["candidates"]["edgevit, openvino"] = entry(9, ours=True)
    record["batch-16"] = {"elevit": row()}
    record["batch-16"]["elevit"]["candidates"]["edgevit, onnxruntime"] = entry(11, ours=True)
    text = page(record)
    assert "**missed**: the fastest of edgevit's files is not significantly slower" in text
    assert "others': pvt_tiny 0.889" in text
    assert "**missed**: no model below 0.98 of naive in onnxruntime at batch 16" in text
    assert "measured: elevit 0.909 ± 0" in text


def test_rows_of_an_earlier_exporter_are_marked(record):
    record["batch-1"]["pvt_tiny"]["created"] = "2026-11-30T10:41:00+00:00"
    newest = row(code="new", created="2026-12-03T00:00:00+00:00")
    record["zoo-16"] = {"elevit": row(code="old"), "levit_cifar10": newest}
    text = page(record)
    assert "| pvt_tiny † | " in text
    assert "| deit_small | " in text
    assert "| elevit † | " in text
    assert "| levit_cifar10 | " in text
    for batch in (1, 16):
        assert f"in onnxruntime at batch {batch}, of 2 measured, 1 of them †\n" in text


def test_the_table_says_why_there_is_no_figure(record):
    text = page(record)
    line = next(line for line in text.splitlines() if line.startswith("| deit_small | 1"))
    assert "| *wrong* (6e-02) |" in line
    assert "| absent |" in line
    assert "* onnxslim: onnxslim not installed" in text
    assert "| 1.266 ± 0 |" in line


def test_the_page_tells_the_circumstances(record):
    record["batch-1"]["pvt_tiny"] |= {"load": 1.2, "created": "2026-12-03T00:00:00+00:00"}
    text = page(record)
    for said in (
        "* processor: A Processor\n",
        "* load average when a row was done: 0.50 to 1.20\n",
        "* cores that others kept busy during a row: 0.04\n",
        "* openings of a file: 3\n",
        "* rounds of an opening: 20 to 31\n",
        "* measured: 2026-12-02 to 2026-12-03\n",
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
    changed["batch-1"]["pvt_tiny"]["candidates"]["naive"]["us"][0][0] += 1
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


def test_a_page_that_was_written_passes_its_check(record, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(performance_page, "RECORD", tmp_path / "performance.json")
    monkeypatch.setattr(performance_page, "COSTS", tmp_path / "costs.json")
    monkeypatch.setattr(performance_page, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(sys, "argv", ["performance_page"])
    assert performance_page.main() == 0  # nothing measured, nothing to tell
    write_record(tmp_path / "performance.json", record)
    assert performance_page.main() == 0
    monkeypatch.setattr(sys, "argv", ["performance_page", "--check"])
    assert performance_page.main() == 0
    for file in tmp_path.iterdir():
        assert not file.read_text().endswith("\n\n")
    (tmp_path / "performance.md").write_text("edited")
    assert performance_page.main() == 1
    assert "python -m benchmarks.performance_page" in capsys.readouterr().out


def test_costs_stand_on_the_page_with_their_circumstances(record, monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "cpu", lambda: {"model": "a processor"})
    monkeypatch.setattr(peers.os, "getloadavg", lambda: (0.2, 0.2, 0.2))
    tables = {
        name: lambda name=name: [f"{name}: 3 us", "", f"* **missed**: {name}"]
        for name in costs.TABLES
    }
    monkeypatch.setattr(costs, "TABLES", tables)
    file = tmp_path / "costs.json"
    assert costs.measure(["two_percent"], file) == 0
    assert costs.measure(["export_cost"], file) == 0  # beside what is there
    text = page(record, read_record(file))
    first, second = text.index("export_cost: 3 us"), text.index("two_percent: 3 us")
    assert (
        text.index("## Parts of models, and costs")
        < first
        < second
        < text.index("## Circumstances")
    )
    assert "`python -m benchmarks.two_percent`" in text
    assert "a processor, load average 0.2, torch" in text
    targets = text[: text.index("##", text.index("## Targets") + 2)]
    assert "* **missed**: export_cost\n* **missed**: two_percent\n" in targets
    assert text.count("**missed**: export_cost") == 1
    assert "and costs" not in page(record)


def test_on_a_busy_machine_no_cost_is_published(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers.os, "getloadavg", lambda: (1.6, 0.2, 0.2))
    assert costs.measure(list(costs.TABLES), tmp_path / "costs.json", settle_s=0) == 3
    assert not (tmp_path / "costs.json").exists()
    assert "load 1.60 is above 1.5" in capsys.readouterr().out


@pytest.fixture
def quiet_machine(monkeypatch):
    monkeypatch.setattr(peers.os, "getloadavg", lambda: (0.2, 0.2, 0.2))
    monkeypatch.setattr(peers, "circumstances", dict)


def test_nothing_is_made_or_published_on_a_busy_machine(monkeypatch, tmp_path, capsys):
    def never(*_):
        raise AssertionError("measured on a busy machine")

    monkeypatch.setattr(peers.os, "getloadavg", lambda: (1.6, 1.0, 1.0))
    monkeypatch.setattr(peers, "apart", never)
    file = tmp_path / "performance.json"
    assert run([(KINDS[0], "elevit")], publish=file, settle_s=0) == 3
    assert not file.exists()
    assert "load 1.60 is above 1.5: nothing more" in capsys.readouterr().out


def made(model):
    return Made(model, {}, {}, {})


def test_a_row_that_others_disturbed_is_not_published(monkeypatch, tmp_path, quiet_machine):
    rows = {"a": row(), "b": row(others=0.8), "c": row()}

    def apart(task, calls, jobs=1):
        found = [call[1] for call in calls]
        return [made(m) for m in found] if task is peers.make else [rows[m.model] for m in found]

    monkeypatch.setattr(peers, "apart", apart)
    file, tasks = tmp_path / "performance.json", [(KINDS[0], n) for n in ("a", "b", "c")]
    assert run(tasks, publish=file) == 3
    assert list(read_record(file)["batch-1"]) == ["a"]
    assert not busy(row(others=None))


def test_a_run_goes_on_where_it_was(monkeypatch, tmp_path, capsys, quiet_machine):
    asked = []

    def apart(task, calls, jobs=1):
        if task is peers.race:
            return [row() if m.model != "b" else RuntimeError("died") for _, m, *_ in calls]
        asked.extend((model, known is not None) for _, model, _, _, known in calls)
        return [None if known else made(model) for _, model, _, _, known in calls]

    monkeypatch.setattr(peers, "apart", apart)
    file = tmp_path / "performance.json"
    tasks = [(KINDS[0], "a"), (KINDS[0], "b")]
    assert run(tasks, publish=file) == 1  # but the other row is there
    assert run(tasks, publish=file) == 1
    assert run(tasks, publish=file, again=True) == 1
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 0), ("a", 0), ("b", 0)]
    assert "a: published already" in capsys.readouterr().out


def test_rows_are_raced_when_the_files_of_their_group_are_made(monkeypatch, quiet_machine):
    did, folders = [], []

    def apart(task, calls, jobs=1):
        did.append((task.__name__, len(calls), jobs))
        if task is peers.race:
            assert folders[-1].is_dir()
            return [row() for _ in calls]
        folders.append(calls[0][3].parent)
        return [made(call[1]) for call in calls]

    monkeypatch.setattr(peers, "apart", apart)
    monkeypatch.setattr(peers.Kind, "ahead", 2)
    assert run([(KINDS[0], n) for n in "abc"], jobs=2) == 0
    race = ("race", KINDS[0].processes, 1)
    assert did == [("make", 2, 2), race, race, ("make", 1, 2), race]
    assert not any(folder.exists() for folder in folders)


def test_parts_of_a_race_make_one_row():
    parts = [row(), row(others=None), row(others=0.7, seconds={"make": 1, "race": 5})]
    found = rows.joined(parts)
    assert (found["others"], found["seconds"]) == (0.7, {"make": 1, "race": 9})
    once = row()["candidates"]
    assert found["candidates"]["naive"]["us"] == 3 * once["naive"]["us"]
    assert found["candidates"]["onnxslim"] == once["onnxslim"]
    limits = Limits(openings=10, seconds=60).part(3, floor=None)
    assert (limits.openings, limits.seconds) == (4, 20)
    assert Limits(openings=4).part(3, floor=None).openings == 2


def test_a_call_that_dies_costs_the_others_nothing():
    found = peers.apart(divmod, [(7, 2), (1, 0), (9, 4)], 2)
    assert found[0] == (3, 1)
    assert isinstance(found[1], ZeroDivisionError)
    assert found[2] == (2, 1)


@pytest.mark.slow
def test_a_row_is_measured_for_real(tmp_path):
    kind = KINDS[2]
    candidates = [c for c in kind.candidates() if "naive" in c.name or "same" in c.name]
    there = make_row("vit_cifar10", candidates, tmp_path)
    found = race_row(there, candidates, Limits(openings=2, rounds=3))
    found |= rows.circumstances()
    times = [e["us"] for e in found["candidates"].values()]
    assert [[len(opening) for opening in us] for us in times] == [[3, 3], [3, 3]]
    assert found["macs"] > 1e6
    assert json.loads(json.dumps(found)) == found
    assert ratio(found, "the same again") is not None
    assert make_row("vit_cifar10", candidates, tmp_path, known=found) is None


def test_a_candidate_that_is_wrong_or_breaks_may_not_race(tmp_path):
    bench = Workbench(rows.source_of("vit_cifar10", 1), tmp_path)
    x = rows.sample(bench.source)
    want = eager(bench.source)(x)

    def breaks(bench):
        raise RuntimeError(f"cannot write {bench.folder}/x\nand more")

    def off(file):
        return lambda x: want + 1e-3

    def examine(*candidate, **more):
        return rows.examine(Candidate(*candidate, **more), bench, x, want)[0]

    found = examine("breaks", off, breaks)
    assert (found["status"], found["reason"]) == ("failed", "cannot write DIR/x")
    found = examine("off", off, ours=True)
    assert (found["status"], found["ours"]) == ("wrong", True)
    assert examine("gone", off, needs=("no_such_package",))["status"] == "absent"
    assert examine("right", eager)["status"] == "ok"


def test_a_race_with_a_floor_ends_when_it_is_told():
    def timed(factor, step=1):
        racer = races.Racer("", lambda: lambda x: None)
        racer.seconds = [[factor * (1 + 0.01 * (n * step % 5))] * 3 for n in range(5)]
        return racer

    assert races.is_told([timed(1.0), timed(0.9)], peers.FLOOR)
    assert races.is_told([timed(1.0), timed(1.2)], peers.FLOOR)
    assert not races.is_told([timed(1.0), timed(1.02, step=2)], peers.FLOOR)
    assert not races.is_told([timed(1.0)], peers.FLOOR)
    assert [kind.floor for kind in KINDS] == [None, None, None, peers.FLOOR, peers.FLOOR, None]


def test_a_row_is_measured_anew_when_what_writes_its_files_has_changed(tmp_path):
    shutil.copytree(sources.ROOT / "exporters", tmp_path / "exporters")
    before = {name: format_digest([name], tmp_path) for name in ("onnx", "tflite")}
    assert before["onnx"] == format_digest(["onnx"])

    def change(file):
        (tmp_path / file).write_text("# another\n")
        return {n: format_digest([n], tmp_path) != before[n] for n in before}

    assert change("exporters/coreml.py") == {"onnx": False, "tflite": False}
    assert change("exporters/onnx_norms.py") == {"onnx": True, "tflite": False}
    assert change("exporters/base.py") == {"onnx": True, "tflite": True}


def test_every_file_is_opened_anew_and_the_last_opening_is_gone():
    opened, alive = [], []

    def opening(name):
        def run(x):
            return x

        def open_it():
            assert not [r for n, r in alive if n == name and r() is not None]
            mine = lambda x: run(x)  # noqa: E731
            opened.append(name)
            alive.append((name, weakref.ref(mine)))
            return mine

        return open_it

    racers = [races.Racer(name, opening(name)) for name in ("a", "b")]
    races.race(racers, races.np.zeros(1, "float32"), Limits(openings=3, rounds=2, seconds=60))
    assert sorted(opened) == ["a"] * 3 + ["b"] * 3
    assert [[len(rounds) for rounds in racer.seconds] for racer in racers] == [[2, 2, 2]] * 2


def test_everybody_has_the_same_place_on_average():
    racers = [races.Racer(name, lambda: lambda x: x) for name in "abcde"]
    orders = races.Orders(racers, "a model")
    seen = [[racer.name for racer in orders.next()] for _ in range(8)]
    assert all(first == second[::-1] for first, second in zip(seen[::2], seen[1::2], strict=True))
    assert len({tuple(order) for order in seen}) > 4
    other = races.Orders(racers, "another model")
    assert [[r.name for r in other.next()] for _ in range(8)] != seen
