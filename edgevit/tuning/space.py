"""What may be tried: formats, pass sets, options of files and settings of runtimes.

Everything follows from general rules: which formats the device's profile has a runtime for and can
be made here, which passes there are, which options those have. Nothing goes by a model's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from devices.profile import DeviceProfile
from edgevit.passes import EXACT, TIDYING

__all__ = ["Candidate", "cheapest_first", "pass_sets", "usable_formats", "variants"]

#: How long formats take to be written once the graph is there, compared with ONNX.
COST: Mapping[str, float] = {"onnx": 1, "torch": 2, "openvino": 3, "tflite": 10, "executorch": 25}
USUAL_COST = 8.0
#: Options of files other than the default ones, by format.
FILES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "onnx": ({"attention": True},),
    "tflite": ({"layout": "nhwc"},),
    "executorch": ({"xnnpack": False},),
}
#: Settings of runtimes other than the default ones, by backend of the agent.
SETTINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "onnxruntime": ({"optimization": "extended"}, {"optimization": "basic"}),
    "tflite": ({"xnnpack": False},),
    "coreml": ({"compute_unit": "cpu"}, {"compute_unit": "gpu"}, {"compute_unit": "ane"}),
    "coreml-phone": ({"compute_unit": "cpu"}, {"compute_unit": "gpu"}, {"compute_unit": "ane"}),
}


@dataclass(frozen=True)
class Candidate:
    """One way to run a model.

    Args:
        format: of the file.
        passes: name of the set of exact rewrites, one of :func:`pass_sets`.
        options: of the format, where they are not the default ones.
        settings: of the runtime, where they are not the default ones.
        threads: that the runtime may use.
    """

    format: str
    passes: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1

    @property
    def label(self) -> str:
        """It in one word, the same for the same candidate."""
        extra = [f"{k}={v}" for part in (self.options, self.settings) for k, v in part.items()]
        return " ".join([self.format, self.passes, *extra, f"{self.threads}t"])

    @property
    def plainness(self) -> int:
        """How many things differ from the default; of equally fast ones the plainest is taken."""
        return (self.passes != "default") + len(self.options) + len(self.settings)

    def to_json(self) -> dict[str, Any]:
        """As ``tune.json`` holds it."""
        sets = pass_sets()
        return {
            "label": self.label,
            "format": self.format,
            "pass_set": self.passes,
            "passes": list(sets[self.passes]),
            "options": dict(self.options),
            "settings": dict(self.settings),
            "threads": self.threads,
        }


def pass_sets() -> dict[str, tuple[str, ...]]:
    """Sets of exact rewrites by name, the likeliest first: all, none, and all but one."""
    sets: dict[str, tuple[str, ...]] = {"default": EXACT, "none": ()}
    for name in EXACT:
        if name not in TIDYING:
            sets[f"-{name}"] = tuple(other for other in EXACT if other != name)
    return sets


def cheapest_first(formats: Sequence[str]) -> list[str]:
    """Formats in the order of what it takes to write them."""
    return sorted(formats, key=lambda name: COST.get(name, USUAL_COST))


def usable_formats(profile: DeviceProfile) -> tuple[list[str], dict[str, str]]:
    """Formats that the device runs and that can be made here, and why the others are left out."""
    from exporters.base import exporters

    left: dict[str, str] = {}
    for name in exporters.names():
        exporter = exporters.get(name)
        if name not in profile.formats:
            left[name] = f"{profile.name} has no runtime for it"
        elif missing := exporter.missing():
            left[name] = f'it needs {", ".join(missing)}: pip install "edgevit[{exporter.extra}]"'
    return cheapest_first([n for n in exporters.names() if n not in left]), left


def variants(
    candidate: Candidate, backend: str, rewrites: Sequence[str], threads: Sequence[int]
) -> list[Candidate]:
    """What differs from a candidate in one thing, the cheap and likely first.

    Args:
        candidate: with the default passes, options and settings.
        backend: of the agent, that runs it.
        rewrites: passes that found something where all ran; leaving out others changes
            nothing.
        threads: counts that were asked for.
    """
    name = candidate.format
    useful = [word for word in pass_sets() if word == "none" or word[1:] in rewrites]
    plain = [Candidate(name, threads=count) for count in threads if count != candidate.threads]
    tuned = [Candidate(name, settings=own) for own in SETTINGS.get(backend, ())]
    passed = [Candidate(name, word) for word in useful]
    files = [Candidate(name, options=own) for own in FILES.get(name, ())]
    each = [
        Candidate(c.format, c.passes, c.options, c.settings, candidate.threads)
        for c in (*tuned, *passed, *files)
    ]
    return [*plain, *each]
