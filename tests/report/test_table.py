from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from made_results import SUBJECT, blocks, make_result

from edgevit.errors import OptionError, UnknownNameError
from edgevit.measure import Samples
from edgevit.report.published import load_published
from edgevit.report.table import COLUMNS, build_table
from edgevit.tensorspec import TensorSpec

TIMES = [
    "median_ms", "interval_low_ms", "interval_high_ms", "p90_ms", "p99_ms", "images_per_s",
    "load_ms", "first_ms", "memory_mib", "speed_ratio",
]  # fmt: skip
TORCH = {"format": "torch", "backend": "torch", "runtime_version": "2.13.0"}


def row(frame: pd.DataFrame, **where: Any) -> dict[Any, Any]:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.to_dict("records")[0]


def notes(frame: pd.DataFrame) -> str:
    return "\n".join(frame.attrs["notes"])


def test_a_row_holds_the_result() -> None:
    result = make_result(batch=8)
    found = row(build_table([result]))
    statistics = result.statistics
    assert statistics is not None
    assert found["median_ms"] == statistics.median_ms
    assert (found["interval_low_ms"], found["interval_high_ms"]) == statistics.interval_ms
    assert (found["p90_ms"], found["p99_ms"]) == (statistics.p90_ms, statistics.p99_ms)
    assert found["images_per_s"] == pytest.approx(8000 / statistics.median_ms)
    assert (found["runs"], found["rounds"]) == (120, 10)
    assert found["params_m"] == pytest.approx(23.42531)
    assert found["macs_g"] == pytest.approx(2.333)
    assert found["size_mib"] == 90
    assert found["memory_mib"] == pytest.approx(130_000_000 / 2**20)
    assert (found["load_ms"], found["first_ms"]) == (120.5, 80.25)
    assert (found["verification"], found["status"]) == ("verified", "ok")
    assert (found["origin"], found["threads"], found["batch"]) == ("measured", 1, 8)
    assert (found["cpu"], found["runtime"]) == ("Cortex-A72", "onnxruntime 1.31.1")
    assert found["command"] == result.context.command
    assert list(build_table([result]).columns) == list(COLUMNS)


@pytest.mark.parametrize("status", ["unstable", "stopped", "mismatch", "failed"])
def test_only_ok_rows_are_shown_by_default(status: str) -> None:
    bad = make_result(format="tflite", status=status, reason="because of this")
    frame = build_table([make_result(), bad])
    assert list(frame["format"]) == ["onnx"]
    assert f"not shown: elevit, tflite fp32, rpi4: {status}: because of this" in notes(frame)
    assert "not shown" not in notes(build_table([make_result(), bad], include="all"))


def test_unstable_rows_are_marked_where_they_are_asked_for() -> None:
    frame = build_table([make_result(status="unstable", reason="drift")], include="all")
    found = row(frame)
    assert found["status"] == "unstable"
    assert found["median_ms"] > 0
    assert "† not steady: elevit, onnx fp32, rpi4: drift" in notes(frame)


@pytest.mark.parametrize(
    "bad",
    [
        {"status": "mismatch", "verification": "mismatch"},
        {"status": "mismatch"},
        {"status": "failed"},
        {"status": "unstable", "verification": "mismatch"},
        {"emulated": True},
        {"emulated": True, "status": "unstable"},
    ],
    ids=str,
)
def test_times_that_mean_nothing_are_nowhere(bad: dict[str, Any]) -> None:
    frame = build_table([make_result(ms=77, **bad)], include="all", relative_to="elevit")
    assert frame.loc[0, TIMES].isna().all()
    assert "77" not in frame.drop(columns=["file_sha256"]).to_csv()


def test_emulated_devices_are_called_so() -> None:
    frame = build_table([make_result(emulated=True)])
    found = row(frame)
    assert (found["status"], found["verification"]) == ("emulated", "verified")
    assert "not the device's" in notes(frame)
    assert frame.attrs["provenance"][0].startswith("checked on rpi4 (emulated, Cortex-A72")
    assert "runs" not in frame.attrs["provenance"][0]


def test_what_is_unverified_is_never_ok() -> None:
    frame = build_table([make_result(verification="unverified")])
    found = row(frame)
    assert (found["verification"], found["status"]) == ("unverified", "unverified")
    assert "unverified: elevit, onnx fp32, rpi4: a reason" in notes(frame)


def test_the_newest_of_the_same_row_counts() -> None:
    old = make_result(ms=50, created="2025-12-31T00:00:00+00:00")
    new = make_result(ms=40)
    for results in ([old, new], [new, old]):
        frame = build_table(results)
        assert row(frame)["median_ms"] == pytest.approx(40, rel=0.01)
        assert "1 older result of the same rows left out" in notes(frame)
    assert len(build_table([new, make_result(threads=4), make_result(batch=2)])) == 3


def test_a_newer_failure_is_not_hidden_by_an_older_success() -> None:
    old = make_result(created="2025-12-31T00:00:00+00:00")
    frame = build_table([old, make_result(status="failed", reason="crashed")])
    assert len(frame) == 0
    assert "failed: crashed" in notes(frame)


def test_rows_go_by_model_device_batch_and_threads() -> None:
    results = [
        make_result(name="b", threads=2),
        make_result(name="a"),
        make_result(name="b", threads=1, batch=4),
        make_result(name="b", device="rpi5"),
        make_result(name="b", threads=1),
    ]
    frame = build_table(results)
    found = list(
        zip(frame["model"], frame["device"], frame["batch"], frame["threads"], strict=True)
    )
    assert found == [
        ("b", "rpi4", 1, 1), ("b", "rpi4", 1, 2), ("b", "rpi4", 4, 1), ("b", "rpi5", 1, 1),
        ("a", "rpi4", 1, 1),
    ]  # fmt: skip


def test_speed_relative_to_a_format() -> None:
    results = [
        make_result(ms=40),
        make_result(ms=80, **TORCH),
        make_result(ms=20, threads=2),
        make_result(ms=30, name="deit_small"),
        make_result(ms=60, name="deit_small", **TORCH),
    ]
    frame = build_table(results, relative_to="torch")
    assert row(frame, model="elevit", format="onnx", threads=1)["speed_ratio"] == pytest.approx(
        2, rel=0.01
    )
    assert row(frame, model="elevit", format="torch")["speed_ratio"] == 1
    # With two threads there is no torch row to compare with.
    assert pd.isna(row(frame, threads=2)["speed_ratio"])
    assert row(frame, model="deit_small", format="onnx")["speed_ratio"] == pytest.approx(
        2, rel=0.01
    )
    assert "speed_ratio" in frame.attrs["columns"]
    assert "above 1 is faster" in notes(frame)


def test_speed_relative_to_a_model() -> None:
    results = [
        make_result(ms=40),
        make_result(ms=60, name="deit_small"),
        make_result(ms=9, **TORCH),
    ]
    frame = build_table(results, relative_to="deit_small")
    assert row(frame, format="onnx", model="elevit")["speed_ratio"] == pytest.approx(1.5, rel=0.01)
    assert pd.isna(row(frame, format="torch")["speed_ratio"])


def test_other_inputs_are_not_compared() -> None:
    small = (TensorSpec("image", (1, 3, 64, 64), "image"),)
    frame = build_table([make_result(), make_result(inputs=small, **TORCH)], relative_to="torch")
    assert pd.isna(row(frame, format="onnx")["speed_ratio"])
    assert "input" in frame.attrs["columns"]
    assert set(frame["input"]) == {"3x224x224", "3x64x64"}
    assert "input" not in build_table([make_result()]).attrs["columns"]


def test_the_reference_of_the_same_precision_counts() -> None:
    results = [
        make_result(ms=80, precision="fp16", **TORCH),
        make_result(ms=40, **TORCH),
        make_result(ms=20),
        make_result(ms=20, format="coreml", precision="fp16"),
        make_result(ms=20, format="other", precision="int8"),
    ]
    frame = build_table(results, relative_to="torch")
    assert row(frame, format="onnx")["speed_ratio"] == pytest.approx(2, rel=0.01)
    assert row(frame, format="coreml")["speed_ratio"] == pytest.approx(4, rel=0.01)
    assert row(frame, format="other")["speed_ratio"] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    "bad", [{"status": "mismatch"}, {"status": "unstable"}, {"emulated": True}]
)
def test_nothing_is_relative_to_times_that_are_not_shown(bad: dict[str, Any]) -> None:
    frame = build_table([make_result(), make_result(**TORCH, **bad)], relative_to="torch")
    assert frame["speed_ratio"].isna().all()
    assert "no shown row of torch" in notes(frame)


def test_an_unknown_reference_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'torhc'") as caught:
        build_table([make_result(**TORCH)], relative_to="torhc")
    assert caught.value.nearest == ["torch"]
    with pytest.raises(OptionError, match="include"):
        build_table([], include="everything")


def test_published_figures_have_rows_and_columns_of_their_own() -> None:
    results = [make_result(), make_result(format="tflite"), make_result(name="efficientvit_m5")]
    frame = build_table(results, published=True)
    assert list(frame["origin"][:3]) == ["measured", "measured", "published"]
    elevit = row(frame, origin="published", model="elevit")
    # One figure, although two tables and three data sets print it.
    assert elevit["published"] == "0.14 s"
    assert elevit["published_source"] == "elevit, Table 1 and Table 2, 224 px"
    assert (elevit["device"], elevit["batch"]) == ("NVIDIA GeForce RTX 3090", 128)
    published = frame[frame["origin"] == "published"]
    measured = frame[frame["origin"] == "measured"]
    assert published[[*TIMES, "params_m", "status", "verification", "edgevit"]].isna().all().all()
    assert measured[[c for c in COLUMNS if c.startswith("published")]].isna().all().all()
    m5 = published[published["model"] == "efficientvit_m5"]
    assert set(m5["published"]) == {"10621 images/s", "56.8 images/s", "62.5 images/s"}
    assert "efficientvit, Table 2 and Table 3, ONNX, 224 px" in set(m5["published_source"])
    assert {"origin", "published", "published_source"} <= set(frame.attrs["columns"])
    last = frame.attrs["provenance"][-1]
    assert last.startswith("published: printed in the papers, measured there on other devices")
    assert "elevit: elevit, Table 1 and Table 2, 224 px" in last


def test_a_model_without_published_times_is_said_to_be_one() -> None:
    frame = build_table([make_result(name="vit_cifar10")], published=True)
    assert set(frame["origin"]) == {"measured"}
    assert "no latency or throughput" in frame.attrs["provenance"][-1]


def test_published_figures_come_only_where_asked() -> None:
    frame = build_table([make_result()])
    assert set(frame["origin"]) == {"measured"}
    assert not {"origin", "published", "published_source"} & set(frame.attrs["columns"])
    assert frame["published"].isna().all()


def test_published_figures_at_other_sizes_stay_out() -> None:
    at_64 = make_result(inputs=(TensorSpec("image", (1, 3, 64, 64), "image"),))
    frame = build_table([at_64], published=True)
    # Table 2 does not say at which size its latency was measured.
    assert row(frame, origin="published")["published_source"] == "elevit, Table 2"


def test_the_papers_own_ratios_are_apart_from_ours() -> None:
    results = [make_result(ms=40), make_result(ms=60, name="swiftformer_l3")]
    frame = build_table(results, published=True, relative_to="swiftformer_l3")
    published = row(frame, origin="published", model="elevit")
    assert published["published_speed_ratio"] == pytest.approx(0.2 / 0.14)
    assert pd.isna(published["speed_ratio"])
    measured = row(frame, origin="measured", model="elevit")
    assert measured["speed_ratio"] == pytest.approx(1.5, rel=0.01)
    assert pd.isna(measured["published_speed_ratio"])
    assert "published_speed_ratio" not in build_table(results, published=True).attrs["columns"]


def test_published_throughput_turns_round_in_a_ratio() -> None:
    results = [make_result(name="efficientvit_m0"), make_result(name="efficientvit_m5")]
    frame = build_table(results, published=True, relative_to="efficientvit_m5")
    ratios = frame[frame["model"] == "efficientvit_m0"]["published_speed_ratio"].dropna()
    assert sorted(ratios) == pytest.approx(sorted([27644 / 10621, 228.4 / 56.8, 340.1 / 62.5]))


def test_the_same_figure_of_two_devices_is_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = load_published("lavit_s", paper="lavit")[2]
    figures = [figure, replace(figure, device="A"), replace(figure, device="A", batch="2")]
    monkeypatch.setattr("edgevit.report.beside.load_published", lambda _: figures)
    frame = build_table([make_result(name="lavit_s")], published=True)
    assert [frame.loc[i, "device"] for i in (2, 3)] == ["A", "A"]
    assert list(frame["published"][1:]) == ["1546 images/s"] * 3


def test_blocks_have_published_times_too() -> None:
    tokens = (TensorSpec("tokens", (1, 256, 512)),)
    blocks = [
        make_result(kind="block", name=name, inputs=tokens)
        for name in ("sima-n256-d64-h8-order_nn", "softmax-n256-d64-h8")
    ]
    frame = build_table(blocks, published=True, relative_to="softmax-n256-d64-h8")
    where = {"origin": "published", "device": "Apple M1", "published": "20.4 ms"}
    found = row(frame, **where)
    assert found["published_source"] == "sima, Table 3, H=8 N=256 D=64"
    assert found["published_speed_ratio"] == pytest.approx(35.8 / 20.4)


def test_every_table_says_where_it_comes_from() -> None:
    later = make_result(
        format="tflite", threads=4, created="2026-01-05T00:00:00+00:00", samples=blocks(rounds=3)
    )
    elsewhere = make_result(device="xeon", command="edgevit bench --device xeon")
    first, second = build_table([make_result(), later, elsewhere]).attrs["provenance"]
    assert first == (
        "measured on rpi4 (Cortex-A72, Debian 12); onnxruntime 1.31.1; threads 1, 4; "
        "runs 36 to 120; 2026-01-02 to 2026-01-05; edgevit 0.1.0; "
        "edgevit bench elevit --device rpi4"
    )
    assert second.startswith("measured on xeon")
    assert second.endswith("edgevit bench --device xeon")


def test_provenance_leaves_out_what_is_not_shown() -> None:
    failed = make_result(device="xeon", status="failed", reason="x")
    assert len(build_table([make_result(), failed]).attrs["provenance"]) == 1


def test_memory_is_defined_where_it_is_shown() -> None:
    assert "less its level after imports" in notes(build_table([make_result()]))
    assert "imports" not in notes(build_table([make_result(emulated=True)]))


def test_many_results_left_out_are_counted() -> None:
    many = [make_result(name=f"m{i}", status="failed", reason="x") for i in range(12)]
    frame = build_table([*many, make_result(name="last", status="mismatch", reason="y")])
    assert "not shown either: 2 failed, 1 mismatch" in notes(frame)
    assert notes(frame).count("not shown: ") == 10


def test_one_run_and_one_round() -> None:
    frame = build_table(
        [make_result(samples=[Samples(0, 1, (5_000_000,))], status="unstable")], include="all"
    )
    found = row(frame)
    assert found["median_ms"] == 5
    assert pd.isna(found["interval_low_ms"])


def test_bare_results_make_rows() -> None:
    bare = make_result(
        file_sha256=None, file_bytes=None, runtime_version=None, params=None, macs=None, inputs=()
    )
    found = row(build_table([bare], published=True), origin="measured")
    assert found["runtime"] == SUBJECT.backend
    assert pd.isna(found["params_m"])
    assert pd.isna(found["size_mib"])


def test_p99_and_kind_are_shown_where_they_say_something() -> None:
    assert "p99_ms" not in build_table([make_result()]).attrs["columns"]
    assert "p99_ms" in build_table([make_result()], p99=True).attrs["columns"]
    both = build_table([make_result(), make_result(kind="block", name="sima")])
    assert "kind" in both.attrs["columns"]
    assert "kind" not in build_table([make_result()]).attrs["columns"]


def test_p99_of_few_runs_is_explained() -> None:
    few = make_result(samples=blocks(rounds=8, runs=5))
    assert "p99 of fewer than 100 runs (here 40)" in notes(build_table([few], p99=True))
    assert "p99" not in notes(build_table([few]))
    assert "p99" not in notes(build_table([make_result()], p99=True))


def test_nothing_at_all() -> None:
    frame = build_table([], published=True, relative_to="torch")
    assert len(frame) == 0
    assert list(frame.columns) == list(COLUMNS)


def test_importing_tables_imports_nothing_heavy() -> None:
    code = (
        "import sys, edgevit.report.table, edgevit.report.published, edgevit.measure\n"
        "heavy = {'torch', 'pandas', 'rich', 'exporters', 'devices', 'onnx', 'jsonschema'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
