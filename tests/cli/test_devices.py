"""``edgevit devices``: boards added, listed, shown, set up, checked and removed.

The board behind these commands is a stand-in: a shell that is this machine, with a home of its own.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import devices.resolve
import devices.setup
import devices.states
from devices.hosts import Host, load_hosts
from devices.local import LocalDevice
from devices.wheels import Plan, _wheel
from edgevit.errors import DeviceError

sys.path.append(str(Path(__file__).parents[1] / "devices"))
from local_shell import LocalShell, make_wheel, real_pip

ADD = ("devices", "add", "pi", "--profile", "generic-x86-64", "--host", "pi@board")


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """A configuration of the test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "edgevit"


class StandIn:
    """A board that is this machine; an address that begins with ``gone`` does not answer."""

    emulated = False
    home = ""

    def __init__(self, host: Host) -> None:
        self.name, self.host = host.name, host
        self.profile = devices.resolve.find_profile(host.name)

    def open(self):
        if self.host.address.startswith("gone"):
            raise DeviceError(f"{self.host.address} does not answer", hint="is it switched on?")
        if self.host.address.startswith("slow"):
            time.sleep(30)
        return StandInSession(self.home)


class StandInSession(LocalShell):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        pass

    def facts(self):
        with LocalDevice(environment={"TMPDIR": str(Path(self.home).parent)}).open() as session:
            return session.facts()


@pytest.fixture
def board(monkeypatch, tmp_path):
    """Configured hosts are stand-ins."""
    for module in (devices.resolve, devices.states):
        monkeypatch.setattr(module, "device_of", StandIn)
    monkeypatch.setattr(StandIn, "home", str(tmp_path / "edgevit"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # others measure on this machine
    return tmp_path / "edgevit"


def test_a_board_is_kept_and_forgotten(edgevit, config):
    outcome = edgevit(*ADD, "--port", "2222", "--python", "/usr/bin/python3")
    assert (outcome.code, outcome.err) == (0, "")
    assert "pi (generic-x86-64) is pi@board:2222" in outcome.out
    assert str(config / "hosts.toml") in outcome.out
    assert "edgevit devices setup pi" in outcome.out
    assert load_hosts() == {
        "pi": Host("pi", "generic-x86-64", "board", "pi", 2222, python="/usr/bin/python3")
    }
    assert "forgotten" in edgevit("devices", "remove", "pi").out
    assert load_hosts() == {}


def test_the_same_as_json(edgevit, tmp_path):
    (tmp_path / "id").touch()
    outcome = edgevit(*ADD, "--json", "--emulated", "--env", "A=b=c", "--identity", tmp_path / "id")
    assert outcome.json["environment"] == {"A": "b=c"}
    assert outcome.json["emulated"] is True
    assert load_hosts()["pi"].identity == str(tmp_path / "id")
    assert edgevit("devices", "remove", "pi", "--json").json["removed"] == "pi"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("my pi", "-p", "rpi4", "--host", "pi@a"), "name: expected letters"),
        (("local", "-p", "rpi4", "--host", "pi@a"), "local is a device of its own"),
        (("rpi5", "-p", "rpi4", "--host", "pi@a"), "rpi5 is a profile of its own"),
        (("pi", "-p", "rpi44", "--host", "pi@a"), "did you mean rpi4"),
        (("pi", "-p", "rpi4", "--host", "pi@"), "--host: expected user@address"),
        (("pi", "-p", "rpi4", "--host", "1:2:3"), "--host: expected user@address"),
        (("pi", "-p", "rpi4", "--host", "a:1", "--port", "2"), "--port: expected 1"),
        (("pi", "-p", "rpi4", "--host", "a", "--port", "70000"), "port: expected 1 to 65535"),
        (("pi", "-p", "rpi4", "--host", "a", "--identity", "/none"), "--identity: expected"),
        (("pi", "-p", "rpi4", "--host", "a", "--env", "A"), "--env: expected NAME=VALUE"),
        (("pi", "-p", "rpi4", "--host", "a", "--attached", "x"), "rpi4 is no phone"),
        (("pi", "-p", "apple-a13", "--host", "a"), "a Mac with Xcode"),
        (("pi", "-p", "rpi4"), "--host"),
    ],
)
def test_what_cannot_be_added(edgevit, config, arguments, message):
    outcome = edgevit("devices", "add", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert not (config / "hosts.toml").exists()


def test_ipv6_and_replacing(edgevit):
    assert edgevit("devices", "add", "pi", "-p", "rpi4", "--host", "pi@fe80::1%eth0").code == 0
    assert load_hosts()["pi"].address == "fe80::1%eth0"
    again = ("devices", "add", "pi", "-p", "rpi4", "--host", "pi@[::1]:22")
    outcome = edgevit(*again)
    assert (outcome.code, "there is a host 'pi' already" in outcome.err) == (2, True)
    assert edgevit(*again, "--force").code == 0
    assert (load_hosts()["pi"].address, load_hosts()["pi"].port) == ("::1", 22)


def test_names_that_are_not_there(edgevit):
    edgevit(*ADD)
    for command in ("remove", "setup", "check", "show"):
        outcome = edgevit("devices", command, "pj")
        assert outcome.code == 2
        assert "did you mean pi" in outcome.err, command
    outcome = edgevit("devices", "setup", "local")
    assert (outcome.code, "no board to set up" in outcome.err) == (2, True)
    for command in ("setup", "check"):
        outcome = edgevit("devices", command, "rpi4")
        assert outcome.code == 2
        assert "edgevit devices add NAME --profile rpi4" in outcome.err


def test_the_list_without_boards_says_how_to_add_one(edgevit):
    outcome = edgevit("devices")
    assert outcome.code == 0
    assert "local  this machine" in outcome.out
    assert "Raspberry Pi 4 Model B" in outcome.out
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("  rpi4")]
    assert "never run on such hardware" in line
    assert "edgevit devices add NAME --profile P --host USER@ADDRESS" in outcome.out


def test_states_are_asked_all_at_once(edgevit, board):
    edgevit(*ADD)
    for name in ("gone1", "gone2", "slow1", "slow2"):
        edgevit("devices", "add", name, "-p", "rpi4", "--host", f"{name}.local", "--emulated")
    start = time.monotonic()
    outcome = edgevit("devices", "--json", "--timeout", "1.5")
    assert time.monotonic() - start < 10
    states = {host["name"]: host["state"] for host in outcome.json["hosts"]}
    assert states["pi"]["reachable"] is True
    assert states["gone1"]["reason"] == "gone1.local does not answer"
    assert states["gone1"]["hint"] == "is it switched on?"
    assert states["slow2"]["reason"] == "no answer in 1.5 s"
    text = edgevit("devices", "--timeout", "1").out
    assert "not reachable: gone1.local does not answer" in text
    assert "rpi4 (emulated)" in text
    assert "reachable, " in text
    assert threading.active_count() < 20


def test_nobody_is_asked_if_not_wished(edgevit, board):
    edgevit("devices", "add", "pi", "-p", "rpi4", "--host", "gone")
    outcome = edgevit("devices", "--no-probe")
    assert "not asked" in outcome.out
    assert edgevit("devices", "--no-probe", "--json").json["hosts"][0]["state"] == {
        "reachable": None, "seconds": None, "reason": None, "hint": None
    }  # fmt: skip
    assert edgevit("devices", "--timeout", "0").code == 2


def test_own_profiles_are_shown_as_such(edgevit, config):
    (config / "profiles").mkdir(parents=True)
    for name in ("rpi4", "rock5b"):
        (config / "profiles" / f"{name}.toml").write_text('title = "Mine"\narch = "arm64"\n')
    lines = {line.split()[0]: line for line in edgevit("devices").out.splitlines()}
    assert f"your own, {config / 'profiles' / 'rock5b.toml'}" in lines["rock5b"]
    assert "takes the place" not in lines["rock5b"]
    assert "takes the place of the one that comes with edgevit" in lines["rpi4"]
    shadows = {p["name"]: p["shadows"] for p in edgevit("devices", "--json").json["profiles"]}
    assert (shadows["rpi4"], shadows["rock5b"], shadows["rpi5"]) == (True, False, False)


def test_a_wrong_file_is_named(edgevit, config):
    config.mkdir(parents=True)
    (config / "hosts.toml").write_text('[pi]\nprofile = "rpi4"\naddress = 7\n')
    outcome = edgevit("devices")
    assert outcome.code == 2
    assert f"{config / 'hosts.toml'}: pi.address: expected" in outcome.err
    doctor = edgevit("doctor")
    assert doctor.code == 0
    assert "pi.address: expected" in doctor.out


def test_doctor_names_boards(edgevit):
    assert "no boards are configured" in edgevit("doctor").out
    edgevit(*ADD)
    outcome = edgevit("doctor")
    assert "generic-x86-64 at pi@board; `edgevit devices check pi` asks it" in outcome.out
    assert edgevit("doctor", "--json").json["devices"]["pi"]["target"] == "pi@board"


def test_show_of_a_profile(edgevit):
    outcome = edgevit("devices", "show", "jetson-nano")
    assert outcome.code == 0
    assert "onnxruntime: 1.10.0, reads onnx, opset 15, IR 8" in outcome.out
    shown = edgevit("devices", "show", "jetson-nano", "--json").json
    assert shown["profile"]["runtimes"]["onnxruntime"]["max_opset"] == 15
    assert (shown["host"], shown["facts"]) == (None, None)


def test_show_of_this_machine_and_of_a_board(edgevit, board):
    facts = edgevit("devices", "show", "local", "--json").json["facts"]
    assert facts["runtimes"]["numpy"]
    assert facts["conditions"]
    edgevit(*ADD)
    outcome = edgevit("devices", "show", "pi")
    assert outcome.code == 0
    for words in ("host\n", "address  board", "facts\n", "conditions now\n", "runtimes "):
        assert words in outcome.out
    assert "facts\n" not in edgevit("devices", "show", "pi", "--no-probe").out


def test_show_of_a_board_that_does_not_answer(edgevit, board):
    edgevit("devices", "add", "pi", "-p", "rpi4", "--host", "gone")
    outcome = edgevit("devices", "show", "pi")
    assert outcome.code == 3
    assert "it does not answer: gone does not answer" in outcome.out
    assert "Broadcom BCM2711" in outcome.out


def test_check_of_a_board(edgevit, board):
    edgevit(*ADD)
    outcome = edgevit("devices", "check", "pi")
    lines = {line.split()[1]: line.split()[0] for line in outcome.out.splitlines()[1:]
             if line[2] != " "}  # fmt: skip
    assert lines["reachable"] == lines["machine"] == lines["onnxruntime"] == "ok"
    assert lines["disk"] == "ok"
    assert outcome.code == 0
    found = edgevit("devices", "check", "pi", "--json").json
    assert (found["name"], found["ok"]) == ("pi", True)
    assert {"what", "level", "text", "hint"} == found["findings"][0].keys()


def test_a_runtime_on_demand(edgevit, board, monkeypatch):
    asked = []
    plan = Plan({}, ("numpy",))
    monkeypatch.setattr(devices.setup, "plan_packages", lambda *a: asked.append(a[2]) or plan)
    edgevit(*ADD)
    edgevit("devices", "setup", "pi", "--runtime", "openvino")
    assert asked == [["openvino"]]


def test_a_runtime_that_is_never_brought(edgevit, board):
    edgevit(*ADD)
    outcome = edgevit("devices", "setup", "pi", "--runtime", "torch", "--python", sys.executable)
    assert outcome.code == 2
    assert "--runtime: expected openvino for generic-x86-64, got 'torch'" in outcome.err
    assert "it is for you to install there" in outcome.err


def test_check_of_the_wrong_board(edgevit, board):
    edgevit("devices", "add", "pi", "-p", "rpi4", "--host", "pi@board")
    outcome = edgevit("devices", "check", "rpi4")  # the only one
    assert outcome.code == 3
    assert "the profile rpi4 is for arm64" in outcome.out
    assert "PROBLEM" in outcome.out


def test_check_of_a_board_that_does_not_answer(edgevit, board):
    edgevit("devices", "add", "pi", "-p", "rpi4", "--host", "gone")
    outcome = edgevit("devices", "check", "pi")
    assert outcome.code == 3
    assert "gone does not answer" in outcome.out
    assert "is it switched on?" in outcome.out
    assert edgevit("devices", "check", "pi", "--json").json["ok"] is False


def test_setup_of_a_board(edgevit, board, tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    found = [_wheel(make_wheel(folder, "tiny")), _wheel(real_pip())]
    plan = Plan({"tiny": "tiny==1.0"}, ("tiny",), ("no TFLite runtime: none fits",))
    monkeypatch.setattr(devices.setup, "plan_packages", lambda *_: plan)
    monkeypatch.setattr(devices.setup, "fetch_wheels", lambda *_: found)
    edgevit(*ADD, "--python", sys.executable)
    outcome = edgevit("devices", "setup", "pi")
    assert outcome.code == 0, outcome.err
    assert "tiny 1.0; tiny proved" in outcome.out
    assert "pushed 2 of 2 packages" in outcome.out
    assert "note: no TFLite runtime" in outcome.out
    assert "edgevit devices check pi" in outcome.out
    assert "install the packages" in outcome.err
    # The agent runs with what was installed from now on.
    assert load_hosts()["pi"].python is None
    again = edgevit("devices", "setup", "pi", "--json")
    assert again.err == ""
    assert (again.json["done"], again.json["versions"]) == ([], {"tiny": "1.0"})
    assert "everything was right already" in edgevit("devices", "setup", "pi").out


def test_setup_of_a_board_that_does_not_answer(edgevit, board):
    edgevit("devices", "add", "pi", "-p", "rpi4", "--host", "gone")
    outcome = edgevit("devices", "setup", "pi", "--json")
    assert outcome.code == 3
    assert outcome.json["message"] == "gone does not answer"


@pytest.mark.parametrize("command", ["", "add", "remove", "setup", "check", "show"])
def test_every_command_explains_itself(edgevit, command):
    outcome = edgevit("devices", *([command] if command else []), "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_listing_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; sys.argv = ['edgevit', 'devices']\n"
        "from edgevit.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'pandas', 'onnx', 'numpy', 'asyncssh', 'tomlkit'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy: []"), done.stdout[-200:]


def test_errors_are_json_if_asked_for(edgevit):
    outcome = edgevit("devices", "remove", "pi", "--json")
    assert json.loads(outcome.out)["error"] == "UnknownNameError"
    assert outcome.code == 2
