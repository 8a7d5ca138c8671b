"""What this machine reaches at best: products per second, and bytes to and from memory.

The products are numpy's, of two square fp32 matrices that fill the caches but little memory; a
runtime with better kernels may pass them. The bytes are those of copying an array far larger than
the caches, read and written (what a store reads first is not counted).
"""

from typing import Any, Callable, Dict, List

import numpy as np

from .clock import clock_ns

SIZE = 1024
COPIED_BYTES = 1 << 28
SECONDS = 1.0
#: A machine with less memory copies less.
LEAST_BYTES = 1 << 24


def measure(threads: int, checkpoint: Callable[[], None]) -> Dict[str, Any]:
    """Samples of both; the event's fields."""
    return {
        "threads": threads,
        "flops": {
            "method": "numpy product of two {0} x {0} fp32 matrices".format(SIZE),
            "per_second": _products(checkpoint),
        },
        "bytes": _copies(checkpoint),
    }


def _products(checkpoint: Callable[[], None]) -> List[float]:
    generator = np.random.RandomState(0)
    left = generator.standard_normal((SIZE, SIZE)).astype(np.float32)
    right, result = left.T.copy(), np.empty((SIZE, SIZE), np.float32)
    return _rates(lambda: np.dot(left, right, out=result), 2.0 * SIZE**3, checkpoint)


def _copies(checkpoint: Callable[[], None]) -> Dict[str, Any]:
    size = COPIED_BYTES
    while True:
        try:
            source = np.ones(size // 4, np.float32)
            target = np.zeros_like(source)
            break
        except MemoryError:
            if size <= LEAST_BYTES:
                raise
            size //= 2
    rates = _rates(lambda: np.copyto(target, source), 2.0 * size, checkpoint)
    method = "numpy copy of {} MiB, by one thread".format(size >> 20)
    return {"method": method, "per_second": rates}


def _rates(work: Callable[[], Any], amount: float, checkpoint: Callable[[], None]) -> List[float]:
    """Amounts per second, for as long as it takes to see the best."""
    work()
    rates: List[float] = []
    start = clock_ns()
    while len(rates) < 5 or clock_ns() - start < SECONDS * 1e9:
        before = clock_ns()
        work()
        rates.append(round(amount / (clock_ns() - before) * 1e9))
        checkpoint()
    return rates
