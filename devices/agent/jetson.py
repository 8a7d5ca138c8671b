"""What a Jetson tells besides: clocks of its GPU and memory, and its software's version."""

import re
import select
import subprocess
from typing import Any, Dict, List, Optional, Tuple

from . import system

#: The GPU's clock under the names of its generations: Nano and Orin, TX2, Xavier, Orin.
GPUS = ("*gpu*", "*gp10b*", "*gv11b*", "*ga10b*")
TEGRASTATS_SECONDS = 3.0


def gpu_frequency() -> Optional[Dict[str, Dict[str, Optional[int]]]]:
    """The GPU's clock now and at most, in kHz, by its name; None without such a GPU."""
    folders = sorted({f for p in GPUS for f in system.find("/sys/class/devfreq/{}".format(p))})
    shown = {
        folder.rsplit("/", 1)[1]: {
            "current": _kilohertz(system.read_int(folder + "/cur_freq")),
            "max": _kilohertz(system.read_int(folder + "/max_freq")),
        }
        for folder in folders
    }
    return {name: clock for name, clock in shown.items() if clock["current"] is not None} or None


def jetson_clocks() -> Optional[Dict[str, Dict[str, int]]]:
    """What ``jetson_clocks --show`` says of CPUs, GPU and memory, in kHz.

    It may need root; None then. ``min`` equal to ``max`` means that the clock is fixed.
    """
    clocks: Dict[str, Dict[str, int]] = {}
    for line in (system.run(["jetson_clocks", "--show"]) or "").splitlines():
        name, values = line.strip().partition(" ")[0].rstrip(":"), _frequencies(line)
        if values:
            # CPUs are in kHz, GPU and EMC (memory) in Hz.
            unit = 1 if name.startswith("cpu") else 1000
            clocks[name] = {key: value // unit for key, value in values.items()}
    return clocks or None


def tegrastats() -> Optional[Dict[str, Any]]:
    """One line of ``tegrastats``: use and clock of GPU and memory, and power by rail in mW."""
    line = _first_line(["tegrastats", "--interval", "200"]) or ""
    shown: Dict[str, Any] = {}
    for field, name in (("GR3D_FREQ", "gpu"), ("EMC_FREQ", "memory")):
        found = re.search(field + r" (\d+)%(?:@\[?(\d+))?", line)
        if found:
            clock = found.group(2)
            shown[name] = {
                "percent": int(found.group(1)),
                "khz": int(clock) * 1000 if clock else None,
            }
    rails = re.findall(r"\b((?:POM|VDD|VIN)_\w+) (\d+)(?:mW)?/(\d+)", line)
    if rails:
        shown["power_mw"] = {rail: int(now) for rail, now, _ in rails}
    return shown or None


def accelerators() -> Dict[str, str]:
    """Versions of what NVIDIA's boards bring; empty elsewhere."""
    found = {
        "l4t": _l4t(system.read("/etc/nv_tegra_release")),
        "cuda": _cuda(),
        "tensorrt": library_version("libnvinfer"),
        "cudnn": library_version("libcudnn"),
    }
    return {name: version for name, version in found.items() if version}


def library_version(name: str) -> Optional[str]:
    """The version that the file name of an installed library ends in."""
    paths = system.find("/usr/lib/*/{}.so.*.*.*".format(name))
    return paths[-1].split(".so.")[1] if paths else None


def _l4t(release: Optional[str]) -> Optional[str]:
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    return "{}.{}".format(*found.groups()) if found else None


def _cuda() -> Optional[str]:
    # /usr/local/cuda-10.2; on some boards also a link named cuda-10.
    names = [path.rsplit("cuda-", 1)[1] for path in system.find("/usr/local/cuda-*.*")]
    return names[-1] if names else None


def _frequencies(line: str) -> Dict[str, int]:
    pairs: List[Tuple[str, str]] = re.findall(r"(Min|Max|Current)Freq=(\d+)", line)
    return {key.lower(): int(value) for key, value in pairs}


def _kilohertz(hertz: Optional[int]) -> Optional[int]:
    return None if hertz is None else hertz // 1000


def _first_line(command: List[str]) -> Optional[str]:
    """The first line of a program that would go on for ever."""
    program = system.which(command[0])
    if program is None:
        return None
    try:
        child = subprocess.Popen(
            [program] + command[1:],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None
    try:
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], TEGRASTATS_SECONDS)
        return child.stdout.readline().decode("utf-8", "replace") if ready else None
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
