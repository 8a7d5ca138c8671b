"""What was measured: statistics of raw samples, the verdict on them, and results on disk."""

from edgevit.measure.events import Job, result_from_events
from edgevit.measure.ranks import rank_test, ratio_interval, smallest_p
from edgevit.measure.record import (
    Conditions,
    Context,
    Device,
    Instructions,
    Memory,
    Subject,
    Verification,
    Warmup,
)
from edgevit.measure.results import Result, current_context, read_results, result_filename
from edgevit.measure.statistics import Drift, Samples, Statistics
from edgevit.measure.verdict import verdict

__all__ = [
    "Conditions",
    "Context",
    "Device",
    "Drift",
    "Instructions",
    "Job",
    "Memory",
    "Result",
    "Samples",
    "Statistics",
    "Subject",
    "Verification",
    "Warmup",
    "current_context",
    "rank_test",
    "ratio_interval",
    "read_results",
    "result_filename",
    "result_from_events",
    "smallest_p",
    "verdict",
]
