"""Write ``docs/performance.md`` of what ``python -m benchmarks.peers --publish`` measured.

python -m benchmarks.performance_page            write it
python -m benchmarks.performance_page --check    exit 1 if it is not what would be written
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.peers import OURS, RECORD
from edgevit.measure.results import write_atomically

PAGE = RECORD.with_suffix(".md")

INTRO = """\
# Performance

Written by `python -m benchmarks.performance_page` from what `python -m benchmarks.peers --publish`
measured; not to be edited.

One thread, fp32, random weights. All files of a row ran in one process, in shuffled order, a block
of runs each, round after round. A figure is the median over the rounds of naive CPU time by the
file's, so **more than 1 is faster than naive** (`torch.onnx.export(dynamo=True)`, onnxruntime's
defaults); behind ± is the larger half of the 95 % interval, in thousandths. Take differences below
2 % for none, whatever their interval says: the same file loaded twice can differ by as much.
*wrong*: outputs off by more than 1e-4 of their scale.
"""
PASSES = """\
## What each rewrite brings

Against the file of all default rewrites in onnxruntime: below 1, the file is slower without the
rewrite (or with it, for those that are not made by default). A dash: there is nothing to rewrite.
*The same again* is the control, that file loaded once more.
"""

Record = Mapping[str, Mapping[str, Mapping[str, Any]]]


def page(record: Record) -> str:
    """The whole page."""
    parts = [INTRO]
    for kind in sorted(k for k in record if k != "passes"):
        parts.append(f"## {kind.capitalize()}\n")
        parts += [table(record[kind]), means(record[kind])]
    if "passes" in record:
        parts += [PASSES, table(record["passes"])]
    parts += ["## Circumstances\n", circumstances(record)]
    return "\n".join(parts)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a model, a column a way to make and run it."""
    names = list(dict.fromkeys(n for row in rows.values() for n in row["candidates"]))
    first = names[0]
    others = [n for n in names if n != first]
    lines = [
        f"| model | {first}, ms | {' | '.join(others)} |",
        "|---|---|" + "---|" * len(others),
    ]
    for model, row in sorted(rows.items()):
        found = row["candidates"]
        cells = [cell(found.get(name, {"status": "none"})) for name in others]
        lines.append(f"| {model} | {found[first]['ms']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(found: Mapping[str, Any]) -> str:
    """A ratio with its interval, or why there is none."""
    if found["status"] == "ok":
        low, high = found["interval"]
        reach = max(high - found["ratio"], found["ratio"] - low)
        return f"{found['ratio']:.3f} ± {1000 * reach:.0f}"
    if found["status"] == "wrong":
        return f"*wrong* ({found['of_scale']:.0e})"
    return "-" if found["status"] in {"none", "absent"} else str(found["status"])


def means(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Geometric means over the models that every one of a kind ran."""
    found = [row["candidates"] for row in rows.values()]
    best = [max(ratios(row, lambda n: n.startswith("edgevit"))) for row in found]
    peers = [max([1.0, *ratios(row, lambda n: not n.startswith("edgevit"))]) for row in found]
    own = [row[OURS]["ratio"] for row in found if "ratio" in row.get(OURS, {})]
    lines = [f"* {OURS}, geometric mean over {len(own)} models: {mean(own):.3f}"]
    lines.append(f"* the fastest of edgevit's files for each model: {mean(best):.3f}")
    lines.append(f"* the fastest of the others for each model: {mean(peers):.3f}")
    slower = [m for m, row in rows.items() if row["candidates"][OURS].get("ratio", 1) < 0.98]
    lines.append(f"* below 0.98 of naive in onnxruntime: {', '.join(sorted(slower)) or 'none'}")
    return "\n".join(lines) + "\n"


def ratios(row: Mapping[str, Mapping[str, Any]], wanted: Any) -> list[float]:
    return [found["ratio"] for name, found in row.items() if "ratio" in found and wanted(name)]


def mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def circumstances(record: Record) -> str:
    """Processor, load, dates and versions of all rows."""
    rows = [row for kind in record.values() for row in kind.values()]
    loads = sorted(row["load"] for row in rows)
    dates = sorted(row["created"][:10] for row in rows)
    lines = [
        f"* processor: {', '.join(sorted({row['cpu']['model'] for row in rows}))}",
        f"* load average when a row was done: {loads[0]:.2f} to {loads[-1]:.2f}",
        f"* rounds: {', '.join(map(str, sorted({row['rounds'] for row in rows})))}",
        f"* measured: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}",
        *versions(rows),
    ]
    return "\n".join(lines) + "\n"


def versions(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = sorted({name for row in rows for name in row["versions"]})
    for name in names:
        have = sorted({row["versions"][name] for row in rows if name in row["versions"]})
        yield f"* {name} {', '.join(have)}"


def main() -> int:
    if not RECORD.exists():
        return 0
    text = page(json.loads(RECORD.read_text()))
    if "--check" not in sys.argv[1:]:
        write_atomically(PAGE, text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    print(
        f"docs/{PAGE.name} is not what the record says; run `python -m benchmarks.performance_page`"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
