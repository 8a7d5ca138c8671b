"""TFLite files in LiteRT, or in the older tflite_runtime."""

import re
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from .base import Array, Backend, check_shape, import_module, places, version_of

MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


class TFLite(Backend):
    """The input is copied into the interpreter's own tensor, as an app hands it a picture.

    Option: ``xnnpack`` (whether the default delegate may be used).
    """

    name = "tflite"
    region = "set_tensor and invoke; the input is copied in, the output is read in place"
    defaults = {"xnnpack": True}

    def import_runtime(self) -> None:
        self._module: Any = import_module(*MODULES)
        self._package = import_module(self._module.__name__.split(".")[0])

    def runtime(self) -> Dict[str, Any]:
        return {"name": self._package.__name__, "version": version_of(self._package)}

    def settings(self) -> Dict[str, Any]:
        return {"threads": self.threads, "xnnpack": self.options["xnnpack"]}

    def load(self) -> None:
        resolvers = self._module.OpResolverType
        plain = resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = self._module.Interpreter(
            model_path=self.file,
            num_threads=self.threads,
            experimental_op_resolver_type=resolvers.AUTO if self.options["xnnpack"] else plain,
        )
        self._interpreter.allocate_tensors()
        taken = self._named("inputs", self._interpreter.get_input_details())
        given = self._named("outputs", self._interpreter.get_output_details())
        order = places(self.inputs, [name for name, _ in taken], "inputs")
        self._takes = [taken[i][1] for i in order]
        order = places(self.output_names, [name for name, _ in given], "outputs")
        self._gives = [given[i][1]["index"] for i in order]

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        for place, array in enumerate(inputs):
            shape = [int(size) for size in self._takes[place]["shape"]]
            check_shape(self.inputs[place], shape, array.shape)
        set_tensor, invoke = self._interpreter.set_tensor, self._interpreter.invoke
        feeds = [(self._takes[place]["index"], array) for place, array in enumerate(inputs)]
        if len(feeds) > 1:

            def infer_many() -> None:
                for index, value in feeds:
                    set_tensor(index, value)
                invoke()

            return infer_many
        tensor, image = feeds[0]

        def infer() -> None:
            set_tensor(tensor, image)
            invoke()

        return infer

    def outputs(self, result: Any) -> List[Array]:
        return [np.array(self._interpreter.get_tensor(index)) for index in self._gives]

    def _named(self, side: str, details: Sequence[Dict[str, Any]]) -> List[Tuple[str, Any]]:
        """Tensors with the names their signature gives them, in the signature's order.

        Converters call them ``args_0``, ``args_1``, ... in the order of the program; in the file
        they may stand in another. Without a signature the tensors' own names must do.
        """
        signatures = self._interpreter.get_signature_list()
        runner = self._interpreter.get_signature_runner() if len(signatures) == 1 else None
        by_name = getattr(runner, "get_{}_details".format(side[:-1]), None)
        if by_name is None:
            return [(detail["name"], detail) for detail in details]
        return sorted(by_name().items(), key=lambda item: _natural(item[0]))


def _natural(name: str) -> List[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
