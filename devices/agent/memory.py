"""How much memory this process holds, and held at most."""

import sys
from typing import Optional

STATUS = "/proc/self/status"


def resident_bytes() -> Optional[int]:
    """Memory of this process that is resident now; None where the system does not tell (macOS)."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that was resident since the start, or since :func:`forget_peak`."""
    high_water = _status("VmHWM")
    return _usage() if high_water is None else high_water


def forget_peak() -> bool:
    """Let the peak start again from what is resident now; False where that cannot be done."""
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    except OSError:
        return False
    return True


def method() -> str:
    """Where the peak is read from."""
    return "getrusage" if _status("VmHWM") is None else "VmHWM"


def _status(field: str) -> Optional[int]:
    try:
        with open(STATUS) as stream:
            for line in stream:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _usage() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
