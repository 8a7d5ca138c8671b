"""The page's plots: Vega-Lite specifications, compiled to Vega when the page is written.

The page carries Vega (0.9 MB) and loads nothing. Data, titles and colours come from the page's
own script when a plot is drawn, so that plots follow the table's filters and the colour scheme.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from edgevit.errors import MissingExtraError

__all__ = ["runtime", "specifications"]

_BUNDLE = "window.vegaEmbed = vegaEmbed;"


@lru_cache(maxsize=1)
def specifications() -> dict[str, dict[str, Any]]:
    """Vega specifications by name; each has an empty data set ``points``.

    A point has ``x`` and ``y``, ``low`` and ``high`` of its interval, ``series``, ``color``,
    ``shape``, and ``words`` for tooltips and screen readers.

    Raises:
        MissingExtraError: the extra ``report`` is not installed.
    """
    convert = _convert()
    newest = convert.get_vegalite_versions()[-1]
    charts = {
        "params": _cost("parameters (M)"),
        "macs": _cost("multiply-accumulates of one image (G)"),
        "tokens": _blocks("tokens N"),
        "width": _blocks("width D of a head"),
        "operators": _operators(),
        "roofline": _roofline(),
    }
    return {
        name: convert.vegalite_to_vega(chart, vl_version=newest) for name, chart in charts.items()
    }


@lru_cache(maxsize=1)
def runtime() -> tuple[str, str]:
    """Vega's version and its JavaScript, which defines ``window.vegaEmbed``.

    Raises:
        MissingExtraError: the extra ``report`` is not installed.
    """
    convert = _convert()
    return convert.get_vega_version(), convert.javascript_bundle(_BUNDLE)


def _convert() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise MissingExtraError("the page", ["vl_convert"], "report") from error
    return vl_convert


def _cost(title: str) -> dict[str, Any]:
    """Latency against what a model holds or computes, a point a row."""
    return _chart(title, 340, [_interval(), _points(70)])


def _blocks(title: str) -> dict[str, Any]:
    """Latency of attention blocks over one size, a line a block."""
    line = {
        "mark": {"type": "line", "strokeWidth": 1.5, "aria": False},
        "encoding": {**_COLOR, "detail": {"field": "series"}},
    }
    return _chart(title, 240, [line, _interval(), _points(45)])


def _operators() -> dict[str, Any]:
    """Shares of operator types, a stacked bar a profile.

    A point has ``label`` of the bar, ``share``, ``order`` within it, ``color`` and ``words``.
    """
    return {
        **_frame({"step": 30}),
        "mark": {"type": "bar", "height": {"band": 0.8}},
        "encoding": {
            "y": {
                "field": "label",
                "type": "nominal",
                "sort": None,
                "title": None,
                "axis": {"labelLimit": 220, "domain": False, "ticks": False},
            },
            "x": {
                "field": "share",
                "type": "quantitative",
                "stack": "zero",
                "scale": {"domain": [0, 1], "nice": False},
                "axis": {"format": ".0%", "tickCount": 5},
                "title": "share of the operators' time",
            },
            "order": {"field": "order", "type": "ordinal"},
            **_COLOR,
            **_WORDS,
        },
    }


def _roofline() -> dict[str, Any]:
    """Rate over arithmetic intensity; points with ``roof`` are the corners of lines."""
    chart = _chart("operations a byte", 360, [], "GFLOP/s")
    roofs = {
        "transform": [{"filter": "datum.roof"}],
        "mark": {"type": "line", "strokeWidth": 1.5, "strokeDash": [6, 3], "aria": False},
        "encoding": {**_COLOR, "detail": {"field": "series"}},
    }
    kinds = {"transform": [{"filter": "!datum.roof"}], **_points(80)}
    return {**chart, "layer": [roofs, kinds]}


def _chart(
    title: str,
    height: int,
    layer: list[dict[str, Any]],
    measure: str = "median of one inference (ms)",
) -> dict[str, Any]:
    return {
        **_frame(height),
        "encoding": {
            "x": _axis("x", title, grid=False),
            "y": _axis("y", measure, grid=True),
        },
        "layer": layer,
    }


def _frame(height: int | dict[str, int]) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": None,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "points"},
    }


def _axis(field: str, title: str, *, grid: bool) -> dict[str, Any]:
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 14},
        "axis": {"grid": grid, "format": "~g", "tickCount": 6, "labelOverlap": True},
        "title": title,
    }


#: The page says which colour and shape; both say the same, for who cannot tell colours apart.
_COLOR: dict[str, Any] = {"color": {"field": "color", "type": "nominal", "scale": None}}

_WORDS: dict[str, Any] = {
    "tooltip": {"field": "words", "type": "nominal"},
    "description": {"field": "words", "type": "nominal"},
}


def _points(size: int) -> dict[str, Any]:
    return {
        "mark": {"type": "point", "filled": True, "size": size, "opacity": 0.85},
        "encoding": {
            **_COLOR,
            "shape": {"field": "shape", "type": "nominal", "scale": None},
            **_WORDS,
        },
    }


def _interval() -> dict[str, Any]:
    """The interval of the median."""
    return {
        "mark": {"type": "rule", "opacity": 0.55, "aria": False},
        "encoding": {
            "y": {"field": "low", "type": "quantitative"},
            "y2": {"field": "high"},
            **_COLOR,
        },
    }
