"""A Raspberry Pi stand-in that runs: its own sshd under qemu, and a state that tests make up.

It proves function (a real arm64 system, real wheels, real SSH), never speed: emulation is hundreds
of times slower than a board, and differently so from run to run.

Everything lives in one folder and one PID namespace, where the system allows that; mounts are made
in a mount namespace of their own. So nothing stays behind, whatever happens to this process.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from arm64.rootfs import SITE, build

from devices.hosts import Host

__all__ = ["Board", "CannotRunError", "ways"]

#: The cores of a Raspberry Pi 4. Without it qemu offers instructions that they do not have.
CPU = "cortex-a72"
QEMU = "qemu-aarch64-static"
TOOLS = ("ssh-keygen", "tar", "unshare", "setpriv", QEMU)
START_S = 60

#: Killed if this process ends in whatever way.
WITH_US = ("setpriv", "--pdeathsig")
#: What ends everything: proot lets its processes go if it is killed, and ignores other requests.
END = {"namespace": signal.SIGKILL, "proot": signal.SIGQUIT}
#: Mounts and processes of its own, all of which end with the first process.
APART = (
    "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child",
)  # fmt: skip
#: Hands arm64 programs to $2 in here only, which kernels allow from 6.7 on (before that, the
#: machine's own registration serves), then runs the command under root $1 as an ordinary user.
INSIDE = r"""
set -e
binfmt=/proc/sys/fs/binfmt_misc
if mount -t binfmt_misc binfmt_misc $binfmt 2>/dev/null; then
    head='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf %s ":qemu-aarch64:M::$head:$mask:$2:F" >$binfmt/register
fi
[ -e $binfmt/qemu-aarch64 ]
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
root=$1
shift 2
exec unshare --user --map-user=1000 --map-group=1000 --root="$root" --wd=/ "$@"
"""

SSHD_CONFIG = f"""\
Port {{port}}
ListenAddress 127.0.0.1
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
LogLevel VERBOSE
MaxStartups 100
Subsystem sftp /usr/lib/openssh/sftp-server
SetEnv QEMU_CPU={CPU}
"""

#: Answers ``vcgencmd get_throttled`` and the like from files that the tests write.
VCGENCMD = '#!/bin/sh\nexec cat "/var/lib/vcgencmd/$1"\n'


class CannotRunError(Exception):
    """This machine cannot run it; the message says why."""


@cache
def ways() -> tuple[str, ...]:
    """How an arm64 system can run here, the best first: ``"namespace"`` and ``"proot"``.

    The first needs a kernel that lets this user have namespaces, the second ptrace.

    Raises:
        CannotRunError: a tool is absent, or both are refused.
    """
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise CannotRunError(f"{tool} is not installed")
    found = []
    if _works(*_apart("/"), "true"):
        found.append("namespace")
    if shutil.which("proot") and _works(*_traced("/"), "/bin/true"):
        found.append("proot")
    if not found:
        raise CannotRunError("neither namespaces with binfmt_misc nor proot are allowed here")
    return tuple(found)


def _apart(root: str) -> Sequence[str]:
    return (*APART, "sh", "-c", INSIDE, "sh", root, str(shutil.which(QEMU)))


def _traced(root: str, *options: str) -> Sequence[str]:
    return (
        "proot",
        "-i",
        "1000:1000",
        "-r",
        root,
        "-b",
        "/dev",
        "-b",
        "/proc",
        "-w",
        "/",
        *options,
    )


def _works(*command: str) -> bool:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


class Board:
    """A stand-in that is reached at ``pi@127.0.0.1``; a context manager.

    Args:
        folder: where it lives; it has to be empty, and is deleted at the end.
        way: one of :func:`ways`; the best if None.
        bare: without any runtime, as a board comes from the shop.

    Raises:
        CannotRunError: it does not start; the message ends with what its sshd said.
        arm64.rootfs.CannotBuildError: its files are not there, and cannot be fetched.
    """

    def __init__(self, folder: Path, *, way: str | None = None, bare: bool = False) -> None:
        self.way = way or ways()[0]
        self.folder = folder
        self.root = folder / "root"
        self.log = folder / "sshd.log"
        self.identity = folder / "key"
        self.known_hosts = folder / "known_hosts"
        self.user = "pi"
        self.port = _free_port()
        self._bare = bare
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Board:
        try:
            self._unpack()
            self._authorize()
            self.calm()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start its sshd, and wait until it greets."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*WITH_US, END[self.way].name[3:], "--", *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "QEMU_CPU": CPU, "HOME": "/root"},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._greets():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise CannotRunError(f"the stand-in does not start: {self.said()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Pull the plug: everything that runs on it is gone at once."""
        process, self._process = self._process, None
        if process is not None:
            if self.way == "namespace":
                # The first process of a namespace ends after all others; unshare waits for it.
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            else:
                process.send_signal(END["proot"])
            process.wait(30)

    def close(self) -> None:
        """Pull the plug and delete its files."""
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def introduce(self, home: Path) -> Host:
        """Let the ssh of that home folder know its host key; how a user would configure it."""
        (home / ".ssh").mkdir(parents=True, exist_ok=True)
        with (home / ".ssh/known_hosts").open("a") as known:
            known.write(self.known_hosts.read_text())
        return Host(
            name="pi",
            profile="rpi4",
            address="127.0.0.1",
            user=self.user,
            port=self.port,
            identity=str(self.identity),
            emulated=True,
        )

    def said(self) -> str:
        """The last words of its sshd."""
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-5:])

    # -- state -------------------------------------------------------------------------------------

    def calm(self) -> None:
        """A Raspberry Pi 4 at rest: full clock, 45 degrees, a sound power supply."""
        for name in ("possible", "present"):
            self.file(f"sys/devices/system/cpu/{name}", "0-3\n")
        self.model("Raspberry Pi 4 Model B Rev 1.4")
        self.governor("performance")
        self.clock(1_500_000)
        self.heat(45.0)
        self.throttled(0)

    def model(self, text: str) -> None:
        """What the board calls itself."""
        self.file("sys/firmware/devicetree/base/model", text + "\0")

    def governor(self, name: str) -> None:
        """The frequency governor of all four cores."""
        self._cpufreq("scaling_governor", name)

    def clock(self, now: int, most: int = 1_500_000) -> None:
        """The clock of all four cores, in kHz."""
        self._cpufreq("scaling_cur_freq", str(now))
        self._cpufreq("scaling_max_freq", str(most))

    def heat(self, degrees: float) -> None:
        """The temperature of its chip, in degrees Celsius."""
        self.file("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
        self.file("sys/class/thermal/thermal_zone0/temp", f"{round(1000 * degrees)}\n")

    def throttled(self, bits: int) -> None:
        """What ``vcgencmd get_throttled`` answers."""
        self.file("var/lib/vcgencmd/get_throttled", f"throttled={bits:#x}\n")

    def file(self, path: str, text: str, mode: int = 0o644) -> Path:
        """Write a file of the board; a reader never sees half of it."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(place.name + ".partial")
        partial.write_text(text)
        partial.chmod(mode)
        return partial.replace(place)

    def _cpufreq(self, name: str, text: str) -> None:
        for cpu in range(4):
            self.file(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/{name}", text + "\n")

    # -- making ------------------------------------------------------------------------------------

    def _unpack(self) -> None:
        tarball = build()
        self.root.mkdir(parents=True)
        left = ["--exclude=./dev/*", *([f"--exclude=./{SITE}/*"] if self._bare else [])]
        subprocess.run(
            ["tar", "-xf", tarball, "-C", self.root, "--no-same-owner", *left], check=True
        )
        for folder in ("run/sshd", "home/pi", "dev", "proc", "sys", "tmp"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "tmp").chmod(0o1777)
        (self.root / "run/sshd").chmod(0o755)

    def _authorize(self) -> None:
        for name in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", name]
            subprocess.run(command, cwd=self.folder, check=True)
        key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key}\n")
        self.file("etc/ssh/host_key", (self.folder / "host_key").read_text(), 0o600)
        self.file("etc/ssh/authorized_keys", (self.folder / "key.pub").read_text())
        self.file("etc/ssh/standin.conf", SSHD_CONFIG.format(port=self.port))
        self.file("usr/bin/vcgencmd", VCGENCMD, 0o755)

    def _command(self) -> Sequence[str]:
        root = str(self.root)
        sshd = ("/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/standin.conf")
        if self.way == "namespace":
            return (*_apart(root), *sshd)
        return (*_traced(root, "-q", f"{QEMU} -cpu {CPU}"), *sshd)

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.settimeout(20)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
