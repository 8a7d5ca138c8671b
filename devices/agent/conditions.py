"""What bends a measurement: governor, clock, heat, load, power supply. One probe a class.

A probe says whether this machine has it, and what it shows; one that is absent is left out.
"""

import os
import re
import time
from typing import Any, Dict, List, Optional

from . import jetson, system

CPU = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/"
ZONE = "/sys/class/thermal/thermal_zone[0-9]*/type"

#: Jetson's power chip shows a constant 100 degrees.
IGNORED_ZONES = ("PMIC-Die",)

#: Bits of ``vcgencmd get_throttled``; the same 16 places higher since boot.
THROTTLE_BITS = ("under-voltage", "frequency-capped", "throttled", "soft-temperature-limit")


class Probe:
    """One thing that a machine may tell about its state."""

    name = ""

    def available(self) -> bool:
        """Whether this machine tells it."""
        raise NotImplementedError

    def show(self) -> Any:
        """What it tells now, as JSON; None if it does not after all."""
        raise NotImplementedError


def _per_cpu(file: str) -> Dict[str, str]:
    found = {path.split("/")[5][3:]: system.read(path) for path in system.find(CPU + file)}
    return {cpu: value for cpu, value in found.items() if value}


class Governor(Probe):
    """The frequency governor of each CPU."""

    name = "governor"

    def available(self) -> bool:
        return bool(system.find(CPU + "scaling_governor"))

    def show(self) -> Any:
        return _per_cpu("scaling_governor") or None


class Frequency(Probe):
    """The clock of each CPU, now and at most, in kHz."""

    name = "frequency_khz"

    def available(self) -> bool:
        return bool(system.find(CPU + "scaling_cur_freq"))

    def show(self) -> Any:
        now, most = _per_cpu("scaling_cur_freq"), _per_cpu("scaling_max_freq")
        shown = {cpu: {"current": _whole(now[cpu]), "max": _whole(most.get(cpu))} for cpu in now}
        return shown or None


class Temperature(Probe):
    """Thermal zones by their type, in degrees Celsius."""

    name = "temperature_c"

    def available(self) -> bool:
        return bool(self._zones())

    def show(self) -> Any:
        shown: Dict[str, float] = {}
        for path in self._zones():
            kind = system.read(path) or "zone"
            value = system.read_int(path[: -len("type")] + "temp")
            if value is not None:
                shown[_unused(kind, shown)] = value / 1000.0
        return shown or None

    @staticmethod
    def _zones() -> List[str]:
        return [path for path in system.find(ZONE) if system.read(path) not in IGNORED_ZONES]


class LoadAverage(Probe):
    """Processes that want to run, averaged over 1, 5 and 15 minutes."""

    name = "load_average"

    def available(self) -> bool:
        return self.show() is not None

    def show(self) -> Any:
        text = system.read("/proc/loadavg")
        if text is None:
            text = (system.run(["sysctl", "-n", "vm.loadavg"]) or "").strip("{} ")
        fields = text.replace(",", ".").split()[:3]
        return [float(field) for field in fields] if len(fields) == 3 else None


class CpuTime(Probe):
    """Seconds that all CPUs together were busy, and those of this process and its own, at a time.

    Two of them tell how much else ran in between. Time that a host took from a virtual machine
    (steal) counts as busy: it is somebody else's, too.
    """

    name = "cpu_seconds"

    #: Columns of ``/proc/stat`` that are work: user, nice, system, irq, softirq, steal.
    BUSY = (0, 1, 2, 5, 6, 7)

    def available(self) -> bool:
        return self.show() is not None

    def show(self) -> Any:
        fields = (system.read("/proc/stat") or "").split("\n")[0].split()[1:]
        if len(fields) < 8 or not all(field.isdigit() for field in fields):
            return None
        busy = sum(int(fields[i]) for i in self.BUSY) / float(os.sysconf("SC_CLK_TCK"))
        times = os.times()
        own = time.process_time() + times.children_user + times.children_system
        return {"busy": busy, "own": own, "at": time.monotonic()}


class Memory(Probe):
    """Memory of the machine, all and available, in bytes."""

    name = "memory_bytes"

    def available(self) -> bool:
        return system.read("/proc/meminfo") is not None

    def show(self) -> Any:
        fields = system.key_values(system.read("/proc/meminfo"), ":")
        sizes = {"total": "MemTotal", "available": "MemAvailable"}
        return {key: _kilobytes(fields.get(field)) for key, field in sizes.items()}


class Throttled(Probe):
    """What a Raspberry Pi says of its power supply and heat, now and since it booted."""

    name = "throttled"

    def available(self) -> bool:
        return system.which("vcgencmd") is not None

    def show(self) -> Any:
        found = re.search(r"0x[0-9a-fA-F]+", system.run(["vcgencmd", "get_throttled"]) or "")
        if found is None:
            return None
        bits = int(found.group(), 16)
        return {"raw": hex(bits), "now": _bits(bits), "since_boot": _bits(bits >> 16)}


class PowerMode(Probe):
    """The power model that a Jetson is set to (``nvpmodel -q``)."""

    name = "power_mode"

    def available(self) -> bool:
        return system.which("nvpmodel") is not None

    def show(self) -> Any:
        return system.key_values(system.run(["nvpmodel", "-q"]), ":").get("NV Power Mode")


class SpeedLimit(Probe):
    """The share of its full speed that a hot Mac allows itself, in percent (``pmset -g therm``)."""

    name = "cpu_speed_limit_percent"

    def available(self) -> bool:
        return system.which("pmset") is not None

    def show(self) -> Any:
        text = system.run(["pmset", "-g", "therm"])
        return _whole(system.key_values(text, "=").get("CPU_Speed_Limit"))


class PowerSource(Probe):
    """Whether a Mac runs on mains or battery (``pmset -g batt``)."""

    name = "power_source"

    def available(self) -> bool:
        return system.which("pmset") is not None

    def show(self) -> Any:
        found = re.search(r"'([^']+)'", system.run(["pmset", "-g", "batt"]) or "")
        return found.group(1) if found else None


class GpuFrequency(Probe):
    """The clock of a Jetson's GPU, now and at most, in kHz."""

    name = "gpu_frequency_khz"

    def available(self) -> bool:
        return self.show() is not None

    def show(self) -> Any:
        return jetson.gpu_frequency()


class JetsonClocks(Probe):
    """What a Jetson's clocks may be and are, in kHz (``jetson_clocks --show``, often as root)."""

    name = "jetson_clocks_khz"

    def available(self) -> bool:
        return system.which("jetson_clocks") is not None

    def show(self) -> Any:
        return jetson.jetson_clocks()


class Tegrastats(Probe):
    """Use and clock of a Jetson's GPU and memory, and its power (``tegrastats``)."""

    name = "tegrastats"

    def available(self) -> bool:
        return system.which("tegrastats") is not None

    def show(self) -> Any:
        return jetson.tegrastats()


PROBES = (
    Governor(), Frequency(), Temperature(), LoadAverage(), CpuTime(), Memory(), Throttled(),
    PowerMode(), SpeedLimit(), PowerSource(), GpuFrequency(), JetsonClocks(), Tegrastats(),
)  # fmt: skip


def conditions() -> Dict[str, Any]:
    """What every probe that this machine has shows now."""
    shown = {probe.name: probe.show() for probe in PROBES if probe.available()}
    return {name: value for name, value in shown.items() if value is not None}


def _bits(word: int) -> List[str]:
    return [name for place, name in enumerate(THROTTLE_BITS) if word >> place & 1]


def _whole(text: Optional[str]) -> Optional[int]:
    return int(text) if text and text.isdigit() else None


def _kilobytes(text: Optional[str]) -> Optional[int]:
    return int(text.split()[0]) * 1024 if text else None


def _unused(name: str, taken: Dict[str, float]) -> str:
    """The name itself, or with a number if another zone has it already."""
    count, unique = 1, name
    while unique in taken:
        count += 1
        unique = "{}#{}".format(name, count)
    return unique
