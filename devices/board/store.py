"""Take files in by their content: one conversation, lines of JSON and raw bytes in, lines out.

    in    {"home", "kind", "name", "files": [[path, sha256, bytes], ...], "limit", "held_seconds"}
    out   {"missing": [sha256, ...]}
    in    their bytes, one after the other, nothing between
    out   {"kept": sha256} or {"damaged": sha256, "got": sha256}, for each
    out   {"place": where they are}    or at any time {"error": kind, "message", ...}

Kind "bundle": each content is a file under <home>/store/files; <home>/store/<name> has the bundle's
names for them, as links where the disk has such. Bundles that nobody used for a while make room.
Kind "agent": <home>/agent/<name>; other versions that nobody used for a while are removed.

A file comes into being under another name, locked; it is renamed when it is on the disk and its
hash is right. What a broken upload leaves is not locked, and the next one removes it.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import sys
import time
from typing import Any, BinaryIO, Dict, List, Union

BLOCK = 1 << 20


class DiskFullError(Exception):
    """There is no room."""


def say(**fields: object) -> None:
    """One line to the host."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def digest(path: str) -> str:
    """The file's sha256; empty if it cannot be read."""
    total = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(BLOCK), b""):
                total.update(block)
    except OSError:
        return ""
    return total.hexdigest()


def size_of(path: str) -> int:
    """Bytes of a file; none if it is gone."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def age(path: str) -> float:
    """Seconds since it was used; a clock that went back does not make it old."""
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return 0.0


def receive(path: str, sha256: str, size: int) -> bool:
    """The next bytes of stdin, to that path if they are what they should be."""
    partial = "{}.{}.part".format(path, os.getpid())
    try:
        with create(partial) as stream:
            got = copy(sys.stdin.buffer, stream, size)
            sync(stream)
            if got == sha256:
                got = digest(partial)  # as it is on the disk
            if got == sha256:
                os.replace(partial, path)
                say(kept=sha256)
                return True
        say(damaged=sha256, got=got)
        return False
    finally:
        forget(partial)


def create(path: str) -> BinaryIO:
    """A new file, locked. Whoever swept it away before it was locked makes us do it again."""
    while True:
        stream = open(path, "wb")  # noqa: SIM115
        fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            return stream
        stream.close()


def sync(stream: BinaryIO) -> None:
    """To the disk: else a power cut leaves an empty file of the right name."""
    stream.flush()
    os.fsync(stream.fileno())


def copy(source: BinaryIO, target: BinaryIO, size: int) -> str:
    """That many bytes; their hash."""
    total = hashlib.sha256()
    while size:
        block = source.read(min(BLOCK, size))
        if not block:
            sys.exit(1)  # the host is gone
        target.write(block)
        total.update(block)
        size -= len(block)
    return total.hexdigest()


def forget(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        os.unlink(path)
    except OSError:
        pass


def sweep(folder: str) -> None:
    """Remove what broken uploads left."""
    for partial in glob.glob(os.path.join(glob.escape(folder), "*.part")):
        try:
            with open(partial, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                forget(partial)
        except OSError:  # noqa: PERF203 - somebody writes it
            pass


class Bundles:
    """The store of bundles."""

    def __init__(self, job: Dict[str, Any]) -> None:
        self.root = os.path.join(job["home"], "store")
        self.files = os.path.join(self.root, "files")
        self.place = os.path.join(self.root, job["name"])
        self.job = job

    def prepare(self) -> None:
        """Make the folders; remove leftovers."""
        os.makedirs(self.files, exist_ok=True)
        sweep(self.files)

    def path(self, sha256: str, name: str) -> str:
        """Where that content is."""
        return os.path.join(self.files, sha256)

    def make_room(self, needed: int) -> None:
        """Let go of bundles, the longest unused first, while there is too little room."""
        there = [b for b in self.bundles() if age(b) > self.job["held_seconds"]]
        for bundle in sorted(there, key=age, reverse=True):
            if not self.tight(needed):
                break
            forget(bundle)
            forget(bundle + ".json")
            self.drop_unused()
        if shutil.disk_usage(self.files).free < needed:
            raise DiskFullError

    def tight(self, needed: int) -> bool:
        """Whether the disk, or what the store may take of it, is too small."""
        kept = sum(size_of(path) for path in glob.glob(os.path.join(glob.escape(self.files), "*")))
        free = shutil.disk_usage(self.files).free
        return free < needed or kept + needed > self.job["limit"]

    def bundles(self) -> List[str]:
        """All but the one that comes."""
        lists = glob.glob(os.path.join(glob.escape(self.root), "*.json"))
        return [path[: -len(".json")] for path in lists if path != self.place + ".json"]

    def drop_unused(self) -> None:
        """Remove contents that no bundle has."""
        used = {entry[1] for entry in self.job["files"]}
        for bundle in self.bundles():
            try:
                with open(bundle + ".json") as stream:
                    used.update(entry[1] for entry in json.load(stream))
            except (OSError, ValueError):  # noqa: PERF203 - damaged: nobody can use it
                pass
        for path in glob.glob(os.path.join(glob.escape(self.files), "*")):
            if os.path.basename(path) not in used and not path.endswith(".part"):
                forget(path)

    def finish(self) -> str:
        """The bundle's own names for its contents."""
        listing = self.place + ".json"
        partial = "{}.{}".format(listing, os.getpid())
        with open(partial, "w") as stream:
            json.dump(self.job["files"], stream)
        os.replace(partial, listing)
        for name, sha256, _ in self.job["files"]:
            self.link(sha256, os.path.join(self.place, *name.split("/")))
        os.utime(self.place, None)
        return self.place

    def link(self, sha256: str, target: str) -> None:
        """Another name for a content; a copy on disks that have no links."""
        source = self.path(sha256, target)
        if os.path.exists(target):
            if os.path.samefile(source, target) or digest(target) == sha256:
                return
            forget(target)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            os.link(source, target)
        except FileExistsError:  # another host brings the same
            pass
        except OSError:
            self.duplicate(source, target)

    def duplicate(self, source: str, target: str) -> None:
        """A copy, there whole or not at all."""
        partial = "{}.{}.part".format(source, os.getpid())
        try:
            with open(source, "rb") as original, create(partial) as stream:
                copy(original, stream, size_of(source))
                sync(stream)
                os.replace(partial, target)
        finally:
            forget(partial)


class Agent:
    """The folder of agents, one file a version."""

    def __init__(self, job: Dict[str, Any]) -> None:
        self.folder = os.path.join(job["home"], "agent")
        self.job = job

    def prepare(self) -> None:
        """Make the folder; remove leftovers and what nobody used for a while."""
        os.makedirs(self.folder, exist_ok=True)
        sweep(self.folder)
        for path in glob.glob(os.path.join(glob.escape(self.folder), "agent-*.pyz")):
            own = os.path.basename(path) == self.job["name"]
            if not own and age(path) > self.job["held_seconds"]:
                forget(path)

    def path(self, sha256: str, name: str) -> str:
        """Where it is."""
        return os.path.join(self.folder, name)

    def make_room(self, needed: int) -> None:
        """It is small."""

    def finish(self) -> str:
        """Somebody uses it."""
        path = os.path.join(self.folder, self.job["name"])
        os.utime(path, None)
        return path


def main() -> None:
    """One conversation."""
    job = json.loads(sys.stdin.buffer.readline().decode("utf-8"))
    kind: Union[Agent, Bundles] = Agent(job) if job["kind"] == "agent" else Bundles(job)
    missing: Dict[str, Any] = {}
    try:
        kind.prepare()
        for name, sha256, size in job["files"]:
            path = kind.path(sha256, name)
            if digest(path) != sha256:
                missing[sha256] = (path, size)
        kind.make_room(sum(size for _, size in missing.values()))
        say(missing=list(missing))
        kept = [receive(path, sha256, size) for sha256, (path, size) in missing.items()]
        if all(kept):
            say(place=kind.finish())
    except DiskFullError:
        full(job, missing)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full(job, missing)
        else:
            say(error="failed", message=str(error))


def full(job: Dict[str, Any], missing: Dict[str, Any]) -> None:
    """Say that there is no room, with figures."""
    folder = job["home"]
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    needed = sum(size for _, size in missing.values())
    say(error="full", message="", needed=needed, free=shutil.disk_usage(folder).free)


main()
