"""Python's garbage collector, kept from looking over and over through what a conversion holds.

A captured graph is hundreds of thousands of objects that stay. To look through them once takes as
long as one of an export's smaller steps, and finds nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused", "heap_frozen"]

#: Whether :func:`heap_frozen` is under way.
_frozen = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage is looked for meanwhile, and what is there afterwards counts as old at once."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Left young, all of it would be looked through next. What was frozen comes back as old.
        if _frozen:
            gc.freeze()
        elif not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        if running:
            gc.enable()


@contextmanager
def heap_frozen() -> Iterator[None]:
    """What is there already is not looked through meanwhile.

    That goes for what :func:`collector_paused` leaves, too. Does nothing where the application
    froze objects itself, as a server does before it forks.
    """
    global _frozen
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    _frozen = True
    try:
        yield
    finally:
        _frozen = False
        gc.unfreeze()
