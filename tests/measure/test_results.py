from __future__ import annotations

import json
import stat
from dataclasses import fields, is_dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import jsonschema
import pytest
from made_results import make_result

from edgevit.errors import BundleError, OutputError, UsageError
from edgevit.measure import (
    Device,
    Instructions,
    Result,
    Samples,
    current_context,
    read_results,
    result_filename,
)
from edgevit.measure.results import SCHEMA
from edgevit.tensorspec import TensorSpec


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def failed() -> Result:
    return replace(
        make_result(samples=(), status="failed", reason="it would not load"),
        load_ms=None,
        first_ms=None,
        warmup=None,
        memory=None,
    )


@pytest.mark.parametrize(
    "result",
    [
        make_result(),
        make_result(status="unstable", reason="drift"),
        make_result(samples=[Samples(0, 4, (5,))], verification="unverified"),
        make_result(kind="block", params=None, macs=None, file_sha256=None),
        failed(),
    ],
    ids=["ok", "unstable", "one run", "block", "failed"],
)
def test_documents_follow_the_schema(result: Result, validator: Any, tmp_path: Path) -> None:
    file = result.write(tmp_path)
    document = json.loads(file.read_text(encoding="utf-8"))
    validator.validate(document)
    assert document == result.to_json()
    assert Result.read(file) == result


def objects(schema: dict[str, Any]) -> Any:
    """Every object of the schema that lists its properties."""
    if "properties" in schema:
        yield schema
        for child in schema["properties"].values():
            yield from objects(child)
    if "items" in schema:
        yield from objects(schema["items"])


def test_every_field_of_the_schema_is_described(validator: Any) -> None:
    for schema in objects(validator.schema):
        for name, child in schema["properties"].items():
            assert child.get("description"), name


def test_the_schema_names_the_units(validator: Any) -> None:
    text = validator.schema["properties"]
    assert "Milliseconds" in text["load_ms"]["description"]
    assert "Nanoseconds" in text["samples_ns"]["items"]["properties"]["ns"]["description"]


def check_fields(schema: dict[str, Any], cls: Any, extra: frozenset[str] = frozenset()) -> None:
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    assert set(schema["properties"]) == names | extra, cls
    later = {f.name for f in fields(cls) if f.metadata.get("optional")}
    assert set(schema["required"]) == (names - later) | extra, cls
    for name in names:
        kind, child = hints[name], schema["properties"][name]
        if get_origin(kind) is UnionType:
            kind = get_args(kind)[0]
        if get_origin(kind) is tuple:
            kind, child = get_args(kind)[0], child["items"]
        if is_dataclass(kind):
            check_fields(child, kind)


def test_the_schema_and_the_classes_have_the_same_fields(validator: Any) -> None:
    check_fields(validator.schema, Result, frozenset({"schema_version", "statistics"}))


def test_counted_instructions_are_kept_and_may_be_lacking(validator: Any, tmp_path: Path) -> None:
    counted = replace(make_result(), instructions=Instructions(4_660_000, 3e-5, "callgrind 3.19"))
    document = json.loads(counted.write(tmp_path).read_text(encoding="utf-8"))
    validator.validate(document)
    assert Result.from_json(document) == counted
    del document["instructions"]
    validator.validate(document)
    assert Result.from_json(document) == make_result()
    document["instructions"] = {"per_inference": 4_660_000}
    with pytest.raises(BundleError, match="instructions lacks method, tolerance"):
        Result.from_json(document)


def test_results_from_before_there_were_suites_are_read() -> None:
    document = make_result().to_json()
    del document["context"]["suite"]
    assert Result.from_json(document) == make_result()
    document["context"]["suite"] = "sima-table3"
    assert Result.from_json(document).context.suite == "sima-table3"


def test_statistics_follow_from_the_samples() -> None:
    document = make_result().to_json()
    fresh = Result.from_json(json.loads(json.dumps(document)))
    assert fresh.statistics is not None
    assert fresh.statistics.to_json() == document["statistics"]
    document["samples_ns"][3]["ns"][0] += 100_000_000
    with pytest.raises(BundleError, match="do not follow from its samples"):
        Result.from_json(document)


@pytest.mark.parametrize(
    "edit",
    [
        {"median_ms": 1.0},
        {"n": 119},
        {"outliers": True},
        {"percentile_rule": "nearest"},
        {"notes": ["all is well"]},
        {"extra": 1},
        {"drift": None},
    ],
    ids=str,
)
def test_edited_statistics_are_refused(edit: dict[str, Any]) -> None:
    document = make_result().to_json()
    document["statistics"] |= edit
    with pytest.raises(BundleError, match="edited"):
        raise_with_hint(document)


def raise_with_hint(document: dict[str, Any]) -> None:
    try:
        Result.from_json(document)
    except BundleError as error:
        raise BundleError(f"{error} {error.hint}") from error


def test_true_is_not_one() -> None:
    document = make_result(samples=[Samples(0, 1, (5,))]).to_json()
    document["statistics"]["n"] = True
    with pytest.raises(BundleError, match="do not follow"):
        Result.from_json(document)


def test_the_last_digit_may_differ_between_machines() -> None:
    document = make_result().to_json()
    document["statistics"]["stdev_ms"] *= 1 + 1e-13
    Result.from_json(document)


def test_samples_stay_on_a_line(tmp_path: Path) -> None:
    result = make_result(command='edgevit bench "[\n 1,\n 2\n]"')
    file = result.write(tmp_path / "r.json")
    lines = file.read_text(encoding="utf-8").splitlines()
    ns = ", ".join(map(str, result.samples_ns[0].ns))
    assert any(line.strip() == f'"ns": [{ns}]' for line in lines)
    assert Result.read(file) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("subject"), "lacks subject"),
        (lambda d: d["subject"].pop("threads"), r"subject lacks threads"),
        (lambda d: d["subject"].update(threads="2"), "threads: expected a whole number, got '2'"),
        (lambda d: d["subject"].update(threads=True), "threads: expected a whole number"),
        (lambda d: d.update(status="fine"), "status: expected 'ok' or 'unstable'"),
        (lambda d: d["context"].update(device="pi"), "device: expected an object, got 'pi'"),
        (lambda d: d["subject"]["inputs"][0].pop("shape"), r"inputs\[0\] lacks shape"),
        (lambda d: d["subject"].update(inputs={}), "inputs: expected a list"),
        (lambda d: d.update(surprise=1), "has surprise, which"),
        (lambda d: d.update(load_ms="fast"), "load_ms: expected a number"),
        (lambda d: d.update(load_ms=True), "load_ms: expected a number"),
        (lambda d: d.update(load_ms=float("nan")), "load_ms: expected a number"),
        (lambda d: d["samples_ns"][0]["ns"].append(-4), "ns must be at least 1"),
        (lambda d: d["samples_ns"][0]["ns"].append(2**70), "below 2"),
        (lambda d: d["samples_ns"][0]["ns"].append(0.5), r"ns\[12\]: expected a whole number"),
        (lambda d: d.update(schema_version=0), "schema version 0; this edgevit reads 1"),
        (lambda d: d.update(schema_version="2"), "schema version '2'"),
        (lambda d: d.pop("schema_version"), "is not a result"),
        (lambda d: d.update(statistics=None), "do not follow"),
    ],
)
def test_damage_is_named(change: Any, message: str) -> None:
    document = make_result().to_json()
    change(document)
    with pytest.raises(BundleError, match=message):
        Result.from_json(document, "r.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[1, 2]", "not a result"),
        ("null", "not a result"),
        ('{"schema_version": 1, "model": {}, "files": {}}', "not a result"),
        ('{"schema_version": 1, "samples_ns": []}', "lacks conditions, context"),
        ('{"schema_version": NaN}', "NaN is not a number"),
    ],
)
def test_foreign_and_broken_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=message) as caught:
        Result.read(file)
    assert "r.json" in str(caught.value)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    file = make_result(samples=[Samples(0, 1, (5, 6))]).write(tmp_path / "r.json")
    content = file.read_bytes()
    for length in range(0, len(content) - 2, 97):
        file.write_bytes(content[:length])
        with pytest.raises(BundleError):
            Result.read(file)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="damaged"):
        Result.read(file)


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        make_result(name=name).write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not json")
    assert [r.subject.name for r in read_results(tmp_path)] == ["a", "b"]
    file = next((tmp_path / "a").glob("*.json"))
    assert [r.subject.name for r in read_results(file)] == ["a"]


def test_one_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    make_result().write(tmp_path)
    (tmp_path / "zz.json").write_text("{")
    with pytest.raises(BundleError, match=r"zz\.json"):
        read_results(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results"):
        read_results(tmp_path)
    with pytest.raises(UsageError, match="there is no result"):
        read_results(tmp_path / "nowhere")


def test_writing_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    first = make_result(ms=40).write(tmp_path)
    second = make_result(ms=20).write(tmp_path)
    assert first == second
    assert [p.name for p in tmp_path.iterdir()] == [first.name]
    statistics = Result.read(first).statistics
    assert statistics is not None
    assert statistics.median_ms == pytest.approx(20, rel=0.01)
    assert stat.S_IMODE(first.stat().st_mode) == 0o644


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_result(ms=40).write(tmp_path)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        make_result(ms=20).write(tmp_path)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        make_result().write(tmp_path / "file" / "r.json")


def test_nan_is_never_written(tmp_path: Path) -> None:
    result = replace(make_result(), load_ms=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        result.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_are_the_same_for_the_same_subject() -> None:
    assert result_filename(make_result(ms=1)) == result_filename(make_result(ms=2, status="failed"))
    assert result_filename(make_result()).startswith("rpi4_elevit_onnx-fp32_t1_b1_")


def test_names_differ_where_subjects_do() -> None:
    image = TensorSpec("image", (1, 3, 64, 64), "image")
    results = [
        make_result(),
        make_result(device="rpi5"),
        make_result(name="elevit_noff"),
        make_result(format="tflite"),
        make_result(precision="fp16"),
        make_result(threads=4),
        make_result(batch=8),
        make_result(kind="block"),
        make_result(passes=()),
        make_result(inputs=(image,)),
        make_result(device="rpi4_elevit", name="onnx"),
        make_result(device="rpi4/elevit"),
        make_result(device="rpi4 elevit"),
    ]
    assert len({result_filename(r).lower() for r in results}) == len(results)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b", "Modell Ö/ä", "x" * 500, "...", ""])
def test_names_are_safe_on_any_file_system(name: str, tmp_path: Path) -> None:
    result = make_result(name=name, device=name)
    file = result.write(tmp_path)
    assert file.parent == tmp_path
    assert file.name.isascii()
    assert not file.name.startswith(".")
    assert len(file.name) < 200
    assert Result.read(file).subject.name == name


def test_a_current_context_is_utc() -> None:
    zone = timezone(timedelta(hours=5))
    context = current_context(
        Device("local"), command="edgevit bench", seed=3, now=datetime(2026, 1, 1, 2, tzinfo=zone)
    )
    assert context.created == "2025-12-31T21:00:00+00:00"
    assert context.edgevit
    assert context.host["python"]


def test_a_current_context_fits_the_schema(validator: Any) -> None:
    context = current_context(Device("local"), command="edgevit bench")
    validator.validate(replace(make_result(), context=context).to_json())


def test_memory_is_the_peak_less_the_baseline() -> None:
    memory = make_result().memory
    assert memory is not None
    assert memory.net_bytes == 130_000_000
    assert replace(memory, baseline_bytes=None).net_bytes is None
