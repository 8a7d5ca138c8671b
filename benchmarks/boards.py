"""What SSH costs: reaching a board, a job there against one here, and twenty boards at once.

The boards are SSH servers on this machine, each with its own key, port, home and lock, so that
agents do not wait for one another; what they compute, this machine computes. Figures of the host
process are its own alone: agents are children of the servers.

A job's overhead is its wall time over SSH less that of the same job in a child process here; the
two take turns.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.base import Job, Schedule, Session, Subject
from devices.local import LocalDevice
from devices.ssh import SshDevice, SshSession

TURNS = 9
BOARDS = 20
BIG_BYTES = 30 * 2**20
SCHEDULE = Schedule(runs=50, warmup_runs=5, warmup_seconds=0, block_seconds=0.01)


def kit() -> Any:
    """The server of the tests."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "devices"))
    import sshd_kit

    return sshd_kit


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_ms(samples: list[float]) -> float:
    return round(statistics.median(samples) * 1e3, 1)


@dataclass
class Loopback:
    """A board, and the variables that keep its agent to itself."""

    device: SshDevice
    environment: dict[str, str]


def start_boards(stack: contextlib.ExitStack, folder: Path, count: int) -> list[Loopback]:
    """Servers of their own; the user knows them all."""
    (folder / "user" / ".ssh").mkdir(parents=True)
    os.environ["HOME"] = str(folder / "user")
    os.environ.pop("SSH_AUTH_SOCK", None)
    boards, known = [], ""
    for number in range(count):
        sshd = stack.enter_context(kit().Sshd(folder / f"sshd-{number}"))
        known += sshd.host_key
        (sshd.folder / "tmp").mkdir()
        environment = {"TMPDIR": str(sshd.folder / "tmp")}
        host = sshd.host(f"board-{number}", python=sys.executable, environment=environment)
        boards.append(Loopback(SshDevice(host), environment))
    (folder / "user" / ".ssh" / "known_hosts").write_text(known)
    return boards


def make_bundle(folder: Path) -> tuple[Path, Subject]:
    """A tiny model."""
    import devices_kit

    (folder / "bundle").mkdir()
    return folder / "bundle", devices_kit.make_dense(folder / "bundle", "dense")


def on_board(session: SshSession, bundle: Path, subject: Subject) -> Subject:
    place = session.push(bundle)
    golden = f"{place}/{Path(str(subject.golden)).relative_to(bundle).as_posix()}"
    return replace(subject, file=f"{place}/{Path(subject.file).name}", golden=golden)


def run(session: Session, job: Job) -> None:
    events = list(session.run(job))
    assert events[-1] == {"event": "done", "stopped": False}, events[-1]
    assert not any(event["event"] == "error" for event in events)


def one_board(board: Loopback, bundle: Path, subject: Subject, folder: Path) -> dict[str, Any]:
    fresh = [timed(lambda: board.device.open().close()) for _ in range(TURNS)]
    (folder / "big").mkdir()
    (folder / "big" / "weights").write_bytes(os.urandom(BIG_BYTES))
    local = LocalDevice(environment=board.environment).open()
    with board.device.open() as session:
        kept = [timed(lambda: session.execute(["true"])) for _ in range(TURNS)]
        session.facts()  # brings the agent
        sent = timed(lambda: session.push(folder / "big"))
        there = timed(lambda: session.push(folder / "big"))
        moved = on_board(session, bundle, subject)
        small = [timed(lambda: session.push(bundle)) for _ in range(TURNS)]
        jobs: dict[str, dict[str, float]] = {}
        for name, here, over in (
            ("facts", Job("facts"), Job("facts")),
            ("check", Job("check", (subject,)), Job("check", (moved,))),
            ("time", Job("time", (subject,), schedule=SCHEDULE),
             Job("time", (moved,), schedule=SCHEDULE)),
        ):  # fmt: skip
            ssh, child = [], []
            for _ in range(TURNS):
                ssh.append(timed(functools.partial(run, session, over)))
                child.append(timed(functools.partial(run, local, here)))
            overhead = [a - b for a, b in zip(ssh, child, strict=True)]
            jobs[name] = {"ssh": median_ms(ssh), "here": median_ms(child),
                          "overhead": median_ms(overhead)}  # fmt: skip
    return {
        "open_ms": median_ms(fresh),
        "command_over_kept_connection_ms": median_ms(kept),
        "push_30_MiB_ms": median_ms([sent]),
        "push_30_MiB_again_ms": median_ms([there]),
        "push_small_bundle_again_ms": median_ms(small),
        "jobs_ms": jobs,
    }


def all_boards(boards: list[Loopback], bundle: Path, subject: Subject) -> dict[str, Any]:
    """Reach each, push, and time, all at once."""

    def work(board: Loopback) -> None:
        with board.device.open() as session:
            moved = on_board(session, bundle, subject)
            run(session, Job("time", (moved,), schedule=SCHEDULE))

    failed: list[BaseException] = []

    def guarded(board: Loopback) -> None:
        try:
            work(board)
        except BaseException as error:
            failed.append(error)

    before = resource.getrusage(resource.RUSAGE_SELF)
    threads = [threading.Thread(target=guarded, args=(board,)) for board in boards]
    most = 0

    def all_at_once() -> None:
        nonlocal most
        for thread in threads:
            thread.start()
        most = threading.active_count()
        for thread in threads:
            thread.join()

    wall = timed(all_at_once)
    after = resource.getrusage(resource.RUSAGE_SELF)
    if failed:
        raise failed[0]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "boards": len(boards),
        "wall_s": round(wall, 2),
        "host_cpu_s": round(cpu, 2),
        "host_peak_rss_MiB": round(after.ru_maxrss / 1024, 1),
        "host_peak_rss_more_MiB": round((after.ru_maxrss - before.ru_maxrss) / 1024, 1),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        boards = start_boards(stack, folder, BOARDS)
        bundle, subject = make_bundle(folder)
        # In this order: the peak of memory is the process's, and never falls.
        found = {
            "load_average": round(os.getloadavg()[0], 2),
            "cpus": os.cpu_count(),
            "a first job": all_boards(boards[:1], bundle, subject),
            f"{BOARDS} boards at once": all_boards(boards, bundle, subject),
            "one board": one_board(boards[0], bundle, subject, folder),
        }
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
