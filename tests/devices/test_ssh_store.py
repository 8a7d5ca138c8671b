"""What is kept on a board: sent once, checked there, damaged by nothing, and it makes room."""

import contextlib
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devices_kit import make_dense, only
from sshd_kit import Boards
from test_agent_lifetime import gone_within

from devices.base import Job
from devices.ssh import SshSession
from devices.ssh_store import Content, Shipment, python_words, ship
from edgevit.bundle import hash_file
from edgevit.errors import DeviceError, UsageError


def make_bundle(folder: Path, **contents: bytes) -> Path:
    """A folder of files; ``_`` in a name is a folder of its own."""
    for name, data in contents.items():
        path = folder / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def same(place: str, bundle: Path) -> bool:
    """Whether a place on the board holds the bundle, no more and no less."""
    return hash_file(Path(place)) == hash_file(bundle)


class Counter:
    """Bytes that were sent."""

    sent = 0

    def __call__(self, sent: int, total: int) -> None:
        assert sent <= total
        self.sent = sent


def pushed(session: SshSession, bundle: Path) -> tuple[str, int]:
    """The place of a bundle, and how many bytes were sent."""
    counter = Counter()
    return session.push(bundle, progress=counter), counter.sent


@pytest.fixture
def board(boards: Boards) -> SshSession:
    return boards.open()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(
        tmp_path / "a b'c",
        # "?" is what the tests put there as damage.
        model=os.urandom(700_000).replace(b"?", b"!"),
        package_Data_weights=b"w" * 300_000,
        package_info=b"{}",
        empty=b"",
    )


def test_a_bundle_is_there_as_it_was_and_is_sent_once(board: SshSession, bundle: Path) -> None:
    place, sent = pushed(board, bundle)
    assert same(place, bundle)
    assert place.startswith(board.home + "/store/")
    assert sent == 1_000_002
    assert pushed(board, bundle) == (place, 0)


def test_contents_that_another_bundle_brought_are_not_sent_again(
    board: SshSession, bundle: Path, tmp_path: Path
) -> None:
    place, _ = pushed(board, bundle)
    other = make_bundle(tmp_path / "other", again=b"w" * 300_000, manifest=b"new")
    other_place, sent = pushed(board, other)
    assert sent == len(b"new")
    assert other_place != place
    assert same(other_place, other)
    assert same(place, bundle)


def test_only_the_parts_that_are_needed_are_brought(board: SshSession, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "many", **{"model.onnx": b"o" * 1000, "model.pt2": b"p" * 2000})
    (folder / "model.mlpackage" / "Data").mkdir(parents=True)
    (folder / "model.mlpackage" / "Data" / "weights").write_bytes(b"w" * 500)
    counter = Counter()
    place = board.push(folder, ["model.onnx", "model.mlpackage"], progress=counter)
    assert counter.sent == 1500
    there = {p.relative_to(place).as_posix() for p in Path(place).rglob("*") if p.is_file()}
    assert there == {"model.onnx", "model.mlpackage/Data/weights"}


def test_what_was_damaged_on_the_board_is_sent_again(board: SshSession, bundle: Path) -> None:
    place, _ = pushed(board, bundle)
    with Path(place, "model").open("r+b") as stream:
        stream.write(b"?")
    assert not same(place, bundle)
    assert pushed(board, bundle) == (place, 700_000)
    assert same(place, bundle)


def test_an_empty_folder_is_no_bundle(board: SshSession, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no files"):
        board.push(tmp_path / "nothing")


# -- damaged on the way ----------------------------------------------------------------------------

DAMAGE = """
    import os
    path, times = os.environ["DAMAGES"], {times}

    def fsync(fd):
        done = int(open(path).read())
        if done < times:
            with open(path, "w") as stream:
                stream.write(str(done + 1))
            os.pwrite(fd, b"?", os.fstat(fd).st_size // 2)
    os.fsync = fsync
"""


def damaging(folder: Path, times: int) -> dict[str, str]:
    """Variables of a board whose disk damages what is written, that many times."""
    (folder / "site").mkdir()
    source = textwrap.dedent(DAMAGE).format(times=times)
    (folder / "site" / "sitecustomize.py").write_text(source)
    (folder / "damages").write_text("0")
    return {"PYTHONPATH": str(folder / "site"), "DAMAGES": str(folder / "damages")}


def test_what_comes_out_damaged_is_sent_once_more(
    boards: Boards, bundle: Path, tmp_path: Path
) -> None:
    session = boards.open(environment=damaging(tmp_path, times=1))
    place = session.push(bundle)
    assert (tmp_path / "damages").read_text() == "1"
    assert same(place, bundle)


def test_what_always_comes_out_damaged_is_an_error(
    boards: Boards, bundle: Path, tmp_path: Path
) -> None:
    session = boards.open(environment=damaging(tmp_path, times=99))
    with pytest.raises(DeviceError) as caught:
        session.push(bundle)
    assert "came out damaged, twice: its sha256 there is " in caught.value.message
    assert "SD card" in str(caught.value.hint)
    kept = [path for path in boards.home.rglob("*") if path.is_file() and path.stat().st_size]
    assert not kept, "nothing damaged is kept"


def test_a_file_that_changes_while_it_is_sent(board: SshSession, bundle: Path) -> None:
    shipment = Shipment.of_folder(bundle, 10**9)
    for data in (b"shorter", os.urandom(700_000)):
        (bundle / "model").write_bytes(data)
        with pytest.raises(DeviceError, match="model came out damaged, twice"):
            send(board, shipment)


def send(board: SshSession, shipment: Shipment) -> str:
    return ship(board._connection, shipment, home=board.home, python=board.python, environment={})


# -- room ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """A disk of its own at that folder."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(boards: Boards, bundle: Path, tmp_path: Path) -> None:
    with small_disk(boards.home, "size=900k"):
        session = boards.open()
        session.facts()  # the agent itself finds room
        with pytest.raises(DeviceError) as caught:
            session.push(bundle)
        assert caught.value.message.startswith("board: the board's disk is full: 1.0 MiB are to")
        assert "make room there" in str(caught.value.hint)
        small = make_bundle(tmp_path / "small", model=b"m")
        assert same(session.push(small), small), "the session goes on"


def test_a_disk_that_fills_up_in_the_middle(boards: Boards, bundle: Path) -> None:
    # Room enough, but not for one more file: found out only when the file is made.
    with small_disk(boards.home, "size=50m,nr_inodes=5"):
        session = boards.open()
        with pytest.raises(DeviceError, match="the board's disk is full"):
            session.push(bundle)
        assert not list(boards.home.rglob("*.part"))


def test_a_full_disk_and_a_file(boards: Boards, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(900_000))
    with small_disk(boards.home, "size=400k"):
        session = boards.open()
        with pytest.raises(DeviceError, match="No space left on device") as caught:
            session.put(tmp_path / "file", f"{boards.home}/file")
        assert not list(boards.home.iterdir()), "nothing half is left"
    assert caught.value.hint == "the board's disk is full: make room there"


def test_a_full_disk_and_the_agent(boards: Boards) -> None:
    with (
        small_disk(boards.home, "size=8k"),
        pytest.raises(DeviceError, match="the board's disk is full"),
    ):
        boards.open().facts()


def test_a_disk_that_cannot_be_written(boards: Boards) -> None:
    with small_disk(boards.home, "ro"), pytest.raises(DeviceError, match="Read-only file system"):
        boards.open().facts()


def test_bundles_that_nobody_used_for_long_make_room(
    boards: Boards, bundle: Path, tmp_path: Path
) -> None:
    with small_disk(boards.home, "size=1500k"):
        session = boards.open()
        place = session.push(bundle)
        new = make_bundle(tmp_path / "new", model=os.urandom(800_000), other=b"w" * 300_000)
        with pytest.raises(DeviceError, match="the board's disk is full"):
            session.push(new)
        assert same(place, bundle), "it was used today"
        two_days_ago = time.time() - 2 * 24 * 3600
        os.utime(place, (two_days_ago, two_days_ago))
        new_place, sent = pushed(session, new)
        assert sent == 800_000, "what both have was kept"
        assert same(new_place, new)
        assert not Path(place).exists()


def test_the_store_has_a_limit_of_its_own(board: SshSession, bundle: Path, tmp_path: Path) -> None:
    places = []
    for number in range(3):
        folder = make_bundle(tmp_path / str(number), model=os.urandom(1000 + number))
        places.append(send(board, Shipment.of_folder(folder, limit_bytes=2500)))
        used = time.time() - (10 - number) * 24 * 3600
        os.utime(places[-1], (used, used))
    assert [Path(place).exists() for place in places] == [False, True, True]


def test_a_disk_without_links(boards: Boards, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    refuse = (
        "import os\ndef link(*_):\n    raise PermissionError(1, 'no links here')\nos.link = link\n"
    )
    (tmp_path / "site" / "sitecustomize.py").write_text(refuse)
    session = boards.open(environment={"PYTHONPATH": str(tmp_path / "site")})
    place = session.push(bundle)
    assert same(place, bundle)
    assert pushed(session, bundle) == (place, 0)


def test_cleaning_up(board: SshSession, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "board" / "venv").mkdir(parents=True)
    board.push(bundle)
    board.facts()
    assert board.clean() > 1_000_002
    assert [path.name for path in Path(board.home).iterdir()] == ["venv"]
    assert same(board.push(bundle), bundle)
    board.facts()


# -- broken off ------------------------------------------------------------------------------------


def test_what_a_broken_upload_leaves_is_removed(boards: Boards, bundle: Path) -> None:
    session = boards.open()
    job = Shipment.of_folder(bundle, 10**9).to_json(session.home)
    words = python_words(session.python, "store")
    uploads = [start_upload(words, job) for _ in range(2)]
    partials = set((boards.home / "store" / "files").glob("*.part"))
    assert len(partials) == 2
    uploads[0].send_signal(signal.SIGKILL)
    uploads[0].wait()
    place = session.push(bundle)
    assert same(place, bundle)
    (left,) = (boards.home / "store" / "files").glob("*.part")
    assert str(uploads[1].pid) in left.name, "one that goes on is let be"
    assert uploads[1].stdin is not None
    uploads[1].stdin.close()  # the connection ends
    assert gone_within(uploads[1].pid, 5)
    assert not left.exists()
    uploads[1].wait()
    for upload in uploads:
        assert upload.stdout is not None
        upload.stdout.close()


def start_upload(words: list[str], job: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """An upload that has come to half of its first file."""
    import json

    upload = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert upload.stdin is not None
    assert upload.stdout is not None
    upload.stdin.write(json.dumps(job).encode() + b"\n")
    upload.stdin.flush()
    missing = json.loads(upload.stdout.readline())["missing"]
    first = next(size for name, sha256, size in job["files"] if sha256 == missing[0])
    upload.stdin.write(bytes(max(1, first // 2)) if first else b"")
    upload.stdin.flush()
    end = time.monotonic() + 5
    while time.monotonic() < end and not part_of(upload, job):
        time.sleep(0.02)
    return upload


def part_of(upload: "subprocess.Popen[bytes]", job: dict[str, Any]) -> list[Path]:
    return list(Path(str(job["home"]), "store", "files").glob(f"*.{upload.pid}.part"))


def test_the_connection_is_cut_in_a_push(boards: Boards, bundle: Path) -> None:
    session = boards.open()
    (bundle / "model").write_bytes(os.urandom(30_000_000))

    def cut(sent: int, total: int) -> None:
        if total // 3 < sent < total // 2:
            boards.sshd.cut()

    with pytest.raises(DeviceError, match="board: the connection was cut"):
        session.push(bundle, progress=cut)
    place = session.push(bundle)  # reaches the board again
    assert same(place, bundle)
    assert not list(boards.home.rglob("*.part"))


def test_two_hosts_push_the_same(boards: Boards, bundle: Path, tmp_path: Path) -> None:
    import threading

    sessions = [boards.open(), boards.open()]
    subject = make_dense(bundle, "dense")
    places: list[str] = []
    threads = [threading.Thread(target=lambda s=s: places.append(s.push(bundle))) for s in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places)) == 1
    assert same(places[0], bundle)
    assert only(list(sessions[0].run(Job("check", (subject,)))), "checked")["ok"]


def test_contents_are_as_many_bytes_as_were_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 200_000)
    content = Content.of_file(path, "file")
    assert b"".join(content.chunks()) == path.read_bytes()
    path.write_bytes(b"abc")
    assert sum(map(len, content.chunks())) == 600_000
