"""``edgevit report``: one page of HTML with everything in it, that needs no network.

The page's script builds the tables from data in the page (so that thousands of rows open at once)
and draws the plots. Sections are a list: a section that has nothing to show is left out.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import Any

from edgevit.errors import UnavailableError
from edgevit.measure.profile import Profile
from edgevit.measure.record import MEMORY_DEFINITION
from edgevit.measure.results import Result
from edgevit.measure.statistics import PERCENTILE_RULE
from edgevit.measure.verdict import DRIFT_LIMIT, WIDTH_LIMIT
from edgevit.report.page_data import DETAILS, page_tables
from edgevit.report.plots import runtime, specifications
from edgevit.report.profile_data import newest_profiles, profile_plots, profile_table
from edgevit.report.remarks import provenance_of
from edgevit.report.table import newest

__all__ = ["build_page"]

Tables = Mapping[str, Any]


@dataclass(frozen=True)
class _Section:
    """A part of the page.

    Args:
        name: its id.
        heading: in the page and its list of contents.
        body: HTML.
    """

    name: str
    heading: str
    body: str

    @property
    def link(self) -> str:
        return f'<li><a href="#{self.name}">{_text(self.heading)}</a></li>'

    @property
    def markup(self) -> str:
        return (
            f'<section id="{self.name}" aria-labelledby="{self.name}-heading">\n'
            f'<h2 id="{self.name}-heading">{_text(self.heading)}</h2>\n{self.body}\n</section>'
        )


def build_page(
    results: Iterable[Result],
    *,
    profiles: Iterable[Profile] = (),
    title: str = "Latency of vision transformers",
    published: bool = True,
    now: datetime | None = None,
) -> str:
    """A page of results, whole in itself.

    Args:
        results: in any order; of several of the same row the newest counts.
        profiles: of operators, drawn as bars and as a roofline; the newest of each counts.
        title: of the page.
        published: add the papers' own figures of these models, in a table of their own.
        now: when it is written; the current time without.

    Returns:
        HTML.

    Raises:
        UnavailableError: there are neither results nor profiles.
        MissingExtraError: the extra ``report`` is not installed.
    """
    shown, older = newest(results)
    drawn = newest_profiles(profiles)
    if not shown and not drawn:
        raise UnavailableError("there are no results to show", hint="`edgevit bench` writes them")
    tables = page_tables(shown, published=published)
    if drawn:
        tables["profiles"] = profile_table(drawn)
    sections = _sections(tables, shown, older)
    vega, script = runtime()
    data = {
        "tables": tables,
        "details": DETAILS,
        "plots": specifications(),
        "profiles": profile_plots(drawn),
    }
    written = (now or datetime.now(timezone.utc)).astimezone(timezone.utc)
    return Template(_asset("page.html")).substitute(
        version=version("edgevit"),
        title=_text(title),
        summary=_text(_summary(shown, drawn)),
        style=_asset("page.css"),
        links="\n".join(section.link for section in sections),
        sections="\n".join(section.markup for section in sections),
        written=written.strftime("%Y-%m-%d %H:%M UTC"),
        vega=vega,
        data=_embedded(data),
        runtime=script,
        script=_asset("page.js"),
    )


def _sections(tables: Tables, shown: Sequence[Result], older: int) -> list[_Section]:
    makers = {
        "measured": ("Measured", _MEASURED),
        "emulated": ("Emulated devices", _EMULATED),
        "broken": ("Not measured", _BROKEN),
        "published": ("Published figures", _PUBLISHED),
        "devices": ("Devices and conditions", _DEVICES),
    }
    found = {
        name: _Section(name, heading, body)
        for name, (heading, body) in makers.items()
        if name in tables
    }
    order = [found.get("measured")]
    if "measured" in tables:
        values = tables["measured"]["values"]
        if "params_m" in values or "macs_g" in values:
            order.append(_Section("cost", "Latency against size and work", _COST))
        if any(size is not None for size in values["n"]):
            order.append(_Section("blocks", "Attention blocks", _BLOCKS))
    if "profiles" in tables:
        order.append(_Section("profiles", "Where the time goes", _PROFILES))
    order += [found.get(name) for name in ("emulated", "broken", "published", "devices")]
    order.append(_Section("notes", "How to read this", _notes(shown, older)))
    return [section for section in order if section is not None]


_MEASURED = """<div class="controls" id="filters" role="search" aria-label="Filter results"></div>
<div class="table" data-table="measured" data-caption="Medians of timed runs on real devices. \
Choose a heading to sort, a model to see the circumstances of its numbers."></div>"""
_EMULATED = """<p><span class="badge emulated">emulated</span> These ran where an emulator stands \
in for the device: that shows that they run and compute the right thing. Times and memory of an \
emulator are not the device's, and are not shown.</p>
<div class="table" data-table="emulated" data-caption="Checked on emulated devices, not \
timed."></div>"""
_BROKEN = """<p>These failed, or compute something else than they should; their times mean nothing \
and are not shown.</p>
<div class="table" data-table="broken" data-caption="What could not be measured, and why."></div>"""
_PUBLISHED = """<p><span class="badge">published</span> Printed in the papers, measured there on \
other devices, with other runtimes and batches. Nothing here was measured by edgevit.</p>
<div class="table" data-table="published" data-caption="Latency and throughput as the papers print \
them."></div>"""
_DEVICES = """<div class="table" data-table="devices" data-caption="What the results were measured \
on, and what the devices told of themselves before and after the runs."></div>"""
_COST = """<p id="cost-words"></p>
<ul class="legend" id="cost-legend"></ul>
<div class="plots">
<figure><figcaption>Against parameters</figcaption>
<div class="plot" data-plot="params"></div></figure>
<figure><figcaption>Against multiply-accumulates</figcaption>
<div class="plot" data-plot="macs"></div></figure>
</div>
<p class="hover" id="cost-hover" role="status"></p>"""
_BLOCKS = """<p id="blocks-words"></p>
<fieldset id="blocks-axis"><legend>Latency over</legend>
<label><input type="radio" name="axis" value="tokens" checked> tokens N</label>
<label><input type="radio" name="axis" value="width"> width D of a head</label></fieldset>
<ul class="legend" id="blocks-legend"></ul>
<div class="panels" id="blocks-panels"></div>
<p class="hover" id="blocks-hover" role="status"></p>"""

_PROFILES = """<p>Shares of operators, by the runtime's own profiler. A profiler takes time itself \
and charges small operators more than they cost, so times are those of profiled inferences; what \
the profiler costs stands in the table.</p>
<ul class="legend" id="operators-legend"></ul>
<div class="plot" data-plot="operators"></div>
<p class="hover" id="operators-hover" role="status"></p>
<div id="roofline"><h3>Against the machine's peaks</h3>
<p>Every point is a kind of work in a profile. The dashed roof is what the machine reached by \
itself, with products of large matrices and with copying; what comes from caches may lie above \
it. Both axes are logarithmic.</p>
<ul class="legend" id="roofline-legend"></ul>
<div class="plot" data-plot="roofline"></div>
<p class="hover" id="roofline-hover" role="status"></p></div>
<div class="table" data-table="profiles" data-caption="Shares of the operators' time; exp is what \
needs the exponential function: softmax, GELU, sigmoid."></div>"""


def _notes(shown: Sequence[Result], older: int) -> str:
    notes = [
        "The headline is the median of all timed runs; its interval comes from order statistics of "
        "the round medians. No run is ever left out.",
        f"Rows marked † were not steady (the interval wider than {100 * WIDTH_LIMIT:.0f} %, drift "
        f"of more than {100 * DRIFT_LIMIT:.0f} %, throttling, other work); they are hidden until "
        "asked for.",
        "verified: ran on the device and agrees with its golden outputs; reference: agreed "
        "elsewhere, with the same graph and weights; unverified: could not be checked.",
        f"memory: {MEMORY_DEFINITION}.",
        f"Percentiles follow the rule “{PERCENTILE_RULE}”. Batches are not divided out: a "
        "time is that of one inference of the whole batch.",
    ]
    if older:
        notes.append(f"{older} older result{'s' * (older > 1)} of the same rows left out.")
    provenance = provenance_of(shown)
    listed = [f"{line}." for line in provenance[:MOST]]
    if len(provenance) > MOST:
        listed.append(f"{len(provenance) - MOST} more; every row has its own.")
    return (
        f'<ul class="notes">{_items(notes)}</ul>\n<h3>Where the numbers come from</h3>\n'
        f'<ul class="notes">{_items(listed)}</ul>'
    )


#: So many commands are listed; rows have theirs anyway.
MOST = 30


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{_text(line)}</li>" for line in lines)


def _summary(shown: Sequence[Result], profiles: Sequence[Profile]) -> str:
    contexts = [r.context for r in shown] + [p.context for p in profiles]
    devices = sorted({context.device.name for context in contexts})
    dates = sorted(context.created[:10] for context in contexts)
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    names = {r.subject.name for r in shown} | {p.subject.name for p in profiles}
    subjects = _count(len(names), "model or block", "models and blocks")
    named = ", ".join(devices[:6]) + " and more" * (len(devices) > 6)
    told = [_count(len(shown), "result")] if shown else []
    told += [_count(len(profiles), "profile")] if profiles else []
    return f"{' and '.join(told)} of {subjects} on {named}; {span}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _text(words: str) -> str:
    return html.escape(words)


def _embedded(data: Any) -> str:
    """JSON that cannot end the script that it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028"}
    for character, escape in (escapes | {"\u2029": "\\u2029"}).items():
        text = text.replace(character, escape)
    return text


def _asset(name: str) -> str:
    return (files("edgevit.report") / "assets" / name).read_text(encoding="utf-8")
