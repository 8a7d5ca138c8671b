"""Configured hosts: what is kept, how it is read back, and what is said of a wrong file."""

import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from devices.base import devices
from devices.hosts import Host, hosts_path, load_hosts, parse_target, remove_host, save_host
from devices.local import LocalDevice
from devices.resolve import find_device, find_profile
from edgevit.errors import OptionError, OutputError, UnknownNameError, UsageError

PI = Host("pi", "generic-arm64", "raspberrypi.local", user="pi")
FULL = Host(
    name="full",
    profile="generic-arm64",
    address="10.0.0.7",
    user="me",
    port=2222,
    identity="~/.ssh/my key",
    python="/opt/my python/bin/python3",
    emulated=True,
    environment={"QEMU_CPU": "cortex-a72", "ODD": 'a"b\\c\n'},
)


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write(text: str) -> None:
    hosts_path().parent.mkdir(parents=True, exist_ok=True)
    hosts_path().write_text(text)


def test_what_is_kept_is_read_back() -> None:
    assert load_hosts() == {}
    save_host(PI)
    save_host(FULL)
    assert load_hosts() == {"pi": PI, "full": FULL}
    remove_host("pi")
    assert load_hosts() == {"full": FULL}


def test_the_file_is_the_users_alone_and_written_whole() -> None:
    old = os.umask(0)
    try:
        save_host(PI)
    finally:
        os.umask(old)
    assert stat.S_IMODE(hosts_path().stat().st_mode) == 0o600
    assert sorted(p.name for p in hosts_path().parent.iterdir()) in (
        ["hosts.toml"],
        [".hosts.lock", "hosts.toml"],
    )


def test_comments_and_other_entries_stay() -> None:
    write('# in the cellar\n[old]  # slow\nprofile = "generic-arm64"\naddress = "old"\n')
    save_host(PI)
    remove_host("pi")
    assert hosts_path().read_text().startswith("# in the cellar\n[old]  # slow\n")
    assert list(load_hosts()) == ["old"]


def test_a_name_is_taken_once() -> None:
    save_host(PI)
    with pytest.raises(UsageError, match="a host 'pi' already") as caught:
        save_host(replace(PI, address="other"))
    assert "--force" in (caught.value.hint or "")
    assert load_hosts()["pi"].address == "raspberrypi.local"
    save_host(replace(PI, address="other"), replace=True)
    assert load_hosts()["pi"].address == "other"


def test_many_writers_lose_nothing() -> None:
    hosts = [replace(PI, name=f"pi{i}") for i in range(8)]
    threads = [threading.Thread(target=save_host, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_hosts() == {host.name: host for host in hosts}


@pytest.mark.parametrize("name", ["local", "generic-x86-64"])
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="of its own"):
        save_host(replace(PI, name=name))
    save_host(replace(PI, name="generic-arm64"))  # a board may be called what it is
    assert find_profile("generic-arm64").name == "generic-arm64"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "-p"),
        ("name", "my pi"),
        ("name", "../pi"),
        ("profile", ""),
        ("address", ""),
        ("address", "-oProxyCommand=reboot"),
        ("address", "a b"),
        ("user", "-l"),
        ("user", ""),
        ("port", 0),
        ("port", 65536),
        ("port", "22"),
        ("port", True),
        ("identity", ""),
        ("identity", "a\nb"),
        ("python", "-c"),
        ("attached", "-x"),
        ("emulated", "yes"),
        ("environment", {"A B": "c"}),
        ("environment", {"A": 1}),
        ("environment", ["A=1"]),
    ],
)
def test_a_field_that_cannot_be(field: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        Host(**{**PI.to_json(), field: value})
    assert caught.value.option == field


@pytest.mark.parametrize(
    ("text", "user", "address", "port"),
    [
        ("raspberrypi.local", None, "raspberrypi.local", None),
        ("pi@raspberrypi.local", "pi", "raspberrypi.local", None),
        ("pi@192.168.0.7:2222", "pi", "192.168.0.7", 2222),
        ("ssh://pi@board:22", "pi", "board", 22),
        ("::1", None, "::1", None),
        ("pi@fe80::1%eth0", "pi", "fe80::1%eth0", None),
        ("pi@[fe80::1%eth0]:2222", "pi", "fe80::1%eth0", 2222),
        ("[2001:db8::7]", None, "2001:db8::7", None),
    ],
)
def test_targets(text: str, user: str | None, address: str, port: int | None) -> None:
    assert parse_target(text) == (user, address, port)
    host = replace(PI, user=user, address=address, port=port)
    assert parse_target(host.target) == (user, address, port)


@pytest.mark.parametrize(
    "text",
    ["", "@", "pi@", "@board", "pi@a b", "a@b@c", "board:", "board:0", "board:99999", "board:ssh",
     "-oProxyCommand=x", "pi@-x", "1:2:3", "[::1", "[board]:22", "ssh://", "pi@[]:22", "a/b:c:d"],
)  # fmt: skip
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_target(text)
    assert caught.value.option == "--host"
    assert "pi@raspberrypi.local" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[pi\n", "hosts.toml: ", "TOML"),
        ('pi = "board"', "hosts.toml: pi: expected a table", None),
        ('[pi]\nprofile = "generic-arm64"', "pi: expected a field 'address'", None),
        ('[pi]\naddress = "a"', "pi: expected a field 'profile'", None),
        ('[pi]\nprofile = "generic-arm64"\naddress = "a"\npassword = "x"', "got 'password'",
         "keys and passwords stay out"),
        ('[pi]\nprofile = "generic-arm64"\naddress = "a"\nprot = 2', "got 'prot'", "port"),
        ('[pi]\nprofile = "generic-arm64"\naddress = "a"\nport = "2"', "pi.port: expected 1", None),
        ('["my pi"]\nprofile = "generic-arm64"\naddress = "a"', "my pi.name: expected", None),
        ('[pi]\nprofile = "generic-arm"\naddress = "a"', "pi.profile: unknown device profile",
         "generic-arm64"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_with_its_place(text: str, said: str, hint: str | None) -> None:
    write(text)
    with pytest.raises(UsageError) as caught:
        load_hosts()
    assert str(hosts_path()) in caught.value.message
    assert said in caught.value.message
    assert (hint or "") in (caught.value.hint or "")


def test_a_file_that_is_no_text() -> None:
    hosts_path().parent.mkdir(parents=True)
    hosts_path().write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"hosts\.toml"):
        load_hosts()


def test_a_wrong_entry_can_be_removed() -> None:
    write('[bad]\nprofile = "gone"\naddress = "a"\n')
    remove_host("bad")
    assert load_hosts() == {}
    with pytest.raises(UnknownNameError):
        remove_host("bad")


def test_nothing_is_written_to_a_broken_file() -> None:
    write("[pi\n")
    with pytest.raises(UsageError, match=r"hosts\.toml"):
        save_host(PI)
    assert hosts_path().read_text() == "[pi\n"


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot write"):
        save_host(PI)


def test_only_profiles_that_exist() -> None:
    with pytest.raises(UnknownNameError) as caught:
        save_host(replace(PI, profile="generic-arm46"))
    assert "generic-arm64" in (caught.value.hint or "")
    assert not hosts_path().exists()


def test_a_registered_device_is_found_first() -> None:
    device = find_device("local")
    assert isinstance(device, LocalDevice)
    assert device is devices.get("local")
    assert find_profile("local") == device.profile


def test_a_profile_that_nobody_has_says_how_to_add_one() -> None:
    with pytest.raises(UsageError, match="no generic-arm64 is configured") as caught:
        find_device("generic-arm64")
    assert "edgevit devices add NAME --profile generic-arm64 --host" in (caught.value.hint or "")
    assert find_profile("generic-arm64").name == "generic-arm64"


def test_a_profile_that_two_have_names_them() -> None:
    save_host(PI)
    save_host(replace(PI, name="pi2"))
    with pytest.raises(UsageError, match="several hosts are a generic-arm64: pi, pi2"):
        find_device("generic-arm64")
    assert find_profile("pi2").name == "generic-arm64"


def test_unknown_names_answer_with_hosts_profiles_and_devices() -> None:
    save_host(replace(PI, name="workbench"))
    for wrong, near in (("workbnech", "workbench"), ("lokal", "local"), ("generic-arm", "arm64")):
        with pytest.raises(UnknownNameError) as caught:
            find_device(wrong)
        assert near in (caught.value.hint or "")
    with pytest.raises(UnknownNameError):
        find_profile("workbnech")
