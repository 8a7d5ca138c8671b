"""A module captured once with ``torch.export``; everything after works on the capture."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import operator
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx._lazy_graph_module import _LazyGraphModule

from edgevit.errors import ConversionError, EdgevitError
from edgevit.garbage import collector_paused
from edgevit.tensorspec import TensorSpec

__all__ = ["Program", "capture", "double_precision", "half_weights"]


@dataclass(frozen=True)
class Program:
    """A captured graph with what its border looks like.

    Args:
        origin: torch's own program, or a rewritten graph of one; the weights are in it.
        inputs: names, shapes (batch first, as captured) and kinds of the inputs, in order.
        outputs: the same of the outputs.
        dynamic_batch: whether the first axis of every input and output may vary.
    """

    origin: ExportedProgram | fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic_batch: bool = False

    @cached_property
    def exported(self) -> ExportedProgram:
        """torch's own program; a rewritten graph is captured for it when it is first asked for.

        Raises:
            ConversionError: torch.export cannot trace the rewritten graph.
        """
        if isinstance(self.origin, ExportedProgram):
            return self.origin
        return capture(self.graph_module(), self.inputs, dynamic_batch=self.dynamic_batch).exported

    def graph_module(self, *, lazy: bool = False) -> fx.GraphModule:
        """A GraphModule of the program, parameters as attributes, without input guards.

        Args:
            lazy: make code of it no sooner than it is called, which a graph that is rewritten
                never is; until then it has no signature that ``torch.export`` could go by.

        The graph is a new one, the parameters are the program's own: replace them, never change
        their values.
        Its nodes carry ``nn_module_stack``, so a layer's name in the source model is known.
        """
        with warnings.catch_warnings():  # torch's own graph code is not up to date with itself
            warnings.simplefilter("ignore", FutureWarning)
            graph = copy.deepcopy(self._unlifted.graph)
        # An exported module refuses .train(), which some exporters call; a plain one does not.
        return (_LazyGraphModule if lazy else fx.GraphModule)(self._unlifted, graph)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the program; inputs and outputs in the order of ``inputs`` and ``outputs``."""
        with torch.inference_mode():
            out = self._unlifted(*inputs)
        return (out,) if isinstance(out, Tensor) else tuple(out)

    @cached_property
    def _unlifted(self) -> fx.GraphModule:
        # Putting the weights back in their places takes many times what copying a graph takes.
        if isinstance(self.origin, fx.GraphModule):
            return self.origin
        return _with_weights(self.origin)

    def rewritten(self, module: fx.GraphModule) -> Program:
        """The program of a rewritten graph of this one, which takes and gives the same."""
        return dataclasses.replace(self, origin=module)

    def fingerprint(self) -> str:
        """sha256 over the graph's operators, arguments and weights: the program's identity."""
        digest = hashlib.sha256()
        numbers: dict[str, int] = {}
        for node in self._unlifted.graph.nodes:
            numbers[node.name] = len(numbers)
            if node.op == "get_attr":  # what it holds counts, not what it is called
                held = operator.attrgetter(str(node.target))(self._unlifted)
                digest.update(_content(held))
                continue
            arguments = fx.map_arg((node.args, dict(node.kwargs)), lambda n: f"%{numbers[n.name]}")
            target = node.target if node.op == "call_function" else ""
            digest.update(f"{node.op} {target} {arguments}\n".encode())
        return digest.hexdigest()


def _content(held: Any) -> bytes:
    """Shape, type and numbers of a tensor; nothing for anything else."""
    if not isinstance(held, Tensor):
        return b""
    numbers = held.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{tuple(held.shape)} {held.dtype}".encode() + hashlib.sha256(numbers.data).digest()


def half_weights(
    program: Program, *, kept: Collection[str] = (), kept_factors: Collection[float] = ()
) -> fx.GraphModule:
    """The program with its weights and constant factors rounded to fp16, to be run in fp32.

    A file that stores its weights in half precision, executed in fp32, has to agree with this much
    closer than with the program itself.

    Args:
        program: stays as it is.
        kept: names of parameters and buffers that are not rounded.
        kept_factors: numbers that are not.
    """
    with warnings.catch_warnings():  # torch's own graph code is not up to date with itself
        warnings.simplefilter("ignore", FutureWarning)
        module = copy.deepcopy(program.graph_module())  # which shares its weights with the program
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and name not in kept:
            tensor.data = tensor.data.half().to(tensor.dtype)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in FACTORS:
            node.args = tuple(
                _half(a) if isinstance(a, float) and a not in kept_factors else a for a in node.args
            )
    module.recompile()
    return module


def double_precision(program: Program) -> fx.GraphModule:
    """The program computing in float64 with its own fp32 weights.

    Where a network blows up the rounding of fp32, this tells an error of a rewrite from rounding.
    """
    with warnings.catch_warnings():  # torch's own graph code is not up to date with itself
        warnings.simplefilter("ignore", FutureWarning)
        module = copy.deepcopy(program.graph_module())  # which shares its weights with the program
    module.double()
    for node in module.graph.nodes:
        node.args = tuple(map(_doubled, node.args))
        node.kwargs = {name: _doubled(value) for name, value in node.kwargs.items()}
    module.recompile()
    return module


def _doubled(argument: Any) -> Any:
    """float64 where an operator is told to compute in float32."""
    return torch.float64 if argument is torch.float32 else argument


#: Operators whose number arguments become constants of a file, as weights do.
FACTORS = (
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.div.Tensor,
    torch.ops.aten.add.Tensor,
    torch.ops.aten.sub.Tensor,
)


def _half(number: float) -> float:
    return float(torch.tensor(number).half())


def capture(
    model: nn.Module, inputs: Sequence[TensorSpec], *, dynamic_batch: bool = False
) -> Program:
    """Capture a module at given input shapes.

    Args:
        model: an nn.Module in eval mode whose inputs and outputs are tensors.
        inputs: its positional inputs; the batch is each one's first axis.
        dynamic_batch: let the batch vary; the other axes stay as given.

    Returns:
        The captured program. Output names are ``logits`` for one, ``output_0``, ... for several.

    Raises:
        ConversionError: torch.export cannot trace the module at these shapes.
    """
    # A batch of 1 would be taken for a constant, so a dynamic batch is captured with 2.
    specs = [s.with_batch(max(2, s.shape[0])) if dynamic_batch else s for s in inputs]
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(s.shape, generator=generator) for s in specs)
    dynamic = tuple({0: Dim("batch")} for _ in specs) if dynamic_batch else None
    try:
        with warnings.catch_warnings(), torch.no_grad(), collector_paused(), _without_traces():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model.eval(), tensors, dynamic_shapes=dynamic)
    except EdgevitError:
        raise
    except Exception as error:
        raise ConversionError(
            f"torch.export could not capture {type(model).__name__}: {_first_lines(error)}",
            hint="try `torch.export.export` on the module alone; "
            "branches on tensor values cannot be captured",
        ) from error
    return Program(exported, tuple(inputs), _outputs(exported, inputs), dynamic_batch)


@contextmanager
def _without_traces() -> Iterator[None]:
    """Nodes are not told which lines made them; it takes a tenth too, and nobody asks."""
    told = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = told


#: What goes in and out of a program that does nothing but compute.
PLAIN = {
    InputKind.USER_INPUT,
    InputKind.PARAMETER,
    InputKind.BUFFER,
    InputKind.CONSTANT_TENSOR,
    OutputKind.USER_OUTPUT,
}


def _with_weights(program: ExportedProgram) -> fx.GraphModule:
    """torch's program with its weights in their places again, as attributes.

    What ``program.module()`` does, in half the time; that copies the graph, then edits it.
    """
    if not _is_plain(program):
        other: fx.GraphModule = program.module(check_guards=False)
        return other
    places = {s.arg.name: s.target for s in program.graph_signature.input_specs if s.target}
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.graph.nodes:
        if node.name in places:
            made[node] = graph.get_attr(places[node.name])
            made[node].meta = dict(node.meta)
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    if program.call_spec.out_spec.is_leaf():
        graph.set_codegen(_OneResult())
    held = {**program.state_dict, **program.constants}
    return fx.GraphModule({place: held[place] for place in places.values()}, graph).eval()


class _OneResult(fx.graph.CodeGen):
    """Code that returns a tensor of itself; an output node always holds a tuple."""

    def generate_output(self, output_args: Any, **form: Any) -> str:
        return super().generate_output(output_args[0], **form)

    def process_outputs(self, out: Any) -> Any:
        return out[0]


def _is_plain(program: ExportedProgram) -> bool:
    """Whether tensors go in, tensors come out, and nothing is written or called beside."""
    signature, spec = program.graph_signature, program.call_spec
    given, named = spec.in_spec.children()
    results = [spec.out_spec] if spec.out_spec.is_leaf() else spec.out_spec.children()
    return (
        {entry.kind for entry in (*signature.input_specs, *signature.output_specs)} <= PLAIN
        and all(part.is_leaf() for part in (*given.children(), *results))
        and not named.children()
        and spec.out_spec.type in (None, tuple)
        and not any(node.op in ("get_attr", "call_module") for node in program.graph.nodes)
    )


def _outputs(exported: ExportedProgram, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    node = next(n for n in exported.graph.nodes if n.op == "output")
    values = [cast(Any, argument).meta["val"] for argument in node.args[0]]
    batch = inputs[0].shape[0]
    names = ["logits"] if len(values) == 1 else [f"output_{i}" for i in range(len(values))]
    return tuple(
        # The captured batch is symbolic or 2 where it is dynamic; the spec keeps the asked one.
        TensorSpec(name, (batch, *(int(size) for size in value.shape[1:])))
        for name, value in zip(names, values, strict=True)
    )


def _first_lines(error: Exception, count: int = 3) -> str:
    return " ".join(str(error).strip().splitlines()[:count])[:400]
