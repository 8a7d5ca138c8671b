"""Write ``docs/models.md``: every model and block with its counts, the paper's, and its formats.

python -m benchmarks.models_page            write it
python -m benchmarks.models_page --check    exit 1 if it is not what would be written

It is made of the zoo's index and of ``docs/zoo.json``, which ``make zoo`` fills.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.zoo_matrix import FORMATS, STATE, State, read_state
from edgevit.zoo.registry import ModelInfo, block_info, list_blocks, list_models, model_info

PAGE = STATE.with_name("models.md")
TITLES = {"onnx": "ONNX", "coreml": "Core ML", "tflite": "TFLite"}
PAPERS = {
    "efficientvit": "EfficientViT",
    "elevit": "EleViT",
    "lavit": "LaViT",
    "sima": "SimA",
    "vision-xformers": "Vision Xformers",
}
#: What each of the papers' figures counts, and in which unit.
FIGURES = {
    "params": ("parameters", 1.0),
    "params_m": ("parameters", 1e6),
    "flops_m": ("MACs", 1e6),
    "flops_g": ("MACs", 1e9),
}

INTRO = """\
# Models and blocks

Written by `make docs` from the registry and from what `make zoo` found; not to be edited.

* **Parameters** are trainable scalars. Vision Xformers counts by a narrower rule (that of the
  torchsummary package, which leaves out class tokens, positions and sequence projections): where a
  paper does, its rule's count stands behind a slash.
* **MACs** are multiply-accumulates of convolutions and matrix products for one image at the size
  given; the papers call them FLOPs.
* **Published** is the paper's figure. **=** says that ours is equal as printed, **==** that an
  integer is equal to the last digit; else the difference is given.
* **Formats**: the largest difference as a share of the output's scale, the size, and the seconds
  that writing took. ✓ ran in the format's own runtime; ○ its graph and weights were read back and
  executed by edgevit's reference interpreter (Core ML runs on Apple systems only; fp16 weights,
  computed in fp32); ✗ failed, with the reason below. Weights are random: figures show that a file
  computes the same, never what a trained model loses.
"""


@dataclass(frozen=True)
class Match:
    """A published figure beside ours."""

    model: str
    what: str
    published: float
    ours: int
    unit: float

    @property
    def integer(self) -> bool:
        """Whether the paper prints the number to its last digit."""
        return self.unit == 1

    @property
    def off(self) -> float:
        """By which share ours is larger."""
        return self.ours / (self.published * self.unit) - 1

    @property
    def equal(self) -> bool:
        """Equal as printed."""
        digits = len(str(self.published).partition(".")[2]) if "." in str(self.published) else 0
        return round(self.ours / self.unit, digits) == self.published

    @property
    def verdict(self) -> str:
        """In a word for the table."""
        if self.equal:
            return "==" if self.integer else "="
        return f"{100 * self.off:+.1f} %" if abs(self.off) >= 5e-4 else f"{self.off:+.1e}"

    @property
    def printed(self) -> str:
        """As the paper prints it."""
        words = {1.0: "", 1e6: " M", 1e9: " G"}
        return f"{self.published:,}{words[self.unit]}"


def matches(info: ModelInfo) -> list[Match]:
    """Published counts beside ours."""
    found = []
    for key, (what, unit) in FIGURES.items():
        if key in info.published:
            ours = info.macs if what == "MACs" else info.params
            if key == "params":
                ours = info.params_torchsummary
            assert ours is not None, info.name
            found.append(Match(info.name, what, info.published[key], ours, unit))
    return found


def page(state: State) -> str:
    """The whole page."""
    infos = [model_info(name) for name in list_models()]
    parts = [INTRO, *_summary(infos, state)]
    by_paper: dict[str, list[ModelInfo]] = {}
    for info in infos:
        by_paper.setdefault(PAPERS.get(info.paper or "", "Hosts"), []).append(info)
    for paper in sorted(by_paper):
        parts += ["", f"## {paper}", "", *_models(by_paper[paper], state)]
    parts += ["", "## Blocks", "", *_blocks(state)]
    return "\n".join(parts).rstrip() + "\n"


# -- summary ---------------------------------------------------------------------------------------


def _summary(infos: Sequence[ModelInfo], state: State) -> Iterator[str]:
    yield "## In short"
    yield ""
    yield from _table(("", *TITLES.values()), _totals(state))
    yield ""
    found = [match for info in infos for match in matches(info)]
    exact = sum(m.equal and m.integer for m in found)
    equal = sum(m.equal and not m.integer for m in found)
    others = sorted((m for m in found if not m.equal), key=lambda m: -abs(m.off))
    yield (
        f"Of {len(found)} published counts, {exact} are matched to the last digit, {equal} as "
        f"printed, and {len(others)} are not:"
    )
    yield ""
    rows = [(f"`{m.model}`", m.what, m.printed, f"{m.ours:,}", m.verdict) for m in others]
    yield from _table(("model", "what", "published", "ours", "off"), rows)


def _totals(state: State) -> Iterator[tuple[str, ...]]:
    for kind in ("models", "blocks"):
        entries = [e for k, e in state.items() if k.startswith("block ") == (kind == "blocks")]
        yield (kind, *(_total(entries, name) for name in FORMATS))


def _total(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    cells = [e["formats"][name] for e in entries if name in e["formats"]]
    good = [c for c in cells if c["status"] in ("verified", "reference")]
    worst = max((_off(c) for c in good), default=0.0)
    return f"{len(good)} of {len(cells)}, at most {worst:.1e} off" if cells else "not run"


# -- models and blocks -----------------------------------------------------------------------------


def _models(infos: Sequence[ModelInfo], state: State) -> Iterator[str]:
    header = ("model", "px", "parameters", "MACs", "published", "table", *TITLES.values())
    yield from _table(header, [_model(info, state) for info in infos])
    yield from _notes([(info.name, info.note) for info in infos if info.note])
    yield from _reasons([(info.name, state.get(info.name)) for info in infos])


def _model(info: ModelInfo, state: State) -> tuple[str, ...]:
    counted = f"{info.params:,}"
    if info.params_torchsummary is not None:
        counted += f" / {info.params_torchsummary:,}"
    published = "<br>".join(f"{m.printed} {m.what} {m.verdict}" for m in matches(info))
    macs = f"{(info.macs or 0) / 1e6:,.1f} M"
    cells = (_cell(state.get(info.name), name) for name in FORMATS)
    name = f"`{info.name}`"
    return (name, str(info.image_size), counted, macs, published, info.table or "", *cells)


def _blocks(state: State) -> Iterator[str]:
    yield "At 256 tokens and 8 heads of width 64, without projections where a block has a core."
    yield ""
    rows = []
    for name in list_blocks():
        info, entry = block_info(name), state.get(f"block {name}")
        macs = f"{entry['counts'].get('macs', 0) / 1e6:,.1f} M" if entry else ""
        cells = (_cell(entry, format_name) for format_name in FORMATS)
        rows.append((f"`{name}`", info.layout, macs, PAPERS.get(info.paper or "", ""), *cells))
    yield from _table(("block", "works on", "MACs", "paper", *TITLES.values()), rows)
    yield from _reasons([(name, state.get(f"block {name}")) for name in list_blocks()])


def _cell(entry: Mapping[str, Any] | None, format_name: str) -> str:
    cell = (entry or {}).get("formats", {}).get(format_name)
    if cell is None:
        return "not run"
    if cell["status"] not in ("verified", "reference"):
        return "✗" if cell["status"] == "failed" else str(cell["status"])
    mark = {"verified": "✓", "reference": "○"}[cell["status"]]
    return f"{mark} {_off(cell):.0e}, {cell['bytes'] / 2**20:.1f} MiB, {cell['seconds']:.0f} s"


def _off(cell: Mapping[str, Any]) -> float:
    """The first check's difference: that of the graph, for a file of two precisions."""
    return float(cell["checks"][0]["of_scale"] or 0.0)


def _notes(notes: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Each note once, with the models that it is about."""
    by_note: dict[str, list[str]] = {}
    for name, note in notes:
        by_note.setdefault(note, []).append(f"`{name}`")
    if by_note:
        yield ""
    for note, names in by_note.items():
        yield f"* {', '.join(names)}: {note}"


def _reasons(entries: Sequence[tuple[str, Mapping[str, Any] | None]]) -> Iterator[str]:
    """Why files failed, which BatchNorms were kept, and what is off."""
    lines = []
    for name, entry in entries:
        for format_name, cell in sorted((entry or {}).get("formats", {}).items()):
            if cell.get("reason"):
                lines.append(f"* `{name}`, {TITLES[format_name]}: {cell['reason']}")
        kept: list[str] = next(
            (c["batchnorms_kept"] for c in _cells(entry) if c.get("batchnorms_kept")), []
        )
        if kept:
            lines.append(f"* `{name}` keeps {len(kept)} BatchNorms: {', '.join(kept)}")
        if islands := next((c["kept_fp32"] for c in _cells(entry) if c.get("kept_fp32")), None):
            lines.append(f"* `{name}`, Core ML: in fp32 stay {', '.join(islands)}")
        if off := (entry or {}).get("counts", {}).get("off"):
            lines.append(f"* `{name}`: counts are off, {off}")
    if lines:
        yield ""
        yield from lines


def _cells(entry: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    formats: Mapping[str, Mapping[str, Any]] = (entry or {}).get("formats", {})
    return formats.values()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def main() -> int:
    """Write the page, or with ``--check`` compare it."""
    text = page(read_state(STATE))
    if "--check" in sys.argv[1:]:
        current = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        if current != text:
            print(f"docs/{PAGE.name} is stale: run `make docs`", file=sys.stderr)
        return int(current != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
