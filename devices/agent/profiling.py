"""Operators timed one by one, and what that costs: plain and profiled inferences in turns.

The sum of the operators is not the time of the model: the profiler takes time itself, and the
runtime some between the operators. So each round holds as many plain inferences as profiled ones,
which of them first changes from round to round, and both are told.
"""

from typing import Any, Callable, Dict, List

from .clock import clock_ns
from .subjects import Subject, failing_as
from .timing import Schedule, time_regions

#: Inferences of each kind in a round.
TURN = 3


def profile(subject: Subject, schedule: Schedule, checkpoint: Callable[[], None]) -> Dict[str, Any]:
    """Profile a subject that was loaded and checked; the event's fields.

    The schedule's runs, or its least time and count, are those of the profiled inferences.

    Raises:
        AgentError: the runtime has no profiler, or fails.
    """
    infer = subject.timed()
    profiler = subject.profiler()
    try:
        with failing_as("run"):
            _warm_up(infer, profiler.run, schedule, checkpoint)
            plain, profiled = _in_turns(infer, profiler.run, schedule, checkpoint)
            ops = profiler.ops(len(profiled))
    finally:
        profiler.close()
    return {
        "method": profiler.method,
        "estimated": bool(getattr(profiler, "estimated", False)),
        "resolution_ns": profiler.resolution_ns,
        "plain_ns": plain,
        "profiled_ns": profiled,
        "ops": ops,
    }


def _warm_up(
    infer: Callable[[], Any],
    profiled: Callable[[], int],
    schedule: Schedule,
    checkpoint: Callable[[], None],
) -> None:
    start, runs = clock_ns(), 0
    while runs < schedule.warmup_runs or clock_ns() - start < schedule.warmup_seconds * 1e9:
        infer()
        runs += 1
        checkpoint()
    profiled()


def _in_turns(
    infer: Callable[[], Any],
    profiled: Callable[[], int],
    schedule: Schedule,
    checkpoint: Callable[[], None],
) -> "tuple[List[int], List[int]]":
    """Times of plain and profiled inferences, as many of these as of those."""
    plain: List[int] = []
    slow: List[int] = []
    while not _enough(slow, schedule):
        if len(slow) // TURN % 2:
            slow += [profiled() for _ in range(TURN)]
            plain += time_regions(infer, 1, limit=TURN)
        else:
            plain += time_regions(infer, 1, limit=TURN)
            slow += [profiled() for _ in range(TURN)]
        checkpoint()
    return plain, slow


def _enough(times: List[int], schedule: Schedule) -> bool:
    if schedule.runs is not None:
        return len(times) >= schedule.runs
    seconds = sum(times) / 1e9
    met = len(times) >= schedule.min_runs and seconds >= schedule.min_seconds
    return met or (bool(times) and seconds >= schedule.max_seconds)
