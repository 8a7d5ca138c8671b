"""Core ML's estimate: the time of a whole inference, shared out as its compute plan says.

Core ML times no operator. Its plan tells what share of the work it expects each to be; such times
are estimates, however exact the total is.
"""

from typing import Any, Callable, Dict, List

from ..clock import clock_ns
from ..errors import AgentError, describe

METHOD = "Core ML's compute plan, shares of the whole"


class CoreMLProfiler:
    """Plain inferences, and the plan of the compiled model."""

    method = METHOD
    estimated = True
    resolution_ns = 1

    def __init__(self, read_plan: Callable[[], Any], infer: Callable[[], Any]) -> None:
        try:
            self._costs = costs(read_plan())
        except AgentError:
            raise
        except Exception as error:
            problem = "the compute plan cannot be read: " + describe(error)
            raise AgentError("unsupported", problem) from None
        self._infer = infer
        self._ns: List[int] = []

    def run(self) -> int:
        """One inference; the ns it took."""
        start = clock_ns()
        self._infer()
        self._ns.append(clock_ns() - start)
        return self._ns[-1]

    def ops(self, runs: int) -> List[Dict[str, Any]]:
        """The operators with their shares of the last ``runs`` inferences."""
        return [
            dict(op, ns=[int(round(share * ns)) for ns in self._ns[-runs:]])
            for op, share in self._costs
        ]

    def close(self) -> None:
        """There is nothing to let go of."""


def costs(plan: Any) -> "List[tuple[Dict[str, Any], float]]":
    """Operators that cost something, and their shares, which sum to 1.

    Raises:
        AgentError: the plan tells no cost.
    """
    from .coreml import operations_of

    found = []
    for operation in operations_of(plan):
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        if cost is not None and cost.weight > 0:
            found.append((_told(operation), float(cost.weight)))
    total = sum(weight for _, weight in found)
    if not found or total <= 0:
        raise AgentError("unsupported", "the compute plan tells no operator's cost")
    return [(op, weight / total) for op, weight in found]


def _told(operation: Any) -> Dict[str, Any]:
    outputs = [output.name for output in operation.outputs]
    kind = operation.operator_name.split(".")[-1]
    return {
        "name": outputs[0] if outputs else kind,
        "op": kind,
        "takes": [],
        "gives": [],
        "inputs": [],
        "outputs": outputs,
        "provider": None,
        "layer": None,
    }
