"""The clock that everything is measured with."""

import time
from typing import Callable

if hasattr(time, "perf_counter_ns"):
    clock_ns: Callable[[], int] = time.perf_counter_ns
else:  # Python 3.6

    def clock_ns() -> int:
        """Nanoseconds of the performance counter."""
        return int(time.perf_counter() * 1e9)
