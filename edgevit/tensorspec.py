"""The shape and meaning of one tensor at the border of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a captured program.

    Args:
        name: the name it has in every exported file.
        shape: sizes, batch first; the program's own layout (images are NCHW).
        kind: ``"image"`` for a picture that preprocessing applies to, else ``"tensor"``.
        dtype: numpy's name of the element type.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "tensor"
    dtype: str = "float32"

    def with_batch(self, batch: int) -> TensorSpec:
        """The same tensor at another batch size."""
        return TensorSpec(self.name, (batch, *self.shape[1:]), self.kind, self.dtype)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "kind": self.kind,
            "dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        """The reverse of :meth:`to_json`."""
        return cls(data["name"], tuple(data["shape"]), data["kind"], data["dtype"])
