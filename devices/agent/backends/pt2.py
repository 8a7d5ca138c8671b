"""Programs of ``torch.export`` (``.pt2``), run by torch itself."""

import functools
from typing import Any, Callable, Dict, List, Sequence

import numpy as np

from .base import Array, Backend, import_module, version_of
from .pt2_profile import TorchProfiler


class TorchProgram(Backend):
    """The exported graph, operator by operator, without gradients."""

    name = "torch"
    region = "the program's module called on tensors made before, without gradients"

    def import_runtime(self) -> None:
        self._torch: Any = import_module("torch")
        import_module("torch.export")

    def runtime(self) -> Dict[str, Any]:
        return {"name": "torch", "version": version_of(self._torch)}

    def settings(self) -> Dict[str, Any]:
        return {"threads": self._torch.get_num_threads()}

    def load(self) -> None:
        self._torch.set_num_threads(self.threads)
        self._torch.set_grad_enabled(False)
        self._module = self._torch.export.load(self.file).module()

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        self._tensors = [self._torch.from_numpy(array) for array in inputs]
        return functools.partial(self._module, *self._tensors)

    def profiler(self) -> TorchProfiler:
        return TorchProfiler(self._torch, self._module, self._tensors)

    def outputs(self, result: Any) -> List[Array]:
        tensors = list(result) if isinstance(result, (tuple, list)) else [result]
        return [np.array(tensor.detach().cpu().numpy()) for tensor in tensors]
