"""The files of a Raspberry Pi stand-in: Debian 12 for arm64, with its Python, NumPy and sshd.

    python tests/standins/arm64/rootfs.py            builds it, or finds it built, and says where

Debian's packages are unpacked, not installed: none of their scripts run, so that neither root nor
an emulator is needed, and it takes half a minute. What those scripts would have left behind (users,
a shell, the default BLAS) is added by hand, and the runtimes' aarch64 wheels are unpacked on top.
All of it is one tarball in the user's cache, named after the hash of this file.

The mirror is the one that this machine's apt has; pip is asked as it is configured here.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

__all__ = ["CACHE", "SITE", "CannotBuildError", "build"]

SUITE = "bookworm"
PACKAGES = (
    "base-files", "bash", "coreutils", "dash", "findutils", "grep", "gzip", "hostname",
    "libstdc++6", "mawk", "openssh-server", "procps", "python3", "python3-numpy", "python3-venv",
    "sed", "tar", "util-linux",
)  # fmt: skip
#: What a board's Python brings in the way of runtimes; pip does not imply older platform tags.
WHEELS = ("onnxruntime==1.31.1", "ai-edge-litert==2.3.0", "tflite-runtime==2.14.0")
PLATFORMS = (
    "manylinux_2_34",
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_17",
    "manylinux2014",
)
UNREAD = ("man", "doc", "locale", "info", "perl", "lintian", "bash-completion")

#: Where the runtimes lie in the tree; without that folder the board is a bare one.
SITE = "usr/local/lib/python3.11/dist-packages"

LINKS = {
    "bin/sh": "dash",
    "usr/bin/awk": "mawk",
    "usr/lib/aarch64-linux-gnu/libblas.so.3": "blas/libblas.so.3",
    "usr/lib/aarch64-linux-gnu/liblapack.so.3": "lapack/liblapack.so.3",
}
FILES = {
    # A "!" in place of the password would lock the account.
    "etc/passwd": """\
root:*:0:0:root:/root:/bin/bash
sshd:*:100:65534::/run/sshd:/usr/sbin/nologin
pi:*:1000:1000::/home/pi:/bin/bash
nobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
""",
    "etc/group": "root:x:0:\npi:x:1000:\nnogroup:x:65534:\n",
    "etc/hostname": "standin\n",
    "etc/hosts": "127.0.0.1 localhost standin\n",
    # No name leads out: whatever a board needs has to be brought to it.
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


class CannotBuildError(Exception):
    """A tool is absent, or did not do its work; the message says which, and its last words."""


def build() -> Path:
    """The tarball, built now if there is none yet; whoever asks meanwhile waits.

    Raises:
        CannotBuildError: there is none, and it cannot be built here.
    """
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    place = CACHE / f"arm64-{key}.tar"
    if place.exists():
        return place
    for tool in ("mmdebstrap", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CannotBuildError(f"{tool} is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "arm64.lock"):
        if not place.exists():
            _forget_others()
            _build(place)
    return place


#: Asked once: tests have a cache of their own while they run.
CACHE = user_cache_path("edgevit-tests")


def _forget_others() -> None:
    """Tarballs of earlier versions of this file, and what a build that was killed left."""
    for old in CACHE.glob("arm64-*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def _build(place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="arm64-", dir=CACHE) as scratch:
        partial, site = Path(scratch) / "rootfs.tar", Path(scratch) / "site"
        _unpack_debian(partial)
        _unpack_wheels(site)
        with tarfile.open(partial, "a") as archive:
            archive.add(site, f"./{SITE}")
            for name, target in LINKS.items():
                _add(archive, name, target=target)
            for name, text in FILES.items():
                _add(archive, name, text=text)
        partial.replace(place)


def _unpack_debian(place: Path) -> None:
    # Neither mode changes anything outside its own temporary folder.
    mode = "root" if os.geteuid() == 0 else "chrootless"
    unread = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNREAD]
    _run(
        "mmdebstrap", f"--mode={mode}", "--variant=extract", "--architectures=arm64", *unread,
        f"--include={','.join(PACKAGES)}", SUITE, str(place), *_mirror(),
    )  # fmt: skip


def _mirror() -> Sequence[str]:
    """The Debian mirror of this machine's apt; none on another system, where the tool knows one."""
    wanted = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.split()[:1] if done.returncode == 0 else ()


def _unpack_wheels(folder: Path) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_aarch64")]
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", "3.11", *platforms,
        "--target", str(folder), *WHEELS,
    )  # fmt: skip


def _add(archive: tarfile.TarFile, name: str, *, text: str = "", target: str = "") -> None:
    """A file, or a link if there is a target; it takes the place of one that is there."""
    content = text.encode()
    entry = tarfile.TarInfo(f"./{name}")
    entry.type = tarfile.SYMTYPE if target else tarfile.REGTYPE
    entry.linkname, entry.size, entry.mode = target, len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))


def _run(*command: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()[-8:]
        raise CannotBuildError(f"{Path(command[0]).name} failed: " + " / ".join(said))


if __name__ == "__main__":
    try:
        print(build())
    except CannotBuildError as error:
        sys.exit(f"no Raspberry Pi stand-in: {error}")
