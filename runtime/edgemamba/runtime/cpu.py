"""The processor that this process may use: its name, and how many threads are worth starting on it."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cpu_name() -> str:
    """The processor's name as the system gives it (on an Arm board often only the architecture)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for key, separator, value in (line.partition(":") for line in lines):
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return fields.get("model name") or fields.get("Model") or platform.machine()


def usable_threads() -> int:
    """Physical cores that this process may run on, and no more than its share of time pays for.

    Regards the affinity mask (``taskset``), hardware threads that share a core, and a container's CPU quota. ONNX Runtime's
    own default looks at none but the second, and starts 64 threads in a container that is allowed two cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    """The hardware threads of the core that a CPU belongs to, as the kernel writes them; itself where it does not tell."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """CPUs' worth of time that the control group grants, rounded up; without limit a very large number."""
    unlimited = 1 << 30
    try:
        granted, _, period = _CGROUP_QUOTA.read_text().partition(" ")
        return math.ceil(int(granted) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2, or "max"
        return unlimited
