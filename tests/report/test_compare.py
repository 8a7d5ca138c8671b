from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from made_results import FACTS, blocks, make_result
from markdown_it import MarkdownIt

from edgevit.errors import OptionError, UnavailableError, UnknownNameError
from edgevit.measure import Instructions, Memory, Result
from edgevit.report.compare import Comparison, Row, compare_results
from edgevit.report.compare_render import render_comparison
from edgevit.tensorspec import TensorSpec

TORCH = {"format": "torch", "backend": "torch", "runtime_version": "2.13.0"}


def at(ms: float, seed: int = 0, rounds: int = 10, **subject: Any) -> Result:
    return make_result(samples=blocks(ms, seed=seed, rounds=rounds), **subject)


def only(comparison: Comparison) -> Row:
    assert len(comparison.rows) == 1
    return comparison.rows[0]


@pytest.mark.parametrize(
    ("head_ms", "verdict"),
    [
        (44, "slower"),
        (36, "faster"),
        (40, "no difference shown"),
        # The rank test is sure of both of these, but they are not past the threshold.
        (40.5, "no difference shown"),
        (39.5, "no difference shown"),
    ],
)
def test_a_difference_is_past_the_threshold_and_significant(head_ms: float, verdict: str) -> None:
    row = only(compare_results([at(40)], [at(head_ms, seed=1)]))
    assert row.verdict == verdict
    assert row.ratio == pytest.approx(head_ms / 40, rel=0.003)
    assert row.interval is not None
    assert row.interval[0] <= row.ratio <= row.interval[1]
    assert row.interval == pytest.approx((head_ms / 40, head_ms / 40), rel=0.01)
    assert row.p_value is not None
    assert (row.p_value < 0.05) == (head_ms != 40)


def test_a_ratio_past_the_threshold_alone_shows_nothing() -> None:
    random_ms = [40, 52, 38, 47, 41, 55]
    noisy = tuple(
        replace(b, round=i) for i, ms in enumerate(random_ms) for b in blocks(ms, rounds=1)
    )
    row = only(compare_results([at(40, rounds=6)], [make_result(samples=noisy)]))
    assert row.ratio is not None
    assert row.ratio > 1.05
    assert row.p_value is not None
    assert row.p_value > 0.05
    assert row.verdict == "no difference shown"


def test_the_threshold_can_be_moved_and_the_limit_lowers_it() -> None:
    base, head = [at(40)], [at(40.5, seed=1)]
    assert only(compare_results(base, head, threshold=0.005)).verdict == "slower"
    assert only(compare_results(base, head, threshold=0.1, fail_over=0.005)).over
    assert only(compare_results(base, [at(44)], threshold=0.2)).verdict == "no difference shown"


@pytest.mark.parametrize(
    ("head_ms", "limit", "code"),
    [(44, None, 0), (44, 0.05, 1), (44, 0.15, 0), (36, 0.05, 0), (40, 0.0, 0), (44, 0.0, 1)],
)
def test_the_limit_decides_the_exit_code(head_ms: float, limit: float | None, code: int) -> None:
    found = compare_results([at(40)], [at(head_ms, seed=1)], fail_over=limit)
    assert found.exit_code == code
    assert bool(found.regressions) == (code == 1)


@pytest.mark.parametrize(
    ("base", "head", "verdict", "code"),
    [
        ({}, {"status": "failed", "reason": "crashed"}, "stopped working", 1),
        ({}, {"status": "mismatch"}, "stopped working", 1),
        ({}, {"verification": "mismatch"}, "stopped working", 1),
        ({"status": "unstable"}, {"status": "failed"}, "stopped working", 1),
        ({"status": "failed"}, {}, "now works", 0),
        ({"status": "failed"}, {"status": "mismatch"}, "works on neither side", 3),
        ({}, {"status": "unstable", "reason": "drift"}, "unstable", 3),
        ({"status": "unstable"}, {}, "unstable", 3),
        ({}, {"status": "stopped"}, "unstable", 3),
    ],
    ids=str,
)
def test_what_works_and_what_is_steady(
    base: dict[str, Any], head: dict[str, Any], verdict: str, code: int
) -> None:
    # Ten times as slow: none of these may be called slower.
    found = compare_results([at(40, **base)], [at(400, **head)])
    row = only(found)
    assert (row.verdict, found.exit_code) == (verdict, code)
    assert not row.over
    if verdict != "unstable":
        assert (row.base_figure, row.head_figure, row.ratio) == (None, None, None)
    if reason := head.get("reason"):
        assert reason in str(row.reason)


def test_unsteady_rows_matter_only_where_they_were_needed() -> None:
    base = [at(40), at(40, threads=2)]
    head = [at(40, seed=1), at(80, threads=2, status="unstable", reason="drift")]
    assert compare_results(base, head).exit_code == 0
    assert compare_results(base, head, fail_over=0.05).exit_code == 3
    slower = [at(80), head[1]]
    assert compare_results(base, slower, fail_over=0.05).exit_code == 1


def test_rows_of_one_side() -> None:
    base, head = [at(40), at(30, threads=2)], [at(40, seed=1), at(50, batch=8)]
    found = compare_results(base, head, fail_over=0.05)
    assert [row.verdict for row in found.rows] == ["missing", "new", "no difference shown"]
    missing, new, _ = found.rows
    assert missing.base_figure == pytest.approx(30, rel=0.01)
    assert missing.head_figure is None
    assert new.head_figure == pytest.approx(50, rel=0.01)
    assert found.exit_code == 0


def test_the_worst_come_first() -> None:
    names = {"a": 40.0, "b": 60.0, "c": 50.0, "d": 30.0}
    base = [at(40, name=name) for name in names] + [at(40, name="e")]
    head = [at(ms, seed=1, name=name) for name, ms in names.items()]
    found = compare_results(base, [*head, at(40, name="e", status="failed", reason="crashed")])
    assert [row.result.subject.name for row in found.rows] == ["e", "b", "c", "d", "a"]
    assert found.counts == {
        "stopped working": 1, "slower": 2, "faster": 1, "no difference shown": 1,
    }  # fmt: skip


@pytest.mark.parametrize("rounds", [1, 3])
def test_too_few_rounds_tell_nothing(rounds: int) -> None:
    found = compare_results([at(40, rounds=rounds)], [at(80, rounds=3)])
    row = only(found)
    assert row.verdict == "not comparable"
    assert f"{rounds} and 3 rounds are too few" in str(row.reason)
    assert found.exit_code == 3


@pytest.mark.parametrize("side", [0, 1])
def test_times_of_an_emulator_are_never_compared(side: int) -> None:
    results = [at(40, emulated=True), at(80, emulated=True)]
    found = compare_results([results[0]], [results[1]])
    row = only(found)
    assert row.verdict == "not comparable"
    assert "emulator" in str(row.reason)
    assert (row.base_figure, row.ratio) == (None, None)
    mixed = [at(40), at(40)]
    mixed[side] = results[side]
    with pytest.raises(UnavailableError, match=r"emulated (no|yes) in base"):
        compare_results([mixed[0]], [mixed[1]])
    alone = compare_results([at(40), at(40, emulated=True, threads=2)], [at(40)]).rows[0]
    assert (alone.verdict, alone.base_figure) == ("missing", None)


def test_nothing_in_common() -> None:
    base = [at(40, name=f"m{i}") for i in range(5)]
    with pytest.raises(UnavailableError, match="nothing in common") as caught:
        compare_results(base, [at(40, name="other")])
    assert "m0 onnx on rpi4, m1 onnx on rpi4, m2 onnx on rpi4 and 2 more" in str(caught.value)
    assert "other onnx on rpi4" in str(caught.value)
    assert caught.value.exit_code == 3


def with_facts(result: Result, **facts: Any) -> Result:
    device = replace(result.context.device, facts={**FACTS, **facts})
    return replace(result, context=replace(result.context, device=device))


def test_other_devices_are_refused_by_name() -> None:
    base, head = [at(40)], [at(60, device="rpi5")]
    with pytest.raises(UnavailableError, match="rpi4 in base and rpi5 in head") as caught:
        compare_results(base, head)
    assert caught.value.exit_code == 3
    assert "--across-devices" in str(caught.value.hint)
    assert only(compare_results(base, head, across_devices=True)).verdict == "slower"


def test_the_same_name_on_another_machine_is_refused() -> None:
    other = with_facts(at(60), cpu={"model": "Xeon", "count": 4})
    with pytest.raises(UnavailableError, match="CPU Cortex-A72 in base, Xeon in head"):
        compare_results([at(40)], [other])
    assert only(compare_results([at(40)], [other], across_devices=True)).verdict == "slower"
    # What only one side tells is no difference.
    silent = with_facts(at(40), cpu={})
    assert only(compare_results([at(40)], [silent])).verdict == "no difference shown"


def test_several_devices_cannot_be_matched() -> None:
    base = [at(40), at(40, device="nano")]
    with pytest.raises(UnavailableError, match="which device belongs to which"):
        compare_results(base, [at(40, device="rpi5")], across_devices=True)
    found = compare_results(base, [at(40), at(50, device="nano")], across_devices=True)
    assert [row.verdict for row in found.rows] == ["slower", "no difference shown"]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            at(40, runtime_version="1.32.0"),
            "runtime onnxruntime 1.31.1 in base, onnxruntime 1.32.0 in head",
        ),
        (with_facts(at(40), os={"name": "Debian 13"}), "system Debian 12 in base, Debian 13"),
    ],
    ids=["runtime", "system"],
)
def test_other_versions_are_refused_by_name(head: Result, message: str) -> None:
    with pytest.raises(UnavailableError, match=message) as caught:
        compare_results([at(40)], [head])
    assert "--across-versions" in str(caught.value.hint)
    found = compare_results([at(40)], [head], across_versions=True)
    assert only(found).verdict == "no difference shown"


def test_the_newest_of_duplicates_counts_and_is_said_to() -> None:
    old = at(90, created="2025-12-31T00:00:00+00:00")
    for base in ([old, at(40)], [at(40), old]):
        found = compare_results(base, [at(40, seed=1)])
        assert only(found).verdict == "no difference shown"
        assert "base: 1 older result of the same subjects left out" in found.notes
    found = compare_results([at(40)], [old, old, at(40)])
    assert "head: 2 older results of the same subjects left out" in found.notes


def test_another_pass_does_not_make_it_another_subject() -> None:
    found = compare_results([at(40)], [at(30, passes=("fold_batchnorm", "fold_affine"))])
    assert only(found).verdict == "faster"
    assert "other passes in head than in base: 1 rows" in found.notes
    # With and without a pass on both sides, each goes with its like.
    both = [at(40), at(20, passes=("fold_batchnorm", "substitute_relu"))]
    found = compare_results(both, both)
    assert [row.ratio for row in found.rows] == [1, 1]
    assert not any("passes" in note for note in found.notes)
    # Where it is ambiguous nothing is matched.
    other = at(20, passes=("fold_affine",))
    found = compare_results([*both, at(40, threads=2)], [other, at(40, threads=2)])
    assert found.counts == {"missing": 2, "new": 1, "no difference shown": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"compute_unit": "ane"}},
        {"threads": 2}, {"batch": 2}, {"precision": "fp16"}, {"kind": "block"}, TORCH,
        {"inputs": (TensorSpec("image", (1, 3, 64, 64), "image"),)},
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_another_subject(change: dict[str, Any]) -> None:
    found = compare_results([at(40), at(40, name="b")], [at(40, **change), at(40, name="b")])
    assert found.counts == {"missing": 1, "new": 1, "no difference shown": 1}


def test_other_settings_are_told() -> None:
    head = at(40, settings={"providers": ["CPUExecutionProvider"], "threads": 1})
    notes = compare_results([at(40)], [head]).notes
    assert "the runtime was set up differently: threads" in notes


def memory(mib: float) -> Result:
    peak = round(60_000_000 + mib * 2**20)
    return replace(at(40, status="unstable"), memory=Memory(60_000_000, peak))


def test_memory_has_no_test_and_needs_no_steadiness() -> None:
    for mib, verdict in ((111, "more"), (90, "less"), (101, "no difference shown")):
        row = only(compare_results([memory(100)], [memory(mib)], metric="memory"))
        assert row.verdict == verdict
        assert row.p_value is None
        assert row.ratio == pytest.approx(mib / 100)
    found = compare_results([memory(100)], [replace(memory(90), memory=None)], metric="memory")
    assert only(found).reason == "head has no memory"
    assert found.exit_code == 3


def test_size_needs_no_device() -> None:
    head = at(40, device="rpi5", emulated=True, runtime_version="2", file_bytes=94_371_841)
    found = compare_results([at(40)], [head], metric="size", fail_over=0.01)
    assert (only(found).verdict, found.exit_code) == ("larger", 0)
    head = at(40, file_bytes=104_371_841)
    assert compare_results([at(40)], [head], metric="size", fail_over=0.01).exit_code == 1


def counted(millions: float, **subject: Any) -> Result:
    instructions = Instructions(round(millions * 1e6), 0.001, "callgrind 3.19")
    return replace(at(40, status="unstable", **subject), instructions=instructions)


@pytest.mark.parametrize(
    ("millions", "verdict"), [(100.05, "no difference shown"), (100.2, "more"), (99, "fewer")]
)
def test_instructions_go_by_their_own_tolerance(millions: float, verdict: str) -> None:
    emulated = {"emulated": True}
    row = only(
        compare_results(
            [counted(100, **emulated)], [counted(millions, **emulated)], metric="instructions"
        )
    )
    assert row.verdict == verdict
    assert row.base_figure == pytest.approx(100)


@pytest.mark.parametrize("metric", ["instructions", "memory"])
def test_figures_that_were_taken_differently_are_not_compared(metric: str) -> None:
    base, head = counted(100), counted(200)
    assert head.instructions
    assert head.memory
    other = replace(
        head,
        instructions=replace(head.instructions, method="qemu 7.2"),
        memory=replace(head.memory, method="ru_maxrss"),
    )
    row = only(compare_results([base], [other], metric=metric))
    assert row.verdict == "not comparable"
    assert f"{metric} was taken differently: " in str(row.reason)
    assert {"instructions": "qemu 7.2 in head", "memory": "VmHWM in base"}[metric] in str(
        row.reason
    )


def test_results_without_instructions_cannot_be_compared_by_them() -> None:
    found = compare_results([at(40)], [at(40)], metric="instructions")
    assert only(found).reason == "base has no instructions"
    assert found.exit_code == 3


def test_wrong_use() -> None:
    with pytest.raises(UnknownNameError, match="'latencies'"):
        compare_results([at(40)], [at(40)], metric="latencies")
    for share in (-0.1, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="fail_over"):
            compare_results([at(40)], [at(40)], fail_over=share)


@pytest.fixture(scope="module")
def mixed() -> Comparison:
    base = [at(40), at(40, name="a|b_c"), at(40, threads=2), at(30, batch=8)]
    head = [at(48, seed=1), at(40, name="a|b_c", status="failed", reason="no *room*")]
    head.append(at(41, threads=2, status="unstable", reason="drift"))
    return compare_results(base, head, fail_over=0.05)


def test_json_has_everything(mixed: Comparison) -> None:
    document = json.loads(render_comparison(mixed, "json"))
    assert document["exit_code"] == 1
    assert (document["metric"], document["unit"], document["fail_over"]) == ("latency", "ms", 0.05)
    stopped, slower, unstable, missing = document["rows"]
    assert stopped["verdict"] == "stopped working"
    assert stopped["head_status"] == "failed"
    assert slower["over_limit"] is True
    assert slower["ratio"] == pytest.approx(1.2, rel=0.01)
    assert slower["interval"][0] < slower["ratio"] < slower["interval"][1]
    assert slower["same_file"] is True
    assert unstable["reason"] == "head: unstable: drift"
    assert (missing["batch"], missing["head"], missing["same_file"]) == (8, None, None)
    assert document["counts"] == {
        "stopped working": 1, "slower": 1, "unstable": 1, "missing": 1,
    }  # fmt: skip


def test_markdown_is_one_table_a_reader_can_trust(mixed: Comparison) -> None:
    text = render_comparison(mixed, "md")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [t for t in tokens if t.type == "inline"]
    cells = ["".join(c.content for c in t.children or []) for t in inline]
    assert sum(t.type == "tr_open" for t in tokens) == 5
    assert "a|b_c" in cells
    assert "slower (over the limit)" in cells
    assert cells[0].startswith("latency: 1 stopped working, 1 slower, 1 unstable, 1 missing.")
    assert "Regression: 1 over the limit and 1 stopped working." in cells[0]
    assert "stopped working: a|b_c, onnx fp32, rpi4: failed: no *room*" in cells
    assert any("the limit is 5 %" in cell for cell in cells)


def test_text_says_the_same(mixed: Comparison) -> None:
    text = render_comparison(mixed)
    assert "slower (over the limit)" in text
    assert "Regression: 1 over the limit and 1 stopped working." in text
    assert "threads" in text
    assert "precision" not in text
    same = render_comparison(compare_results([at(40)], [at(40)]))
    assert "no difference shown. No limit was set." in same
    assert "threads" not in same
    with pytest.raises(UnknownNameError, match="comparison format"):
        render_comparison(mixed, "html")


def test_the_input_is_shown_where_it_tells_rows_apart() -> None:
    small = (TensorSpec("image", (1, 3, 64, 64), "image"),)
    both = [at(40), at(10, inputs=small)]
    assert "3x64x64" in render_comparison(compare_results(both, both))
    assert "3x224x224" not in render_comparison(compare_results(both[:1], both[:1]))


def test_backend_and_options_are_shown_where_they_tell_rows_apart() -> None:
    other = at(30, backend="trtexec", runtime_version="8.2")
    text = render_comparison(compare_results([at(40), other], [at(40), other]))
    assert "backend" in text
    assert "trtexec" in text
    assert "options" not in text
    unit = at(30, options={"compute_unit": "ane"})
    text = render_comparison(compare_results([at(40), unit], [at(40), unit]))
    assert "compute unit ane" in text
    assert "backend" not in text


def test_within_the_limit_and_not_told() -> None:
    within = compare_results([at(40)], [at(40)], fail_over=0.05)
    assert "Within the limit." in render_comparison(within)
    unsteady = compare_results([at(40)], [at(40, status="unstable")], fail_over=0.05)
    assert "Could not be told" in render_comparison(unsteady)


def test_many_reasons_are_counted() -> None:
    base = [at(40, name=f"m{i}") for i in range(25)]
    head = [at(40, name=f"m{i}", status="unstable", reason="drift") for i in range(25)]
    text = render_comparison(compare_results(base, head))
    assert text.count("head: unstable: drift") == 10
    assert "15 more such rows" in text
    assert "of 25 rows about 1 pass the rank test by chance" in text
