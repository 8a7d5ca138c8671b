"""Golden inputs and outputs, and the rule by which a file's outputs agree with them.

Over all samples of an output, everything has to be finite and

    max |got - want| / max |want|  <=  tolerance

which is the host's rule too. ``golden.npz`` holds ``input.<name>`` and ``output.<name>``, samples
along the first axis, each sample with its batch axis: (S, 1, C, H, W).
"""

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

import numpy as np

from .errors import AgentError, describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any


class Golden:
    """Samples of a model's inputs, in the order of the subject, with the outputs they must give.

    Args:
        inputs: per input (S, B, ...).
        outputs: per output name (S, B, ...); empty if nothing is known.
    """

    def __init__(self, inputs: List[Array], outputs: Dict[str, Array]) -> None:
        self.inputs = inputs
        self.outputs = outputs

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.inputs[0])

    def inputs_of(self, sample: int, batch: int) -> List[Array]:
        """One sample, repeated along the batch axis."""
        return [_repeat(array[sample], batch) for array in self.inputs]

    def output_of(self, name: str, sample: int, batch: int) -> Array:
        """What an output must be for :meth:`inputs_of`."""
        return _repeat(self.outputs[name][sample], batch)

    def mixed(self, batch: int) -> List[Array]:
        """A batch whose rows are the samples in turn."""
        rows = [array.reshape((-1,) + array.shape[2:]) for array in self.inputs]
        return [np.ascontiguousarray(r[np.arange(batch) % len(r)]) for r in rows]


def load_golden(path: str, inputs: Sequence[str], outputs: Sequence[str]) -> Golden:
    """Read ``golden.npz``.

    Raises:
        AgentError: it cannot be read, or lacks an input or output.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
    except (OSError, ValueError) as error:
        raise AgentError("load", "golden tensors {}: {}".format(path, describe(error))) from None
    wanted = ["input." + name for name in inputs] + ["output." + name for name in outputs]
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise AgentError("load", "golden tensors {} lack {}".format(path, ", ".join(missing)))
    return Golden(
        [arrays["input." + name] for name in inputs],
        {name: arrays["output." + name] for name in outputs},
    )


def noise(inputs: Sequence[Dict[str, Any]], batch: int, seed: int) -> Golden:
    """Seeded normal noise for a file without golden tensors; zeros for inputs of whole numbers."""
    random = np.random.RandomState(seed % 2**32)
    arrays: List[Array] = []
    for spec in inputs:
        shape = (1, batch) + tuple(spec["shape"][1:])
        dtype = np.dtype(spec.get("dtype") or "float32")
        values = random.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        arrays.append(np.asarray(values, dtype=dtype))
    return Golden(arrays, {})


def to_layout(array: Array, layout: Optional[str]) -> Array:
    """An image batch (N, C, H, W) in the layout that the file takes, in memory of its own."""
    if layout == "NHWC":
        array = array.transpose((0, 2, 3, 1))
    return np.ascontiguousarray(array)


class OutputCheck:
    """Collects what a file gives for one output, sample after sample, and judges it."""

    def __init__(self, name: str, tolerance: float) -> None:
        self.name = name
        self.tolerance = tolerance
        self.max_abs = 0.0
        self.scale = 0.0
        self.cosine = 1.0
        self.comparable = True
        self.reason: Optional[str] = None

    def add(self, got: Array, want: Array) -> None:
        """Compare one sample."""
        if got.shape != want.shape:
            self._cannot("has shape {}, expected {}".format(got.shape, want.shape))
            return
        expected, actual = want.astype(np.float64), got.astype(np.float64)
        if not np.isfinite(expected).all():
            self._cannot("of the model itself is not finite (NaN or infinite)")
        elif not np.isfinite(actual).all():
            self._cannot("is not finite (NaN or infinite)")
        else:
            self.max_abs = max(self.max_abs, _largest(expected - actual))
            self.scale = max(self.scale, _largest(expected))
            self.cosine = min(self.cosine, _cosine(expected, actual))

    def result(self) -> Dict[str, Any]:
        """The output's part of the checked event; null where a figure would mean nothing."""
        self._judge()
        return {
            "name": self.name,
            "ok": self.reason is None,
            "max_abs": self.max_abs if self.comparable else None,
            "scale": self.scale if self.comparable else None,
            "cosine": self.cosine if self.comparable else None,
            "reason": self.reason,
        }

    def _judge(self) -> None:
        relative = self.max_abs / self.scale if self.scale > 0 else float(self.max_abs > 0)
        if relative > self.tolerance:
            self._refuse(
                "is off by {:.2e}, {:.1e} of its scale; tolerated are {:.0e}".format(
                    self.max_abs, relative, self.tolerance
                )
            )

    def _cannot(self, why: str) -> None:
        self.comparable = False
        self._refuse(why)

    def _refuse(self, why: str) -> None:
        self.reason = self.reason or "{} {}".format(self.name, why)


def _repeat(array: Array, batch: int) -> Array:
    have = array.shape[0]
    if batch % have:
        problem = "golden tensors of batch {} do not fill a batch of {}".format(have, batch)
        raise AgentError("load", problem)
    return np.repeat(array, batch // have, axis=0)


def _largest(values: Array) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def _cosine(a: Array, b: Array) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / norm if norm > 0 else float(np.array_equal(a, b))
