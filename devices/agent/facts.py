"""What does not change during a job: the machine, its Python, its runtimes, its clock."""

import glob
import importlib.util
import itertools
import os
import platform
import re
import sys
import time
from typing import Any, Dict, List, Optional, Sequence

from . import AGENT_VERSION, PROTOCOL, jetson, system
from .clock import clock_ns

#: Importable module to the distributions that may have brought it.
RUNTIMES = {
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-silicon"),
    "ai_edge_litert": ("ai-edge-litert",),
    "tflite_runtime": ("tflite-runtime",),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "torch": ("torch",),
    "coremltools": ("coremltools",),
}

#: TensorRT's own program, which is a runtime too.
TRTEXEC = ("trtexec", "/usr/src/tensorrt/bin/trtexec")

#: Where a board's name stands; the first is a link to the second, where it is kept up.
DEVICE_TREES = ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model")

#: Programs that run those of another processor, as their file names begin.
EMULATORS = ("qemu-", "box64", "box86", "FEXInterpreter")

#: Fields of /proc/cpuinfo that only one family of processors has.
CPUINFO_FIELDS = {"vendor_id": "x86", "CPU implementer": "Arm"}


def facts() -> Dict[str, Any]:
    """The facts event's fields; imports no runtime."""
    return {
        "agent": {"version": AGENT_VERSION, "protocol": PROTOCOL},
        "pid": os.getpid(),
        "machine": machine(),
        "emulated": emulation(),
        "os": operating_system(),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "runtimes": runtimes(),
        "accelerators": jetson.accelerators(),
        "cpu": cpu(),
        "clock": clock(),
    }


def machine() -> Dict[str, Any]:
    """What kind of machine it is: the board's own name where it has one."""
    names = (system.read(path) for path in DEVICE_TREES)
    model = next(filter(None, names), None) or system.run(["sysctl", "-n", "hw.model"])
    return {"arch": platform.machine(), "hostname": platform.node(), "model": model}


def emulation() -> Optional[str]:
    """Why this is no real machine of its kind, so that no time taken here is one of it; else None.

    An emulator of a whole machine need not be seen from inside; whoever sets one up has to say so.
    """
    # Emulators show a process what it expects under /proc/self, and forget its threads.
    maps = system.read("/proc/thread-self/maps") or ""
    paths = [system.link("/proc/thread-self/exe") or ""] + maps.splitlines()
    for program in (path.split("/")[-1].replace(" (deleted)", "") for path in paths):
        if program.startswith(EMULATORS):
            return "this process runs in {}".format(program)
    claimed, kind = _family(platform.machine()), _cpuinfo_family(system.read("/proc/cpuinfo") or "")
    if claimed and kind and claimed != kind:
        return "it calls itself {}, its CPU is {}".format(platform.machine(), kind)
    model = system.key_values(system.read("/proc/cpuinfo"), ":").get("model name", "")
    if "QEMU TCG" in model:
        return "its CPU is {}".format(model)
    if system.run(["sysctl", "-n", "sysctl.proc_translated"]) == "1":
        return "Rosetta translates this process"
    return None


def operating_system() -> Dict[str, Any]:
    """System, kernel, distribution and C library."""
    pretty = system.key_values(system.read("/etc/os-release"), "=").get("PRETTY_NAME", "")
    return {
        "system": platform.system(),
        "release": platform.release(),
        "name": pretty.strip('"') or platform.mac_ver()[0] or None,
        "libc": " ".join(platform.libc_ver()).strip() or None,
    }


def cpu() -> Dict[str, Any]:
    """Model, parts, count and the CPUs that this process may use."""
    info = system.read("/proc/cpuinfo")
    brand = system.key_values(info, ":").get("model name")
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "model": brand or system.run(["sysctl", "-n", "machdep.cpu.brand_string"]),
        "parts": _parts(info or ""),
        "count": os.cpu_count(),
        "affinity": sorted(affinity(0)) if affinity else None,
    }


def clock() -> Dict[str, Any]:
    """The clock's smallest step and what reading it twice costs, both measured, in ns."""
    readings = [clock_ns() for _ in range(2000)]
    steps = sorted(readings[i + 1] - readings[i] for i in range(len(readings) - 1))
    moved = [step for step in steps if step > 0]
    return {
        "name": time.get_clock_info("perf_counter").implementation,
        "resolution_ns": moved[0] if moved else None,
        "overhead_ns": steps[len(steps) // 2],
    }


def runtimes() -> Dict[str, Optional[str]]:
    """Versions of the runtimes that are installed; None for a version that is not to be found."""
    found = {
        module: _version(distributions)
        for module, distributions in sorted(RUNTIMES.items())
        if importlib.util.find_spec(module) is not None
    }
    if any(system.which(name) for name in TRTEXEC):
        found["tensorrt"] = jetson.library_version("libnvinfer")
    return found


def _version(distributions: Sequence[str]) -> Optional[str]:
    """Read from the metadata's file names: importlib.metadata came with Python 3.8."""
    for distribution in distributions:
        name = distribution.replace("-", "_")
        for place, ending in itertools.product(sys.path, (".dist-info", ".egg-info")):
            for entry in glob.glob(os.path.join(glob.escape(place or "."), name + "-*" + ending)):
                return os.path.basename(entry)[len(name) + 1 : -len(ending)].split("-")[0]
    return None


def _family(arch: str) -> Optional[str]:
    """The family of processors that a system's word for its own belongs to."""
    if re.match(r"(x86|amd64$|i[3-6]86$)", arch, re.IGNORECASE):
        return "x86"
    return "Arm" if re.match(r"(arm|aarch64)", arch, re.IGNORECASE) else None


def _cpuinfo_family(cpuinfo: str) -> Optional[str]:
    fields = system.key_values(cpuinfo, ":")
    return next((kind for field, kind in CPUINFO_FIELDS.items() if field in fields), None)


def _parts(cpuinfo: str) -> List[str]:
    """Implementer and part of each kind of core on Arm, such as ``0x41/0xd08`` (Cortex-A72)."""
    parts: List[str] = []
    implementer = "?"
    for line in cpuinfo.splitlines():
        key, _, value = (field.strip() for field in line.partition(":"))
        if key == "CPU implementer":
            implementer = value
        elif key == "CPU part" and implementer + "/" + value not in parts:
            parts.append(implementer + "/" + value)
    return parts
