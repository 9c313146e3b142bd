"""The machine as the operating system and the driver describe it, without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass

_DRIVER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that the NVIDIA driver lists."""

    name: str
    memory_bytes: int
    """All of its memory."""
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the models would run."""

    python: str
    """Version of this interpreter."""
    system: str
    """Such as "Linux x86_64"."""
    cpus: int
    """CPUs that this process may use."""
    memory_bytes: int | None
    """Memory of the machine, or of this container where it has less; None when the system does not say."""
    gpus: tuple[Gpu, ...]
    """NVIDIA GPUs, whether or not torch can use them."""


def this_machine() -> Machine:
    """The machine this process runs on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    system = f"{platform.system()} {platform.machine()}"
    return Machine(platform.python_version(), system, usable, _memory(), _gpus())


def _memory() -> int | None:
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None
    try:
        with open("/sys/fs/cgroup/memory.max") as file:  # the container's limit, or "max"
            return min(physical, int(file.read()))
    except (OSError, ValueError):
        return physical


def _gpus() -> tuple[Gpu, ...]:
    """What nvidia-smi lists; () without a driver, or when it does not answer."""
    if (program := shutil.which("nvidia-smi")) is None:
        return ()
    command = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_S, check=True).stdout
        return tuple(_gpu(line) for line in listed.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _gpu(line: str) -> Gpu:
    name, total, free = line.rsplit(",", 2)
    return Gpu(name.strip(), int(total) * 2**20, int(free) * 2**20)
