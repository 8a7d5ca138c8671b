"""What a Jetson tells, from files and commands made up as its own print them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_agent_conditions import Board

from devices.agent.conditions import conditions
from devices.agent.facts import facts

NANO = (
    "RAM 1903/3964MB (lfb 200x4MB) SWAP 0/1982MB (cached 0MB) CPU [2%@1479,off,off,2%@1479] "
    "EMC_FREQ 4%@1600 GR3D_FREQ 31%@921 PLL@39C CPU@41.5C PMIC@100C GPU@39.5C AO@47.5C "
    "thermal@40.25C POM_5V_IN 2532/2100 POM_5V_GPU 82/40 POM_5V_CPU 411/390"
)
ORIN = (
    "11-21-2026 05:06:08 RAM 2619/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [1%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] "
    "CV0@-256C CPU@46.6C tj@47.1C SOC0@45.5C VDD_IN 4430mW/4430mW VDD_CPU_GPU_CV 480mW/480mW"
)
CLOCKS = """SOC family:tegra210  Machine:NVIDIA Jetson Nano Developer Kit
Online CPUs: 0-3
cpu0: Online=1 Governor=schedutil MinFreq=1479000 MaxFreq=1479000 CurrentFreq=1479000 IdleStates=
GPU MinFreq=921600000 MaxFreq=921600000 CurrentFreq=921600000
EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=1
Fan: PWM=255
NV Power Mode: MAXN"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setenv("EDGEVIT_SYSROOT", str(tmp_path / "root"))
    return Board(tmp_path / "root")


def test_the_gpus_clock(board: Board) -> None:
    board.file("/sys/class/devfreq/57000000.gpu/cur_freq", "76800000\n")
    board.file("/sys/class/devfreq/57000000.gpu/max_freq", "921600000\n")
    board.file("/sys/class/devfreq/17000000.gv11b/cur_freq", "114750000\n")
    board.file("/sys/class/devfreq/nvdec/cur_freq", "1\n")
    assert conditions() == {
        "gpu_frequency_khz": {
            "17000000.gv11b": {"current": 114750, "max": None},
            "57000000.gpu": {"current": 76800, "max": 921600},
        }
    }


def test_a_gpu_that_does_not_tell_its_clock(board: Board) -> None:
    board.file("/sys/class/devfreq/57000000.gpu/max_freq", "921600000\n")
    assert conditions() == {}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            NANO,
            {
                "gpu": {"percent": 31, "khz": 921000},
                "memory": {"percent": 4, "khz": 1600000},
                "power_mw": {"POM_5V_IN": 2532, "POM_5V_GPU": 82, "POM_5V_CPU": 411},
            },
        ),
        (
            ORIN,
            {
                "gpu": {"percent": 0, "khz": 305000},
                "memory": {"percent": 0, "khz": 2133000},
                "power_mw": {"VDD_IN": 4430, "VDD_CPU_GPU_CV": 480},
            },
        ),
        ("GR3D_FREQ 0%", {"gpu": {"percent": 0, "khz": None}}),
    ],
)
def test_tegrastats_is_read_once_and_ended(
    board: Board, line: str, shown: dict[str, object]
) -> None:
    board.command("tegrastats", f"while true; do echo '{line}'; sleep 0.2; done")
    start = time.monotonic()
    assert conditions() == {"tegrastats": shown}
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("script", ["exit 1", "echo nothing", "exec sleep 60"])
def test_tegrastats_that_says_nothing(board: Board, script: str) -> None:
    board.command("tegrastats", script)
    assert conditions() == {}


def test_jetson_clocks_in_one_unit(board: Board) -> None:
    board.command("jetson_clocks", f"cat <<'END'\n{CLOCKS}\nEND")
    clocks = conditions()["jetson_clocks_khz"]
    assert clocks["cpu0"] == {"min": 1479000, "max": 1479000, "current": 1479000}
    assert clocks["GPU"] == {"min": 921600, "max": 921600, "current": 921600}
    assert clocks["EMC"]["current"] == 1600000
    assert set(clocks) == {"cpu0", "GPU", "EMC"}


def test_jetson_clocks_without_root(board: Board) -> None:
    board.command("jetson_clocks", "echo 'Error: not run as root' >&2; exit 1")
    assert conditions() == {}


def test_versions_of_the_boards_software(board: Board) -> None:
    board.file(
        "/etc/nv_tegra_release",
        "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64\n",
    )
    board.file("/usr/lib/aarch64-linux-gnu/libnvinfer.so.8.2.1", "")
    board.file("/usr/lib/aarch64-linux-gnu/libcudnn.so.8.2.1", "")
    board.file("/usr/local/cuda-10.2/version.txt", "")
    told = facts()
    assert told["accelerators"] == {
        "l4t": "32.7.1",
        "cuda": "10.2",
        "tensorrt": "8.2.1",
        "cudnn": "8.2.1",
    }
    assert "tensorrt" not in told["runtimes"], "its program is not installed"
    board.command("trtexec", "exit 0")
    assert facts()["runtimes"]["tensorrt"] == "8.2.1"


def test_another_machine_has_none_of_it(board: Board) -> None:
    assert facts()["accelerators"] == {}


def test_the_cpu_time_of_what_the_agent_ran_is_its_own(board: Board) -> None:
    board.file("/proc/stat", "cpu 1 2 3 4 5 6 7 8 9 10\n")
    before = conditions()["cpu_seconds"]["own"]
    spin = "import time; e = time.process_time() + 0.3\nwhile time.process_time() < e: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert conditions()["cpu_seconds"]["own"] - before > 0.25
