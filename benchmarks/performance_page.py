"""Write ``docs/performance.md`` of what ``python -m benchmarks.peers --publish`` measured.

python -m benchmarks.performance_page            write it
python -m benchmarks.performance_page --check    exit 1 if it is not what would be written
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.peers import FLOOR, WANTED
from benchmarks.ratios import Ratio, Times, compare, mean, pooled
from benchmarks.record import COSTS, RECORD, read_record
from benchmarks.ways import CONTROL, JOINED, NAIVE, OURS, USUAL, WITH_JOINED
from edgevit.measure.results import write_atomically

__all__ = ["page"]

PAGE = RECORD.with_suffix(".md")

INTRO = """\
# Performance

Written by `python -m benchmarks.performance_page` from what `python -m benchmarks.peers --publish`
measured; not to be edited.

One thread, fp32, random weights. All files of a row ran in one process, in shuffled order, a block
of runs each, round after round, and were all opened anew several times: where a runtime puts a
file's weights is worth some percent of a small model's time, until it is opened again. A figure
is naive CPU time by the file's, of each opening the median over its rounds, of all openings the
geometric mean, so **more than 1 is faster than naive** (`torch.onnx.export(dynamo=True)`,
onnxruntime's defaults); behind ± is the half of the 95 % interval that the openings leave, in
thousandths. *The same again* is the naive file once more, a control: what it differs by says
nothing. *Written the usual way* is a model of the same weights whose
attention is written as most published code has it (`benchmarks/textbook.py`): the zoo's own avoids
five-dimensional permutations, so naive files of it are good ones. *Attention joined* is a file of
opset 23 for onnxruntime, one operator for each attention that can be one (`--option
onnx.attention=true`), which is not done unless asked for; a dash where there is none. *wrong*:
outputs off by more than 1e-4 of their scale; *absent*: not installed where this was measured.

A row with † is of files that an earlier exporter wrote. Since then there are sums as products,
maps and windows turned in one step, heads without a batch of one and biases within products (ONNX),
and products without copies (ExecuTorch).
"""
TITLES = {
    "batch-1": "Batch 1, every way to make and run a file",
    "batch-16": "Batch 16, onnxruntime",
    "zoo-1": "The other models of the zoo, batch 1, onnxruntime",
    "zoo-16": "The other models of the zoo, batch 16, onnxruntime",
    "choices": "Every choice for onnxruntime, for models that a gain was wanted of",
    "passes": "What each rewrite brings, onnxruntime",
}
PASSES = """\
Against the file of all rewrites: below 1, the file is slower without this one. A dash: there is
nothing to rewrite, or the row was measured before the column was there. *With attention joined* is
a file of opset 23 that has one operator for it (`--option onnx.attention=true`), which is not done
unless asked for: above 1, that file is faster. *The same again* is the file of all rewrites made
once more. The zoo's own attention is spelled out anyhow; *of the usual way* are the files of models
whose attention is not.
"""
CHOICES = """\
Against naive, and with nothing in the process but these files, so a row disturbs itself least: what
the targets are judged by. *Without* are files that lack one of the rewrites, *with attention
joined* those of opset 23. A dash: there is nothing to rewrite or to join.
"""
SHARES = """\
### Share of the machine's peak

Products of the model (two operations a MAC) by the median time, as a share of numpy's product of
two large fp32 matrices on one thread, measured beside the row. What remains to 100 % is what work
other than products costs, and products of awkward shape.
"""
COSTS_TITLES = {
    "depthwise": "Large depthwise convolutions, whole and in parts",
    "border": "XCiT's BatchNorms between padded convolutions, kept and folded with their border",
    "products": "What no rewrite leaves out: the products of DeiT-S alone",
    "export_cost": "A verified ONNX bundle against torch's bare exporters",
    "agent_overhead": "The agent's own part in a time",
    "two_percent": "How long a bench must be to see two percent",
}
FASTEST = 1.12
#: When rows of all formats are of an earlier exporter: their digest does not tell which of several.
EARLIER = "2026-11-30T10:42"

Row = Mapping[str, Any]
Rows = Mapping[str, Row]
Record = Mapping[str, Rows]


# -- what a row says -------------------------------------------------------------------------------


def times(row: Row, name: str) -> Times | None:
    """Microseconds a run, round by round of each opening; None where the candidate has none."""
    found: Times | None = row["candidates"].get(name, {}).get("us")
    return found


def ratio(row: Row, name: str, base: str | None = None) -> Ratio | None:
    """A candidate against another, the row's first without one; None where either has no times."""
    own, others = times(row, name), times(row, base or first(row))
    return compare(others, own) if own and others else None


def first(row: Row) -> str:
    """What the row's ratios are against."""
    names: Mapping[str, Any] = row["candidates"]
    return next(iter(names))


def fastest(row: Row, *, ours: bool) -> str | None:
    """The candidate of edgevit's, or of everybody else's, with the best ratio to naive."""
    ratios = {
        name: found.value
        for name, entry in row["candidates"].items()
        if name != CONTROL and entry["ours"] is ours and (found := ratio(row, name))
    }
    return max(ratios, key=ratios.__getitem__, default=None)


def share(row: Row, name: str) -> float | None:
    """Of the machine's peak."""
    own = times(row, name)
    if not own:
        return None
    per_s = 2 * row["macs"] / (pooled(own) / 1e6)
    return float(per_s / row["peak"]["flops_per_s"])


# -- the page --------------------------------------------------------------------------------------


def page(record: Record, costs: Rows | None = None) -> str:
    """The whole page."""
    parts = [INTRO]
    if "batch-1" in record:
        parts += ["## Targets\n", bullets(targets(record, costs or {}))]
    for kind in [name for name in TITLES if name in record]:
        parts.append(f"## {TITLES[kind]}\n")
        parts += [{"passes": PASSES, "choices": CHOICES}.get(kind, "")]
        parts += [table(record[kind], earlier(record, kind)), bullets(absences(record[kind]))]
        if kind == "batch-1":
            parts += [bullets(means(record[kind])), SHARES, shares(record[kind])]
    parts += list(cost_sections(costs or {}))
    parts += ["## Circumstances\n", bullets(circumstances(record))]
    return "\n".join(part for part in parts if part)


def verdicts(lines: Sequence[str]) -> list[str]:
    """Those that say what came of a target."""
    return [line for line in lines if line.startswith("* **")]


def cost_sections(costs: Rows) -> Iterator[str]:
    """What `python -m benchmarks.costs --publish` measured."""
    if costs:
        yield "## Parts of models, and costs\n"
    for name, found in costs.items():
        versions = ", ".join(f"{tool} {number}" for tool, number in found["versions"].items())
        yield f"### {COSTS_TITLES[name]}\n"
        told = verdicts(found["lines"])
        text = "\n".join(line for line in found["lines"] if line not in told)
        yield re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
        yield (
            f"`python -m benchmarks.{name}`, {found['created'][:10]}, {found['cpu']['model']}, "
            f"load average {found['load']}, {versions}\n"
        )


def bullets(lines: Iterator[str]) -> str:
    return "".join(f"* {line}\n" for line in lines)


def earlier(record: Record, kind: str) -> set[str]:
    """The models whose row is of files that an earlier exporter wrote."""
    if kind == "batch-1":
        return {model for model, row in record[kind].items() if row["created"] < EARLIER}
    # All other tables are of one exporter's files.
    rows = [row for name in record if name != "batch-1" for row in record[name].values()]
    newest = max(rows, key=lambda row: str(row["created"])).get("code")
    return {model for model, row in record[kind].items() if row.get("code") != newest}


def table(rows: Rows, marked: Collection[str] = ()) -> str:
    """A line a model, a column a way to make and run it; some models with a dagger."""
    names = list(dict.fromkeys(n for row in rows.values() for n in row["candidates"]))
    base, *others = names
    body = [
        [
            f"{model} †" if model in marked else model,
            _ms(row, base),
            *(cell(row, name) for name in others),
        ]
        for model, row in sorted(rows.items())
    ]
    return markdown(["model", f"{base}, ms", *others], body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _ms(row: Row, name: str) -> str:
    own = times(row, name)
    return f"{pooled(own) / 1e3:.2f}" if own else cell(row, name)


def cell(row: Row, name: str) -> str:
    """A ratio with its interval, or why there is none."""
    entry = row["candidates"].get(name, {"status": "none"})
    if entry["status"] == "wrong":
        return f"*wrong* ({entry['of_scale']:.0e})"
    if entry["status"] != "ok":
        return "-" if entry["status"] == "none" else str(entry["status"])
    found = ratio(row, name)
    return _said(found) if found else "no naive file"


def absences(rows: Rows) -> Iterator[str]:
    """Why a cell holds no figure, each reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for model, row in sorted(rows.items()):
        for name, entry in row["candidates"].items():
            if entry["status"] in {"absent", "failed"}:
                reasons.setdefault((name, entry["reason"]), []).append(model)
    for (name, reason), models in reasons.items():
        where = "" if len(models) == len(rows) else f" ({', '.join(models)})"
        yield f"{name}{where}: {reason}"


def means(rows: Rows) -> Iterator[str]:
    """Geometric means against naive, over the models that have a figure."""
    names = list(dict.fromkeys(n for row in rows.values() for n in row["candidates"]))
    for name in [n for n in names if n not in (NAIVE, CONTROL)]:
        found = [r.value for row in rows.values() if (r := ratio(row, name))]
        yield f"{name}: geometric mean {mean(found):.3f} over {_models(len(found))}"
    for whose, ours in (("edgevit's files", True), ("the others'", False)):
        found = best_ratios(rows, ours=ours)
        yield f"the fastest of {whose} for each model: {mean(found):.3f}"


def best_ratios(rows: Rows, *, ours: bool) -> list[float]:
    """For each model the fastest candidate's speed as a multiple of naive's."""
    names = [(row, fastest(row, ours=ours)) for row in rows.values()]
    return [r.value for row, name in names if name and (r := ratio(row, name))]


def _models(count: int) -> str:
    return f"{count} model{'' if count == 1 else 's'}"


def shares(rows: Rows) -> str:
    """A line a model: what it computes, and how close to the peak naive and ours come."""
    body = []
    for model, row in sorted(rows.items()):
        best = fastest(row, ours=True)
        cells = [_percent(share(row, name)) for name in (NAIVE, OURS)]
        last = [best or "-", _percent(share(row, best) if best else None)]
        peak = f"{row['peak']['flops_per_s'] / 1e9:.0f}"
        body.append([model, f"{row['macs'] / 1e9:.3f}", peak, *cells, *last])
    return markdown(
        ["model", "GMACs", "peak, GFLOP/s", NAIVE, OURS, "fastest of edgevit's", "its share"], body
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


# -- targets ---------------------------------------------------------------------------------------


def targets(record: Record, costs: Rows) -> Iterator[str]:
    """What was aimed at, what came of it, and whether that holds."""
    rows = record["batch-1"]
    yield from gains(rows, record.get("choices", {}))
    yield from floors(record)
    yield from beaten(rows)
    best = mean(best_ratios(rows, ours=True))
    yield verdict(
        best >= FASTEST,
        f"the fastest of edgevit's files, geometric mean over {_models(len(rows))}: {best:.3f} of "
        f"naive; {FASTEST} wanted",
    )
    for found in costs.values():
        yield from (line.removeprefix("* ") for line in verdicts(found["lines"]))


def verdict(holds: bool, text: str) -> str:
    return f"**{'holds' if holds else 'missed'}**: {text}"


def gains(rows: Rows, choices: Rows) -> Iterator[str]:
    """Those models in onnxruntime that a gain was wanted of.

    What holds must hold of the default file, or of the one with attention joined. What does not is
    out of reach where that much is above the interval of every choice.
    """
    for model, least in WANTED.items():
        if (row := choices.get(model)) and (own := ratio(row, OURS)):
            names = [name for name in row["candidates"] if name not in (NAIVE, CONTROL)]
            found = {name: r for name in names if (r := ratio(row, name))}
            held = [own, *(r for name, r in found.items() if name == WITH_JOINED)]
            best = max(found, key=lambda name: found[name].value)
            said = f"{model} in onnxruntime: {_said(own)} of naive"
            if best != OURS:
                said += f", the fastest of {len(found)} choices {_said(found[best])} ({best})"
            if any(r.value >= least for r in held):
                yield f"**holds**: {said}; {least:.2f} wanted"
            else:
                out = all(r.high < least for r in found.values())
                word = "out of reach of every choice" if out else "missed"
                yield f"**{word}**: {said}; {least:.2f} wanted"
        elif model in rows and (r := ratio(rows[model], OURS)):
            usual, joined = ratio(rows[model], OURS, USUAL), ratio(rows[model], JOINED)
            said = f" ({usual.value:.3f} of one written the usual way)" if usual else ""
            said += f", {joined.value:.3f} with attention joined" if joined else ""
            text = f"{model} in onnxruntime: {r.value:.3f} of naive{said}; {least:.2f} wanted"
            highest = max(found.value for found in (r, joined) if found)
            yield verdict(highest >= least, text)


def _said(found: Ratio) -> str:
    return f"{found.value:.3f} ± {1000 * found.reach:.0f}"


def floors(record: Record) -> Iterator[str]:
    """Whether any model became slower in onnxruntime, batch by batch."""
    for batch, names in {1: ("batch-1", "zoo-1", "choices"), 16: ("batch-16", "zoo-16")}.items():
        kinds = [name for name in names if name in record]
        rows = {model: row for kind in kinds for model, row in record[kind].items()}
        old = {model: model in earlier(record, kind) for kind in kinds for model in record[kind]}
        found = {model: r.value for model, row in rows.items() if (r := ratio(row, OURS))}
        below = [_below(m, rows[m]) for m, value in sorted(found.items()) if value < FLOOR]
        text = f"no model below {FLOOR} of naive in onnxruntime at batch {batch}"
        if found:
            said = f"{text}, of {len(found)} measured"
            said += f", {count} of them †" if (count := sum(old[model] for model in found)) else ""
            yield verdict(not below, said + (f": {', '.join(below)}" if below else ""))


def _below(model: str, row: Row) -> str:
    """A figure with its interval, and what chance did to the naive file itself."""
    again = f" (the same naive file again {cell(row, CONTROL)})" if times(row, CONTROL) else ""
    return f"{model} {cell(row, OURS)}{again}"


def beaten(rows: Rows) -> Iterator[str]:
    """Whether the best of ours is slower than the best of the others for any model."""
    found = {model: r for model, row in sorted(rows.items()) if (r := best_against_best(row))}
    slower = [f"{m} {r.value:.3f} ± {1000 * r.reach:.0f}" for m, r in found.items() if r.slower]
    text = "the fastest of edgevit's files is not significantly slower than the fastest of others'"
    yield verdict(not slower, text + (f": {', '.join(slower)}" if slower else ""))
    overall = mean(r.value for r in found.values())
    yield f"fastest against fastest, geometric mean over {_models(len(found))}: {overall:.3f}"


def best_against_best(row: Row) -> Ratio | None:
    """The fastest of ours against the fastest of the others, round by round."""
    ours, others = fastest(row, ours=True), fastest(row, ours=False)
    return ratio(row, ours, others) if ours and others else None


# -- circumstances ---------------------------------------------------------------------------------


def circumstances(record: Record) -> Iterator[str]:
    """Processor, load, dates and versions of all rows."""
    rows = [row for kind in record.values() for row in kind.values()]
    measured = [e["us"] for row in rows for e in row["candidates"].values() if "us" in e]
    dates = sorted(row["created"][:10] for row in rows)
    others = [row["others"] for row in rows if row["others"] is not None]
    yield f"processor: {', '.join(sorted({str(row['cpu']['model']) for row in rows}))}"
    yield (
        f"peak: {', '.join(sorted({row['peak']['method'] for row in rows}))}, one thread, "
        + span([row["peak"]["flops_per_s"] / 1e9 for row in rows], "GFLOP/s", 0)
    )
    yield f"load average when a row was done: {span([row['load'] for row in rows])}"
    if others:
        yield f"cores that others kept busy during a row: {span(others)}"
    yield f"openings of a file: {span([len(us) for us in measured], digits=0)}"
    yield f"rounds of an opening: {span([len(o) for us in measured for o in us], digits=0)}"
    yield f"measured: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
    yield from versions(rows)


def span(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """From the least to the greatest."""
    ends = dict.fromkeys(f"{end:.{digits}f}" for end in (min(values), max(values)))
    return f"{' to '.join(ends)} {unit}".strip()


def versions(rows: Sequence[Row]) -> Iterator[str]:
    for name in sorted({name for row in rows for name in row["versions"]}):
        have = sorted({row["versions"].get(name) or "not installed" for row in rows})
        yield f"{name} {', '.join(have)}"


def main() -> int:
    if not RECORD.exists():
        return 0
    text = page(read_record(RECORD), read_record(COSTS))
    if "--check" not in sys.argv[1:]:
        write_atomically(PAGE, text.removesuffix("\n"))
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    print(
        f"docs/{PAGE.name} is not what the record says; run `python -m benchmarks.performance_page`"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
