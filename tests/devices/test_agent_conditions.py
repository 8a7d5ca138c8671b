"""What boards tell about themselves, from files and commands made up as they make them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.agent.conditions import conditions
from devices.agent.facts import cpu, facts, machine
from devices.local import LocalSession

OpenSession = Callable[..., LocalSession]


class Board:
    """A folder that stands in for the root of a board."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, path: str, text: str) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def cpu(self, number: int, governor: str, now: str, most: str) -> None:
        folder = f"/sys/devices/system/cpu/cpu{number}/cpufreq"
        self.file(f"{folder}/scaling_governor", governor + "\n")
        self.file(f"{folder}/scaling_cur_freq", now + "\n")
        self.file(f"{folder}/scaling_max_freq", most + "\n")

    def zone(self, number: int, kind: str, millidegrees: str) -> None:
        folder = f"/sys/class/thermal/thermal_zone{number}"
        self.file(f"{folder}/type", kind + "\n")
        self.file(f"{folder}/temp", millidegrees + "\n")

    def command(self, name: str, script: str) -> None:
        self.file(f"/usr/bin/{name}", f"#!/bin/sh\n{script}\n")
        (self.root / "usr/bin" / name).chmod(0o755)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setenv("EDGEVIT_SYSROOT", str(tmp_path / "root"))
    return Board(tmp_path / "root")


def test_a_machine_that_tells_nothing(board: Board) -> None:
    assert conditions() == {}


def test_governor_and_clock_of_each_cpu(board: Board) -> None:
    for number in range(12):
        board.cpu(number, "ondemand" if number else "performance", "600000", "1500000")
    shown = conditions()
    assert list(shown["governor"]) == [str(number) for number in range(12)]
    assert shown["governor"]["0"] == "performance"
    assert shown["governor"]["11"] == "ondemand"
    assert shown["frequency_khz"]["3"] == {"current": 600000, "max": 1500000}


def test_a_clock_that_is_unknown(board: Board) -> None:
    board.cpu(0, "performance", "<unknown>", "1500000")
    assert conditions()["frequency_khz"]["0"] == {"current": None, "max": 1500000}


def test_temperatures_without_the_constant_one(board: Board) -> None:
    board.zone(0, "CPU-therm", "45500")
    board.zone(1, "PMIC-Die", "100000")
    board.zone(2, "GPU-therm", "44000")
    board.zone(10, "CPU-therm", "46000")
    assert conditions()["temperature_c"] == {
        "CPU-therm": 45.5,
        "GPU-therm": 44.0,
        "CPU-therm#2": 46.0,
    }


def test_a_zone_without_a_temperature_is_left_out(board: Board) -> None:
    board.file("/sys/class/thermal/thermal_zone0/type", "modem\n")
    assert "temperature_c" not in conditions()


def test_load_and_memory(board: Board) -> None:
    board.file("/proc/loadavg", "0.52 0.41 0.30 1/123 4567\n")
    board.file("/proc/meminfo", "MemTotal:  3884096 kB\nMemFree: 1 kB\nMemAvailable: 2000000 kB\n")
    assert conditions() == {
        "load_average": [0.52, 0.41, 0.30],
        "memory_bytes": {"total": 3884096 * 1024, "available": 2000000 * 1024},
    }


def test_cpu_time_counts_work_and_what_the_host_took(board: Board) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    columns = [10, 2, 3, 1000, 500, 4, 5, 6, 7, 8]
    line = " ".join(str(n * ticks) for n in columns)
    board.file("/proc/stat", f"cpu  {line}\ncpu0 {line}\nintr 1\n")
    shown = conditions()["cpu_seconds"]
    assert shown["busy"] == 10 + 2 + 3 + 4 + 5 + 6
    assert shown["own"] > 0
    assert conditions()["cpu_seconds"]["at"] > shown["at"]


@pytest.mark.parametrize("content", ["", "cpu 1 2\n", "garbage in here and there and so on x\n"])
def test_cpu_time_that_cannot_be_read(board: Board, content: str) -> None:
    board.file("/proc/stat", content)
    assert "cpu_seconds" not in conditions()


@pytest.mark.parametrize(
    ("raw", "now", "since_boot"),
    [
        ("0x0", [], []),
        ("0x50005", ["under-voltage", "throttled"], ["under-voltage", "throttled"]),
        ("0xe0008", ["soft-temperature-limit"],
         ["frequency-capped", "throttled", "soft-temperature-limit"]),
        ("0x20002", ["frequency-capped"], ["frequency-capped"]),
    ],
)  # fmt: skip
def test_throttle_bits(board: Board, raw: str, now: list[str], since_boot: list[str]) -> None:
    board.command("vcgencmd", f'[ "$1" = get_throttled ] && echo throttled={raw}')
    assert conditions()["throttled"] == {"raw": raw, "now": now, "since_boot": since_boot}


@pytest.mark.parametrize("script", ["exit 1", "echo VCHI initialization failed", "sleep 60"])
def test_a_command_that_does_not_work(
    board: Board, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devices.agent.system.COMMAND_SECONDS", 0.5)
    board.command("vcgencmd", script)
    assert "throttled" not in conditions()


def test_the_power_mode_of_a_jetson(board: Board) -> None:
    board.command("nvpmodel", 'echo "NV Fan Mode:quiet"; echo "NV Power Mode: MAXN"; echo 0')
    assert conditions()["power_mode"] == "MAXN"


def test_heat_and_power_of_a_mac(board: Board) -> None:
    board.command(
        "pmset",
        """case "$2" in
        therm) echo "Note: No thermal warning level"; echo "CPU_Speed_Limit = 72";;
        batt) echo "Now drawing from 'Battery Power'";;
        esac""",
    )
    board.command("sysctl", 'case "$2" in vm.loadavg) echo "{ 1.50 1.25 1.00 }";; esac')
    assert conditions() == {
        "cpu_speed_limit_percent": 72,
        "power_source": "Battery Power",
        "load_average": [1.5, 1.25, 1.0],
    }


def test_a_mac_that_writes_commas(board: Board) -> None:
    board.command("sysctl", 'echo "{ 1,50 1,25 1,00 }"')
    assert conditions()["load_average"] == [1.5, 1.25, 1.0]


def test_a_mac_that_has_not_been_hot(board: Board) -> None:
    board.command("pmset", 'echo "Note: No thermal warning level has been recorded"')
    assert "cpu_speed_limit_percent" not in conditions()


def test_the_board_says_its_name(board: Board) -> None:
    board.file("/proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    assert machine()["model"] == "Raspberry Pi 4 Model B Rev 1.4"


def test_a_mac_says_its_name(board: Board) -> None:
    board.command("sysctl", 'case "$2" in hw.model) echo "MacBookAir10,1";; '
                  'machdep.cpu.brand_string) echo "Apple M1";; esac')  # fmt: skip
    assert machine()["model"] == "MacBookAir10,1"
    assert cpu()["model"] == "Apple M1"


def test_arm_cores_are_told_by_their_parts(board: Board) -> None:
    big = "CPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n"
    little = "CPU implementer\t: 0x41\nCPU part\t: 0xd05\n\n"
    board.file("/proc/cpuinfo", "processor\t: 0\n" + little + little + big)
    assert cpu()["parts"] == ["0x41/0xd05", "0x41/0xd0b"]
    assert cpu()["model"] is None


def test_facts_of_this_machine() -> None:
    told = facts()
    assert told["runtimes"]["numpy"]
    assert told["runtimes"]["onnxruntime"]
    assert told["cpu"]["count"] >= 1
    assert 0 < told["clock"]["overhead_ns"] < 1e6
    assert told["clock"]["resolution_ns"] > 0


def test_the_agent_reads_the_same_board(open_session: OpenSession, board: Board) -> None:
    board.cpu(0, "powersave", "600000", "1500000")
    board.file("/proc/device-tree/model", "NVIDIA Jetson Nano Developer Kit\0")
    told = open_session({"EDGEVIT_SYSROOT": str(board.root)}).facts()
    assert told["machine"]["model"] == "NVIDIA Jetson Nano Developer Kit"
    assert told["conditions"]["governor"] == {"0": "powersave"}
