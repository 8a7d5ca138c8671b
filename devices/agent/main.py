"""The agent's start and end: read a job, tell the facts, run it, say done."""

import faulthandler
import os
import signal
import traceback
from typing import Any, Dict

from . import PROTOCOL
from .conditions import conditions
from .control import Control, EventStream, claim_stdout
from .errors import AgentError, Stopped, require
from .facts import facts

MODES = ("facts", "check", "time", "memory", "profile", "peak")


def main() -> None:
    """Run the one job that stdin brings, and end the process."""
    events = EventStream(claim_stdout())
    control = Control(events)
    faulthandler.enable()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, control.interrupt)
    stopped = False
    try:
        job = control.read_job()
        if job is None:
            os._exit(0)
        control.watch()
        run(job, events, control)
    except Stopped:
        stopped = True
    except AgentError as error:
        events.emit("error", id=None, kind=error.kind, message=error.message)
    except Exception:
        events.emit("error", id=None, kind="agent", message=traceback.format_exc())
    events.emit("done", stopped=stopped)
    # Runtimes may crash or linger while Python takes itself down; everything is said by now.
    os._exit(0)


def run(job: Dict[str, Any], events: EventStream, control: Control) -> None:
    """Run a job.

    Raises:
        AgentError: it could not be run at all.
        Stopped: the host asked to stop.
    """
    version = require(job, "protocol", int, "the job")
    if version != PROTOCOL:
        problem = "the job speaks protocol {}, this agent {}".format(version, PROTOCOL)
        raise AgentError("protocol", problem)
    mode = require(job, "mode", str, "the job")
    if mode not in MODES:
        raise AgentError("protocol", "no mode {!r}; there are {}".format(mode, ", ".join(MODES)))
    if mode == "facts":
        events.emit("facts", conditions=conditions(), **facts())
        return
    events.emit("facts", **facts())
    try:
        from .jobs import Job
    except ImportError as error:  # facts can be told without numpy, nothing else can be done
        raise AgentError("runtime-missing", str(error)) from None
    runner = Job(job, events, control)
    try:
        getattr(runner, mode)()
    finally:
        runner.close()
