"""A runtime onto a board: an environment of its own, in edgevit's folder there, and nowhere else.

The wheels are fetched here and pushed, so that the board needs no network, no pip and no
administrator; pip travels along as a wheel and runs from it. What is there and right is not done
again: a second call finds nothing to do, and one that was cut short goes on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from devices.line import ending_of
from devices.profile import DeviceProfile
from devices.remote import (
    ENCODING,
    Board,
    Completed,
    RemoteShell,
    ask,
    last_line,
    look,
    run_script,
)
from devices.wheels import Plan, Wheel, fetch_wheels, plan_packages, satisfied
from edgevit.errors import DeviceError
from edgevit.progress import Progress

__all__ = ["SetupReport", "environment_python", "setup"]

INSTALL_S = 1800.0
#: Written into the environment when it is whole.
MARK = "edgevit.json"
#: Room to be left over.
SPARE_BYTES = 50 * 2**20


@dataclass(frozen=True)
class SetupReport:
    """What setup found and did.

    Args:
        python: interpreter of the environment.
        base: the one that it was made with.
        python_version: of both.
        versions: of what was asked for, by distribution.
        proved: modules that were imported and tried.
        done: what was done, in words; empty if everything was right already.
        notes: what was left out, and why.
    """

    python: str
    base: str
    python_version: str
    versions: Mapping[str, str]
    proved: tuple[str, ...]
    done: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return asdict(self)


def environment_python(shell: RemoteShell) -> str:
    """The interpreter of the environment that setup makes there."""
    return f"{shell.home}/venv/bin/python"


def setup(
    shell: RemoteShell,
    profile: DeviceProfile,
    *,
    python: str | None = None,
    online: bool = False,
    fresh: bool = False,
    runtimes: Sequence[str] = (),
    progress: Progress | None = None,
) -> SetupReport:
    """Bring the profile's runtimes to a board, and prove that they run.

    Args:
        shell: an open session.
        profile: of the board.
        python: the interpreter to make the environment with; without, the one that it was made with
            before, else ``python3``.
        online: let the board fetch the packages, with its own pip and network.
        fresh: start over.
        runtimes: those to bring besides, of :data:`devices.wheels.ON_DEMAND`; what an earlier call
            brought stays.
        progress: told of every step.

    Raises:
        DeviceError: no Python, one too old, a full disk, a runtime that does not work there, ...
        OptionError: a runtime is not to be brought there.
        UnavailableError: the packages cannot be fetched here.
    """
    return _Setup(shell, profile, online, runtimes, progress or Progress()).run(python, fresh)


class _Setup:
    """One run of :func:`setup`."""

    def __init__(
        self,
        shell: RemoteShell,
        profile: DeviceProfile,
        online: bool,
        runtimes: Sequence[str],
        progress: Progress,
    ) -> None:
        self._shell, self._profile, self._runtimes = shell, profile, runtimes
        self._online, self._progress = online, progress
        self._python = environment_python(shell)
        self._folder = f"{shell.home}/wheels"
        self._environment = {**ENCODING, **profile.environment, "TMPDIR": f"{shell.home}/tmp"}
        self._done: list[str] = []

    def run(self, python: str | None, fresh: bool) -> SetupReport:
        there = {} if fresh else self._installed()
        base = python or (there.get("mark") or {}).get("base") or "python3"
        with self._progress.stage("look at the board"):
            board = look(self._shell, base)
        plan = plan_packages(board, self._profile, self._runtimes)
        whole = bool(there.get("mark")) and there["python"] == list(board.python)
        if not (whole and satisfied(plan, there["versions"])):
            self._make(plan, board, keep=whole)
            there = self._installed()
        versions = satisfied(plan, there.get("versions", {}))
        if not versions:
            raise DeviceError(
                "the packages are not what was installed",
                hint="does something else change them? --fresh starts over",
            )
        with self._progress.stage("prove the runtimes"):
            self._prove(plan.modules)
        return SetupReport(
            self._python, board.executable, board.python_version, versions, plan.modules,
            tuple(self._done), plan.notes,
        )  # fmt: skip

    def _installed(self) -> dict[str, Any]:
        """What is in the environment; nothing if there is none that works."""
        mark = f"{self._shell.home}/venv/{MARK}"
        done = run_script(self._shell, self._python, "installed", mark)
        if done.status:
            return {}
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    def _make(self, plan: Plan, board: Board, *, keep: bool) -> None:
        """An environment with the packages; ``keep`` brings an older one up to date."""
        home = self._shell.home
        if board.busy:
            raise DeviceError(board.busy, hint="setup would disturb it: wait for its end")
        self._command(["mkdir", "-p", self._folder, f"{home}/tmp"])
        wheels = [] if self._online else self._bring(plan, board)
        self._command(["rm", "-f", f"{home}/venv/{MARK}"])
        if not keep:
            with self._progress.stage("make an environment"):
                self._make_environment(board)
        with self._progress.stage("install the packages"):
            self._install(plan, board, wheels)
        self._leave_mark(plan, board)
        self._command(["rm", "-rf", self._folder, f"{home}/tmp"])

    def _bring(self, plan: Plan, board: Board) -> list[Wheel]:
        with self._progress.stage("fetch the packages here"):
            wheels = fetch_wheels(plan, board)
        self._check_room(wheels, board)
        wanted = {wheel.path.name: wheel.sha256 for wheel in wheels}
        there = self._keep("look", board, wanted)
        missing = [wheel for wheel in wheels if wheel.path.name not in there]
        for count, wheel in enumerate(missing):
            self._progress.advance("push", count, len(missing), wheel.path.name)
            self._shell.put(wheel.path, f"{self._folder}/{wheel.path.name}.part")
        if damaged := wanted.keys() - set(self._keep("keep", board, wanted)):
            raise DeviceError(
                f"damaged on the way to the board: {', '.join(sorted(damaged))}",
                hint="the same command again sends what is missing; is the disk there all right?",
            )
        size = sum(wheel.path.stat().st_size for wheel in missing) / 2**20
        self._done.append(f"pushed {len(missing)} of {len(wheels)} packages, {size:.1f} MiB")
        return wheels

    def _keep(self, mode: str, board: Board, wanted: Mapping[str, str]) -> list[str]:
        kept: list[str] = ask(
            self._shell, board.executable, "keep", self._folder, mode, data=dict(wanted)
        )
        return kept

    def _check_room(self, wheels: Sequence[Wheel], board: Board) -> None:
        packed = sum(wheel.path.stat().st_size for wheel in wheels)
        needed = packed + sum(wheel.unpacked_bytes for wheel in wheels) + SPARE_BYTES
        if board.free_bytes < needed:
            raise DeviceError(
                f"the board's disk has {board.free_bytes / 2**20:.0f} MiB free where "
                f"{self._shell.home} is; the packages need {needed / 2**20:.0f} MiB",
                hint="make room there",
            )

    def _make_environment(self, board: Board) -> None:
        target = f"{self._shell.home}/venv"
        package = "python{}.{}-venv".format(*board.python)
        apt = f"on Debian and Ubuntu: `sudo apt install {package}`"
        if not board.venv:
            raise DeviceError(f"{board.executable} has no venv module", hint=apt)
        pip = [] if self._online else ["--without-pip"]
        self._alone(
            board,
            [board.executable, "-m", "venv", "--clear", *pip, target],
            what="cannot make an environment",
            hint=apt,
        )
        self._done.append(f"made an environment of Python {board.python_version}")

    def _install(self, plan: Plan, board: Board, wheels: Sequence[Wheel]) -> None:
        options = ["--disable-pip-version-check", "--no-cache-dir", "--no-compile", "--upgrade"]
        if self._online:
            pip = [self._python, "-m", "pip", "install"]
            # The pip that comes with Python 3.6 knows no wheel of onnxruntime.
            self._alone(board, [*pip, *options, "pip"], what="cannot bring pip up to date")
        else:
            name = next(w.path.name for w in wheels if w.path.name.startswith("pip-"))
            pip = [self._python, f"{self._folder}/{name}/pip", "install", "--no-index"]
            options += ["--find-links", self._folder, "--isolated"]
        self._alone(
            board,
            [*pip, *options, *plan.requirements.values()],
            what="cannot install the packages",
            hint=None if self._online else "--online lets the board fetch them itself",
        )
        self._done.append("installed " + ", ".join(plan.requirements.values()))

    def _leave_mark(self, plan: Plan, board: Board) -> None:
        content = {"base": board.executable, "requirements": list(plan.requirements.values())}
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder) / MARK
            mark.write_text(json.dumps(content), encoding="utf-8")
            self._shell.put(mark, f"{self._shell.home}/venv/{MARK}")

    def _prove(self, modules: Sequence[str]) -> None:
        done = run_script(
            self._shell, self._python, "prove", *modules,
            timeout_s=INSTALL_S, environment=self._profile.environment,
        )  # fmt: skip
        if done.status == 0:
            return
        proved = len(done.stdout.splitlines())
        name = modules[proved] if proved < len(modules) else modules[-1]
        raise DeviceError(
            f"{name} does not work on the board: its Python {ending_of(done.status)}: "
            f"{last_line(done.stderr)}",
            hint=_proof_hint(done),
        )

    def _alone(
        self, board: Board, argv: Sequence[str], *, what: str, hint: str | None = None
    ) -> None:
        """A command that nobody else's may run beside: one that writes to the environment."""
        done = run_script(
            self._shell, board.executable, "locked", self._shell.home, *argv,
            timeout_s=INSTALL_S, environment=self._environment,
        )  # fmt: skip
        _expect_success(done, what, hint)

    def _command(self, argv: Sequence[str]) -> None:
        _expect_success(self._shell.execute(argv, environment=self._environment), argv[0], None)


def _expect_success(done: Completed, what: str, hint: str | None) -> None:
    if done.status:
        said = last_line(done.stderr if done.stderr.strip() else done.stdout)
        raise DeviceError(f"{what}: {said}", hint=_disk_hint(done) or hint)


def _proof_hint(done: Completed) -> str | None:
    if b"GLIBC_" in done.stderr:
        return "its C library is older than the package needs: a newer system, or an older package"
    if ending_of(done.status).endswith("SIGILL"):
        return "an instruction that this processor lacks; on Jetson boards OPENBLAS_CORETYPE=ARMV8"
    return None


def _disk_hint(done: Completed) -> str | None:
    full = b"No space left on device" in done.stderr + done.stdout
    return "the board's disk is full: make room there" if full else None
