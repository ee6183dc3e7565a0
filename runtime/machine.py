"""What this machine is: processor, memory, GPUs, disk. Asked of the system, without any package.

1. Each question has an answer or None: a machine that does not tell is no error.
2. GPUs: by ``nvidia-smi``; where there is none, by the driver's own library. No driver and no answer are told apart.
3. Nothing here names the machine, its user or a folder.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 2.0
"""How long nvidia-smi may take; with a driver that hangs it never answers."""
VECTOR_UNITS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd")
"""What decides how fast a CPU runs a network, above all in int8."""
NICENESS = 10
"""Of 0 to 19, what a run of low priority adds: it gets a tenth of a core that another program wants too."""
_QUERY = ("--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The CPU. `usable` cores are those that this process may use."""

    name: str | None
    cores: int | None
    usable: int | None
    vector_units: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of main memory; `limit_bytes` is a container's, where it has one."""

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as its driver describes it."""

    name: str
    driver: str
    memory_bytes: int | None
    compute_capability: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs found; `note` says where the answer comes from, or why there is none."""

    found: tuple[Gpu, ...]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Free and all bytes of the disk of a folder."""

    free_bytes: int
    total_bytes: int


def read_processor() -> Processor:
    """Return what the CPU is."""
    text = _text(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    return Processor(
        name=name[1].strip() if name else _windows_processor() or platform.processor() or platform.machine() or None,
        cores=os.cpu_count(),
        usable=usable_cores(),
        vector_units=tuple(unit for unit in VECTOR_UNITS if unit in known),
    )


def usable_cores() -> int | None:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count()


def read_memory() -> Memory:
    """Return how much main memory there is."""
    sizes = {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+(\d+) kB$", _text(Path("/proc/meminfo")), re.M)}
    if not sizes:
        return _windows_memory() or Memory(total_bytes=None, available_bytes=None, limit_bytes=None)
    limits = [
        int(text)
        for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
        if (text := _text(Path(file)).strip()).isdecimal()
    ]
    limit = min(limits, default=None)
    return Memory(
        total_bytes=sizes.get("MemTotal"),
        available_bytes=sizes.get("MemAvailable"),
        limit_bytes=limit if limit is not None and limit < sizes.get("MemTotal", 0) else None,
    )


def busy_share(seconds: float = 0.3) -> float | None:
    """Return the share of all cores' time that programs take while this one waits; None where the system does not say.

    >>> share = busy_share(0.01)
    >>> share is None or 0 <= share <= 1
    True
    """
    before = _core_times()
    time.sleep(seconds)
    after = _core_times()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return min(max(1 - (after[0] - before[0]) / (after[1] - before[1]), 0.0), 1.0)


def _core_times() -> tuple[int, int] | None:
    """Return the time that all cores were idle, and all of it, since the start of the system."""
    if sys.platform == "win32":
        idle, kernel, user = (ctypes.c_ulonglong() for _ in range(3))
        is_told = ctypes.windll.kernel32.GetSystemTimes(*map(ctypes.byref, (idle, kernel, user)))
        return (idle.value, kernel.value + user.value) if is_told else None  # the kernel's time holds the idle one
    found = re.match(r"cpu +([0-9 ]+)", _text(Path("/proc/stat")))
    if found is None:
        return None
    times = [int(word) for word in found[1].split()[:8]]
    return sum(times[3:5]), sum(times)  # idle, and waiting for a disk


def held_memory_bytes() -> int:
    """Return how much memory this process holds now; 0 where the system does not say it in a file."""
    fields = _text(Path("/proc/self/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def read_disks() -> dict[str, Disk]:
    """Return the disks of the current folder and of that for temporary files; without those that do not answer."""
    disks: dict[str, Disk] = {}
    for name, folder in (("here", Path()), ("temporary files", Path(tempfile.gettempdir()))):
        try:
            usage = shutil.disk_usage(folder)
        except OSError:  # a folder that was deleted, a share that is gone
            continue
        disks[name] = Disk(free_bytes=usage.free, total_bytes=usage.total)
    return disks


def read_gpus(program: str | None = None, *, answer_seconds: float = ANSWER_SECONDS) -> Gpus:
    """Return the NVIDIA GPUs that the driver knows.

    Parameters
    ----------
    program
        The path of nvidia-smi; looked for if None.
    answer_seconds
        How long it may take.
    """
    found = program or shutil.which("nvidia-smi")
    if found is None:
        return ask_driver()
    try:
        done = subprocess.run(  # noqa: S603  # a fixed question to the driver's own program
            [found, *_QUERY], capture_output=True, text=True, timeout=answer_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Gpus(found=(), note=f"nvidia-smi did not answer within {answer_seconds:g} s: the driver may hang")
    except OSError as error:
        return Gpus(found=(), note=f"nvidia-smi cannot be run: {error.strerror or type(error).__name__}")
    if done.returncode:
        reason = (done.stdout + done.stderr).strip().splitlines() or ["no reason given"]
        return Gpus(found=(), note=f"nvidia-smi failed: {reason[0]}")
    gpus = parse_nvidia_smi(done.stdout)
    return Gpus(found=gpus, note="by nvidia-smi" if gpus else "nvidia-smi names none")


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs in nvidia-smi's answer: name, driver, MiB and compute capability a line.

    >>> parse_nvidia_smi("NVIDIA H200, 580.65.06, 143771, 9.0")[0].compute_capability
    '9.0'
    """
    gpus: list[Gpu] = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4:
            name, driver, mebibytes, capability = parts
            gpus.append(
                Gpu(
                    name=name,
                    driver=driver,
                    memory_bytes=int(mebibytes) * 2**20 if mebibytes.isdecimal() else None,
                    compute_capability=capability if re.fullmatch(r"\d+\.\d+", capability) else None,
                )
            )
    return tuple(gpus)


def ask_driver() -> Gpus:
    """Return the NVIDIA GPUs that the driver's own library knows; at once, where there is none.

    Those that CUDA_VISIBLE_DEVICES hides are not among them, and they are in CUDA's order.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library: Any = ctypes.CDLL(name)
    except OSError:
        return Gpus(found=(), note=f"no NVIDIA driver: neither nvidia-smi nor {name} is there")
    version, count = ctypes.c_int(), ctypes.c_int()
    if (code := library.cuInit(0)) or library.cuDeviceGetCount(ctypes.byref(count)):
        return Gpus(found=(), note=f"{name} is there, and finds no GPU (cuInit: error {code})")
    library.cuDriverGetVersion(ctypes.byref(version))
    driver = f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    gpus: list[Gpu] = []
    for index in range(count.value):
        device, text, size = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
        if library.cuDeviceGet(ctypes.byref(device), index) or library.cuDeviceGetName(text, 128, device):
            continue
        failed = library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        gpus.append(
            Gpu(
                name=text.value.decode(errors="replace"),
                driver=driver,
                memory_bytes=None if failed else size.value,
                compute_capability=None,
            )
        )
    return Gpus(found=tuple(gpus), note=f"by {name}")


def lower_priority() -> None:
    """Let other programs on this machine come first: this thread, and those and the processes it begins from now on."""
    if sys.platform == "win32":
        below_normal = 0x4000
        ctypes.windll.kernel32.SetPriorityClass(ctypes.windll.kernel32.GetCurrentProcess(), below_normal)
    else:
        os.nice(NICENESS)


def give_way() -> None:
    """Let this program's other threads come first: the network's, whose operations end when the last core has ended."""
    if sys.platform == "linux":  # elsewhere priorities are of whole processes
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(os.nice(0) + NICENESS, 19))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _windows_processor() -> str | None:
    if sys.platform != "win32":
        return None
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    except OSError:
        return None


def _windows_memory() -> Memory | None:
    if sys.platform != "win32":
        return None
    status = (ctypes.c_ulonglong * 8)()  # MEMORYSTATUSEX: length and load in the first, then total, available, ...
    ctypes.c_ulong.from_buffer(status).value = ctypes.sizeof(status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return Memory(total_bytes=status[1], available_bytes=status[2], limit_bytes=None)
