"""How many cores and how much memory this process may use: what it is pinned to and what its container is given, not
what the machine has; and how many GPUs they are for.

Knows no settings and no torch.
"""

import math
import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""`QUOTA PERIOD` in microseconds, or `max PERIOD` (cgroup v2), as a container sees its own."""

MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Bytes, or `max`, in the same way."""


def usable(limit: Path = CGROUP_LIMIT) -> int:
    """At least 1; a share of a core counts as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit.read_text().split()
        given = math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or no limit
        return cores
    return max(1, min(cores, given))


def memory_bytes(limit: Path = MEMORY_LIMIT) -> float:
    """What the container is given; infinite without a limit."""
    try:
        return int(limit.read_text())
    except (OSError, ValueError):  # no such file, or no limit
        return math.inf


def gpus(devices: Path = Path("/dev")) -> int:
    """GPUs that this machine or container has, whichever are used; at least 1.

    NVIDIA's device files, or the names in CUDA_VISIBLE_DEVICES where those are more: slices of a GPU (MIG) share one.
    """
    files = sum(file.name.removeprefix("nvidia").isdigit() for file in devices.glob("nvidia*"))
    names = sum(bool(name.strip()) for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
    return max(1, files, names)
