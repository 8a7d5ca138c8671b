"""From `devices add` to a result, over a real SSH server on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "devices"))
pytest.importorskip("asyncssh")
from devices_kit import interpreter
from sshd_kit import Sshd

from devices import remote
from devices.hosts import load_hosts
from edgevit.bundle import Bundle
from edgevit.measure.results import read_results

#: Found before HOME is another.
BASES = {version: interpreter(version) for version in ("3.6", "3.8", "3.11")}
TINY = ("--image-size", "32", "--set", "widths=[8,8,16]", "--set", "depths=[1,1,1]")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that the user knows, and a configuration of the user's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "me" / ".ssh").mkdir(parents=True)
    (tmp_path / "sshd").mkdir()
    with Sshd(tmp_path / "sshd") as server:
        (tmp_path / "me" / ".ssh" / "known_hosts").write_text(server.host_key)
        yield server


def add(edgevit, server, *more):
    return edgevit(
        *("devices", "add", "pc", "-p", "generic-x86-64", "--host", f"127.0.0.1:{server.port}"),
        *("--identity", server.key, *more),
    )


def test_a_board_that_has_everything(edgevit, server):
    assert add(edgevit, server, "--python", sys.executable).code == 0
    (host,) = edgevit("devices", "--json", "--timeout", "30").json["hosts"]
    assert host["state"]["reachable"] is True
    outcome = edgevit("devices", "check", "pc")
    assert outcome.code == 0, outcome.out
    assert "reachable" in outcome.out
    shown = edgevit("devices", "show", "pc", "--json").json
    assert shown["facts"]["python"]["executable"] == sys.executable


def test_a_board_without_anything(edgevit, server):
    """A bare Python: what is missing is named, with the command that brings it."""
    base = BASES["3.8"]
    if base is None:
        pytest.skip("there is no Python 3.8 here")
    add(edgevit, server, "--python", base)
    outcome = edgevit("devices", "check", "pc")
    assert outcome.code == 3
    assert "`edgevit devices setup pc`" in outcome.out


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.stop(), "127.0.0.1"),
        (lambda s: (s.folder / "authorized_keys").write_text(""), "refuse"),
        (lambda s: (Path(os.environ["HOME"]) / ".ssh" / "known_hosts").unlink(), "SHA256:"),
    ],
)
def test_a_board_that_cannot_be_reached(edgevit, server, spoil, said):
    add(edgevit, server)
    spoil(server)
    for command in (("check", "pc"), ("show", "pc"), ("setup", "pc")):
        outcome = edgevit("devices", *command)
        assert outcome.code == 3, command
        assert said in outcome.out + outcome.err, command
    states = edgevit("devices", "--json", "--timeout", "30").json["hosts"]
    assert states[0]["state"]["reachable"] is False


def test_cleaning_up_leaves_the_runtimes(edgevit, server, monkeypatch):
    monkeypatch.setattr(remote.Board, "busy", None)  # others measure on this machine
    add(edgevit, server, "--python", sys.executable)
    home = server.home / ".cache" / "edgevit"
    for name in ("store", "agent", "venv"):
        (home / name).mkdir(parents=True)
        (home / name / "file").write_bytes(bytes(2**20))
    outcome = edgevit("devices", "clean", "pc")
    assert outcome.code == 0, outcome.err
    assert f"pc: 2.0 MiB freed in {home}" in outcome.out
    assert "--all" in outcome.out
    assert [p.name for p in home.iterdir()] == ["venv"]
    told = edgevit("devices", "clean", "pc", "--all", "--json").json
    assert (told["freed_bytes"], told["all"]) == (2**20, True)
    assert not list(home.iterdir())


def test_nothing_is_cleaned_while_a_bench_runs(edgevit, server, monkeypatch):
    add(edgevit, server, "--python", sys.executable)
    monkeypatch.setattr(remote.Board, "busy", "a measurement runs there by me")
    (server.home / ".cache" / "edgevit" / "store").mkdir(parents=True)
    outcome = edgevit("devices", "clean", "pc")
    assert outcome.code == 3
    assert "a measurement runs there by me" in outcome.err
    assert (server.home / ".cache" / "edgevit" / "store").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("version", "opset"), [("3.6", ("--for", "jetson-nano")), ("3.11", ())])
def test_from_a_bare_board_to_a_result(edgevit, server, in_tmp, monkeypatch, version, opset):
    """Three commands, as the README has them; the Python is the board's, bare before."""
    monkeypatch.setattr(remote.Board, "busy", None)  # others measure on this machine
    base = BASES[version]
    if base is None:
        pytest.skip(f"there is no Python {version} here")
    # An interpreter without the packages that this test runs with.
    real = subprocess.run(
        [base, "-c", "import sys; print(getattr(sys, '_base_executable', sys.executable))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    add(edgevit, server, "--python", real, "--emulated")
    outcome = edgevit("devices", "setup", "pc")
    if "cannot fetch the packages" in outcome.err:
        pytest.skip(outcome.err)
    assert outcome.code == 0, outcome.err
    assert load_hosts()["pc"].python is None
    # Nothing outside edgevit's folder, not even by the runtimes.
    assert [p.name for p in server.home.iterdir()] == [".cache"]
    assert [p.name for p in (server.home / ".cache").iterdir()] == ["edgevit"]
    bundle = edgevit("export", "elevit", *TINY, "--format", "onnx", *opset, "--json").json["path"]
    outcome = edgevit("bench", bundle, "--device", "pc", "--runs", "20")
    assert outcome.code == 0, outcome.out + outcome.err
    (result,) = read_results(in_tmp / "results")
    assert result.verification.status == "verified"
    assert result.statistics.n == 20
    home = server.home / ".cache" / "edgevit"
    assert {p.name for p in home.iterdir()} == {"agent", "store", "venv"}
    assert edgevit("devices", "setup", "pc", "--json").json["done"] == []


@pytest.mark.slow
def test_what_won_on_a_board_is_exported_for_it(edgevit, server, in_tmp, monkeypatch):
    """Rewrites, settings and thread counts race there."""
    monkeypatch.setenv("XDG_DATA_HOME", str(in_tmp / "data"))
    # A lock of its own: a tuning waits for other measurements no longer than its budget.
    add(edgevit, server, "--python", sys.executable, "--env", f"TMPDIR={in_tmp}")
    budget = ("--format", "onnx", "--threads", "1,2", "--budget", "40s")
    outcome = edgevit("tune", "elevit", *TINY, "--device", "pc", *budget, "--json")
    assert outcome.code == 0, outcome.err
    told = outcome.json
    assert told["device"] == {"name": "pc", "profile": "generic-x86-64"}
    raced = [c for c in told["candidates"] if c["samples"]]
    assert {c["threads"] for c in raced} == {1, 2}
    assert {c["pass_set"] for c in raced} > {"default", "none"}
    assert any(c["settings"] for c in raced)
    exported = edgevit("export", "elevit", *TINY, "--for", "pc", "--tuned", "--json")
    assert exported.code == 0, exported.err
    done = {entry["name"] for entry in Bundle.open(exported.json["path"]).manifest["passes"]}
    assert done >= set(told["winner"]["passes"])
