"""ExecuTorch programs (``.pte``), with XNNPACK where they were lowered for it."""

import functools
from typing import Any, Callable, Dict, List, Sequence

import numpy as np

from ..errors import AgentError
from .base import Array, Backend, check_shape, import_module

METHOD = "forward"


class ExecuTorch(Backend):
    """Inputs are tensors of torch, which its Python package needs.

    The file itself says what is handed to XNNPACK; there is nothing to choose here.
    """

    name = "executorch"
    region = "Module.run_method; inputs are copied in by the runtime, the output is read in place"

    def import_runtime(self) -> None:
        self._torch: Any = import_module("torch")
        self._library: Any = import_module("executorch.extension.pybindings.portable_lib")

    def runtime(self) -> Dict[str, Any]:
        return {"name": "executorch", "version": _version()}

    def settings(self) -> Dict[str, Any]:
        return {"threads": self._library._threadpool_get_thread_count()}

    def load(self) -> None:
        self._library._unsafe_reset_threadpool(self.threads)
        self._module = self._library._load_for_executorch(self.file)
        self._meta = self._module.method_meta(METHOD)
        for word, names, have in (
            ("inputs", self.inputs, self._meta.num_inputs()),
            ("outputs", self.output_names, self._meta.num_outputs()),
        ):
            if len(names) != have:
                problem = "the file has {} {}, expected {} ({})"
                shown = problem.format(have, word, len(names), ", ".join(names))
                raise AgentError("load", shown)

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        for index, array in enumerate(inputs):
            # A file has no names, so inputs go by their order.
            takes = list(self._meta.input_tensor_meta(index).sizes())
            check_shape(self.inputs[index], takes, array.shape)
        tensors = tuple(self._torch.from_numpy(array) for array in inputs)
        return functools.partial(self._module.run_method, METHOD, tensors, clone_outputs=False)

    def outputs(self, result: Any) -> List[Array]:
        return [np.array(tensor.numpy()) for tensor in result]


def _version() -> Any:
    """The distribution's version: the package has none of its own."""
    try:
        from importlib.metadata import version
    except ImportError:  # Python 3.7, for which there never was an ExecuTorch
        return None
    return version("executorch")
