"""What a backend is: a runtime that loads one file and runs it on arrays."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

from ..errors import AgentError, describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any


#: Where a file runs: in this process, in one beside it on this machine, or on another device.
HERE, BESIDE, APART = "here", "beside", "apart"

#: Keeps NVIDIA's libraries from rounding fp32 to TF32, which is off by far more than fp32 is.
NO_TF32 = ("NVIDIA_TF32_OVERRIDE", "0")


def no_pulse() -> None:
    """Nobody has to hear that the work goes on."""


class Backend:
    """One file in one runtime.

    The order of calls is the constructor (which imports the runtime), :meth:`prepare`,
    :meth:`load`, then for every set of inputs :meth:`bind`, the callable it returns as often as one
    likes, and :meth:`outputs`.

    Args:
        subject: the job's entry; its ``options`` are this backend's.
        threads: how many the runtime may use.
        pulse: called every second or so by whatever takes long; raises to end it.

    Raises:
        AgentError: the runtime is missing here, or has no such option.
    """

    #: As jobs call it.
    name = ""
    #: What one timed inference holds, in words that travel with the result.
    region = ""
    #: Names of its options with their defaults.
    defaults: Dict[str, Any] = {}
    #: Where the file runs; what this process tells of memory and conditions depends on it.
    where = HERE
    #: Whether the runtime has a clock of its own, which :meth:`measure` and :meth:`last_ns` read.
    tells_times = False

    def __init__(
        self, subject: Dict[str, Any], threads: int, pulse: Callable[[], None] = no_pulse
    ) -> None:
        self.file: str = subject["file"]
        self.sha256: Optional[str] = subject.get("sha256")
        self.batch: int = subject.get("batch") or 1
        self.pulse = pulse
        self.inputs: List[str] = [entry["name"] for entry in subject["inputs"]]
        self.shapes: List[List[int]] = [entry["shape"] for entry in subject["inputs"]]
        self.output_names: List[str] = [entry["name"] for entry in subject["outputs"]]
        self.threads = threads
        self.options = self._options(subject.get("options") or {})
        self.import_runtime()

    def import_runtime(self) -> None:
        """Import what runs the file."""
        raise NotImplementedError

    def runtime(self) -> Dict[str, Any]:
        """Name and version of what runs the file."""
        raise NotImplementedError

    def settings(self) -> Dict[str, Any]:
        """What was set, after :meth:`load`: threads, providers, delegates, compute units."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Do once what a file needs before it can be loaded: compile it, build its engine."""

    def load(self) -> Optional[int]:
        """Read the file and make it ready to run.

        Returns:
            The ns that took, from a runtime with a clock of its own; None if it does not tell.
        """
        raise NotImplementedError

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        """One inference on these inputs, which are contiguous, in the file's layout and order."""
        raise NotImplementedError

    def outputs(self, result: Any) -> List[Array]:
        """The outputs of the inference that was bound last and returned ``result``; copies."""
        raise NotImplementedError

    def last_ns(self) -> Optional[int]:
        """How long the last inference took by the runtime's own clock; None if it has none."""
        return None

    def measure(self, runs: Optional[int], budget_ns: float) -> List[int]:
        """Times of single inferences by the runtime's own clock, on the inputs bound last.

        Args:
            runs: how many; None goes by the budget.
            budget_ns: ns to spend, all that belongs to it included; one inference at least.
        """
        raise NotImplementedError

    def profiler(self) -> Any:
        """What times the file's operators one by one, on the inputs bound last.

        It has ``method`` (its name), ``resolution_ns``, ``run()`` (one profiled inference; its ns),
        ``ops(runs)`` (operators with their times in the last runs) and ``close()``.

        Raises:
            AgentError: this runtime has none that its package lets one use.
        """
        problem = "{} has no profiler of operators that Python can use".format(self.name)
        raise AgentError("unsupported", problem)

    def warnings(self) -> List[Tuple[str, str]]:
        """Kind and message of what the user has to know of how the file runs."""
        return []

    def close(self) -> None:
        """Let go of whatever outlives this process."""

    def hash(self) -> str:
        """sha256 of the file, which names what is made of it."""
        from ..subjects import hash_path

        return self.sha256 or hash_path(self.file)

    def _options(self, given: Dict[str, Any]) -> Dict[str, Any]:
        unknown = sorted(set(given) - set(self.defaults))
        if unknown:
            have = ", ".join(sorted(self.defaults)) or "none"
            problem = "backend {} has no option {}; it has: {}".format(self.name, unknown[0], have)
            raise AgentError("protocol", problem)
        return dict(self.defaults, **given)


def import_module(*names: str) -> ModuleType:
    """The first of these modules that can be imported.

    Raises:
        AgentError: none can; the message says what each one said.
    """
    said = []
    for name in names:
        try:
            return importlib.import_module(name)
        # A wheel for another C library or CPU fails in many ways.
        except Exception as error:  # noqa: PERF203
            said.append("import {}: {}".format(name, describe(error)))
    raise AgentError("runtime-missing", "; ".join(said))


def places(names: Sequence[str], have: Sequence[str], what: str) -> List[int]:
    """Where each name stands in ``have``; by position if the file calls its tensors otherwise.

    Raises:
        AgentError: there are more or fewer tensors than names.
    """
    if len(names) != len(have):
        problem = "the file has {} {} ({}), expected {} ({})".format(
            len(have), what, ", ".join(have), len(names), ", ".join(names)
        )
        raise AgentError("load", problem)
    if set(names) == set(have):
        return [list(have).index(name) for name in names]
    return list(range(len(names)))


def check_shape(name: str, takes: Sequence[int], given: Tuple[int, ...]) -> None:
    """Refuse inputs that a file of static shapes does not take; sizes below 1 are dynamic.

    Raises:
        AgentError: the shapes differ.
    """
    fits = len(takes) == len(given) and not any(
        size > 0 and size != given[axis] for axis, size in enumerate(takes)
    )
    if not fits:
        shown = "x".join(str(size) for size in takes)
        problem = "input {} takes {}, got {}".format(name, shown, "x".join(map(str, given)))
        raise AgentError("load", problem)


def version_of(module: ModuleType) -> Optional[str]:
    """The module's own version."""
    return getattr(module, "__version__", None)
