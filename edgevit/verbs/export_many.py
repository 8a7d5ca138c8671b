"""Several models exported side by side, each in a process that another's accident does not reach.

A worker takes one model after the other. What it tells travels through its pipe: the folder that it
is about to fill, its stages, its notes, and in the end a bundle or an error. A worker that dies
costs its model alone, and another takes its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from edgevit.bundle import Bundle
from edgevit.errors import EdgevitError, OptionError, UnavailableError, UnknownNameError, UsageError
from edgevit.progress import Progress
from edgevit.source import slug

__all__ = ["Exported", "chosen_models", "exit_code", "export_many", "is_pattern"]

#: Seconds that workers have to clear up after Ctrl-C.
GRACE_S = 10.0


@dataclass(frozen=True)
class Exported:
    """What became of one model.

    Args:
        model: its name.
        seconds: that it took, from the process's taking it on.
        path: the bundle's folder; None if there is none.
        manifest: the bundle's.
        error: why there is none.
    """

    model: str
    seconds: float
    path: Path | None = None
    manifest: Mapping[str, Any] | None = None
    error: EdgevitError | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "model": self.model,
            "status": "failed" if self.error else "ok",
            "seconds": round(self.seconds, 3),
            "path": str(self.path) if self.path else None,
            "error": self.error.to_json() if self.error else None,
            "manifest": self.manifest,
        }


def is_pattern(name: str) -> bool:
    """Whether a name stands for all that match it."""
    return any(mark in name for mark in "*?[")


def chosen_models(names: Sequence[str]) -> list[str]:
    """Names with wildcards filled in and aliases resolved, each once, in the order given.

    Raises:
        UnknownNameError: no model has the name, or none matches the pattern.
        UsageError: two of them would be written to the same folder.
    """
    from edgevit.zoo.registry import list_models, model_info

    chosen: list[str] = []
    for name in names:
        if ":" in name:
            chosen.append(name)
        elif not is_pattern(name):
            chosen.append(model_info(name).name)
        elif found := list_models(name):
            chosen += found
        else:
            raise UnknownNameError("model", name, list_models(), listing="edgevit models")
    chosen = list(dict.fromkeys(chosen))
    _check_folders(chosen)
    return chosen


def _check_folders(names: Sequence[str]) -> None:
    taken: dict[str, str] = {}
    for name in names:
        word = name.rpartition(":")[2].rpartition(".")[2] if ":" in name else name
        other = taken.setdefault(slug(word), name)
        if other != name:
            raise UsageError(
                f"{other} and {name} would both be written to the folder {slug(word)}",
                hint="export them apart, each with an --output of its own",
            )


def exit_code(outcomes: Sequence[Exported]) -> int:
    """0 if all went well; else the first that occurs of 1, 2 and 3."""
    return min((o.error.exit_code for o in outcomes if o.error), default=0)


def export_many(
    models: Sequence[str],
    *,
    jobs: int = 2,
    output: str | Path = "exports",
    progress: Progress | None = None,
    **options: Any,
) -> list[Exported]:
    """Export several models, each as a bundle ``output / <model's name>``.

    One that fails is told of, and the others go on. However this ends, no process is left, and no
    folder that is half written.

    Args:
        models: names of the zoo, with wildcards, and ``package.module:factory``.
        jobs: processes at a time.
        output: the folder that the bundles' own folders are made in.
        progress: told about every model that is under way.
        **options: as of :func:`edgevit.verbs.export.export`, the same for all.

    Returns:
        What became of each, in the order of the names.

    Raises:
        UsageError: a name, a format or an option that cannot be; nothing was begun then.
        MissingExtraError: a format's packages are not installed.
    """
    names = chosen_models(models)
    if jobs < 1:
        raise OptionError("jobs", expected="a whole number of at least 1", got=jobs)
    if options.get("name") is not None:
        raise UsageError("one name cannot be that of several bundles", hint="leave --name out")
    if options.get("weights") is not None:
        raise UsageError(
            "one file of weights cannot be that of several models", hint="export them one by one"
        )
    steps = _check_plan(options)
    crew = _Crew(names, min(jobs, len(names)), {**options, "output": str(output)}, steps)
    crew.progress = progress or crew.progress
    done = crew.run()
    return [done[name] for name in names]


def _check_plan(options: Mapping[str, Any]) -> int:
    """Refuse at once what no model could be exported with; how many stages an export has."""
    from edgevit.verbs.export import PLAN_OPTIONS, make_plan

    given = {key: options[key] for key in (*PLAN_OPTIONS, "formats") if key in options}
    plan = make_plan(given.pop("formats", None), **given)
    # Capture, expected outputs, rewrite, perhaps activations; then writing and checking each file.
    return 3 + bool(plan.activation) + 2 * len(plan.formats)


# -- the host's side -------------------------------------------------------------------------------


@dataclass
class _Worker:
    """A process and what it is at."""

    process: Any
    pipe: Connection
    model: str | None = None
    since: float = 0.0
    steps: int = 0
    place: Path | None = None


class _Crew:
    """Workers, models that wait, and what became of the others."""

    def __init__(
        self, models: Sequence[str], jobs: int, options: Mapping[str, Any], steps: int
    ) -> None:
        self.models, self.jobs, self.options, self.steps = models, jobs, dict(options), steps
        self.progress = Progress()
        self._left = list(reversed(models))
        self._workers: list[_Worker] = []
        self._done: dict[str, Exported] = {}

    def run(self) -> dict[str, Exported]:
        """Outcomes by model."""
        try:
            self._workers = [self._hire() for _ in range(self.jobs)]
            for worker in self._workers:
                self._next(worker)
            while len(self._done) < len(self.models):
                self._listen()
        finally:
            self._dismiss()
        return self._done

    def _hire(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        process = context.Process(target=_work, args=(theirs, self.options, threads), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _next(self, worker: _Worker) -> None:
        worker.model = self._left.pop() if self._left else None
        worker.since, worker.steps, worker.place = time.monotonic(), 0, None
        with contextlib.suppress(OSError):  # who died without work is noticed in _listen
            worker.pipe.send(worker.model)

    def _listen(self) -> None:
        busy = {worker.pipe: worker for worker in self._workers if worker.model is not None}
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]
            try:
                kind, word = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            self._heard(worker, kind, word)

    def _heard(self, worker: _Worker, kind: str, word: Any) -> None:
        assert worker.model is not None
        if kind == "place":
            worker.place = Path(word)
        elif kind == "stage":
            self.progress.advance(worker.model, worker.steps, self.steps, word)
            worker.steps = min(worker.steps + 1, self.steps)
        elif kind == "note":
            self.progress.note(f"{worker.model}: {word}")
        else:
            self._close(worker, **word)
            self._next(worker)

    def _close(self, worker: _Worker, **how: Any) -> None:
        assert worker.model is not None
        outcome = Exported(worker.model, time.monotonic() - worker.since, **how)
        self._done[worker.model] = outcome
        self.progress.over(worker.model)
        said = "done" if outcome.error is None else f"failed: {outcome.error.message}"
        count = f"[{len(self._done)}/{len(self.models)}]"
        self.progress.note(f"{count} {worker.model} {said}, {outcome.seconds:.1f} s")

    def _replace(self, worker: _Worker) -> None:
        """Another worker in the place of one that died."""
        worker.process.join()
        _clear(worker.place)
        error = UnavailableError(
            f"its process died: exit code {worker.process.exitcode}",
            hint="memory may have run out: fewer --jobs",
        )
        self._close(worker, error=error)
        self._workers.remove(worker)
        worker.pipe.close()
        if self._left:
            self._workers.append(self._hire())
            self._next(self._workers[-1])

    def _dismiss(self) -> None:
        """Let all go; those at work clear up first, and are cleared up after if they cannot."""
        at_work = [worker for worker in self._workers if worker.model is not None]
        for worker in at_work:
            worker.process.terminate()
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + GRACE_S
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C waits no longer
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        for worker in at_work:
            _clear(worker.place)


def _clear(place: Path | None) -> None:
    """Remove what a process that was killed left beside the bundle's folder."""
    if place is not None:
        for leftover in place.parent.glob(f".{place.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)


# -- the worker's side -----------------------------------------------------------------------------


def _work(pipe: Connection, options: dict[str, Any], threads: int) -> None:
    """Export what comes through the pipe, until nothing more does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host, who ends us
    signal.signal(signal.SIGTERM, _leave)
    os.dup2(2, 1)  # what a converter prints is no result
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))
    with contextlib.suppress(EOFError, OSError):
        while (model := pipe.recv()) is not None:
            pipe.send(("over", _outcome(pipe, model, options)))


def _leave(*_: object) -> None:
    # An exception, so that a bundle under way is taken away again.
    raise SystemExit(128 + signal.SIGTERM)


def _outcome(pipe: Connection, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        bundle = _export(pipe, model, **options)
    except EdgevitError as error:
        return {"error": error}
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise  # nobody is there to be told
        return {"error": _accident(error)}
    except Exception as error:
        return {"error": _accident(error)}
    return {"path": bundle.path, "manifest": dict(bundle.manifest)}


def _accident(error: Exception) -> EdgevitError:
    text = str(error).strip().partition("\n")[0][:300]
    return UnavailableError(
        f"{type(error).__name__}: {text}", hint="export it alone to see where this comes from"
    )


def _export(
    pipe: Connection,
    model: str,
    *,
    output: str,
    formats: Sequence[str] | None = None,
    batch: int = 1,
    seed: int = 0,
    **options: Any,
) -> Bundle:
    from edgevit.verbs.export import bundle_name, export_source, make_plan, make_source

    source, rest = make_source(model, batch=batch, seed=seed, **options)
    plan = make_plan(formats, **rest)
    pipe.send(("place", str((Path(output) / bundle_name(source, plan)).resolve())))
    return export_source(source, plan, output, seed=seed, progress=_Told(pipe))


class _Told(Progress):
    """Progress that the host hears of."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.pipe.send(("stage", name))
        yield

    def note(self, message: str) -> None:
        self.pipe.send(("note", message))
