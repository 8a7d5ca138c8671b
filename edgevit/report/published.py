"""The papers' own figures, as printed, from ``profiles/published/*.csv``.

One line of a file is one figure: what was printed, where, and on which device it was measured. A
figure of a model that edgevit does not have has no ``model``. Nothing here was measured by edgevit.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files

__all__ = ["Published", "load_published"]


@dataclass(frozen=True)
class Published:
    """One printed figure; an empty text stands for what the paper does not say.

    Args:
        paper: short name of the paper (``"elevit"``).
        table: where in it (``"Table 1"``).
        model: edgevit's name of the model, or of the block with its shape.
        paper_name: the paper's.
        dataset: that accuracy, or the number of classes, belongs to.
        input: height and width of the images in pixels, or the block's shape.
        device: that a latency, throughput or memory was measured on.
        runtime: that ran it there.
        threads: of it.
        batch: images in one inference.
        metric: ``"latency"``, ``"throughput"``, ``"params"``, ``"flops"``, ``"top1"``, ``"top5"``,
            ``"gpu_memory"`` or ``"size"``.
        unit: of the value.
        value: the figure, with the digits that were printed.
        note: what else there is to know.
    """

    paper: str
    table: str
    model: str
    paper_name: str
    dataset: str
    input: str
    device: str
    runtime: str
    threads: str
    batch: str
    metric: str
    unit: str
    value: str
    note: str

    @property
    def number(self) -> float:
        """The value as a number, in its unit."""
        return float(self.value)

    @property
    def source(self) -> str:
        """Paper and table."""
        return f"{self.paper}, {self.table}"


COLUMNS = tuple(f.name for f in fields(Published))


def load_published(model: str | None = None, *, paper: str | None = None) -> list[Published]:
    """Published figures, in the order of papers and tables.

    Args:
        model: only those of this model or block, by edgevit's name.
        paper: only those in this paper.
    """
    return [
        row
        for row in _all()
        if (model is None or row.model == model.lower()) and (paper is None or row.paper == paper)
    ]


@lru_cache(maxsize=1)
def _all() -> tuple[Published, ...]:
    return tuple(_read())


def _read() -> Iterator[Published]:
    folder = files("profiles") / "published"
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".csv"):
            lines = file.read_text(encoding="utf-8").splitlines()
            yield from (Published(**row) for row in csv.DictReader(lines))
