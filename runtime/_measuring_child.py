"""What `runtime.measuring` runs in a process of its own: opens an engine, and times tiles on it as it is asked to.

1. Which engine comes pickled through stdin, from the process that started this one; then a line of JSON for each
   tile. Answers are lines of JSON on the stdout of the beginning; whatever else writes to stdout, as native libraries
   do, goes to stderr.
2. Memory is how far the peak of this process lies above what it held before the engine was opened. Each tile has an
   engine of its own, which holds nothing for the last one; but a GPU's, which may take minutes to open, serves all.
3. A tile runs `WARM_UP` times first (the first run compiles, the second still allocates), then `RUNS` times and for
   `ENOUGH_SECONDS`, or as long as there is time. Of slow ones, beside which that is little, fewer runs will do.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from unet_deploy.errors import UnetDeployError
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.engines.cache import EngineRequest, drop_engine, get_engine

WARM_UP, RUNS, MOST_RUNS = 2, 3, 30
ENOUGH_SECONDS = 0.3
SLOW_SECONDS = 1.0
"""A run that takes longer is warmed up by one, and so much of them is enough."""


def main() -> None:
    """Answer what comes through stdin, until there is nothing more."""
    answers = _take_stdout()
    request: EngineRequest = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the process that began this one
    try:
        for answer in _measure(request, map(json.loads, sys.stdin.buffer)):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    except UnetDeployError as error:
        told = {"class": type(error).__name__, "headline": error.headline, "details": error.details, "fix": error.fix}
        answers.write(json.dumps({"error": told}) + "\n")
        answers.flush()
    os._exit(0)  # what a driver does while Python ends is no answer's business


def _take_stdout() -> IO[str]:
    """Return stdout as it was, and let everybody else's go to stderr."""
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(own, "w", encoding="utf-8")


def _measure(request: EngineRequest, wanted: Iterable[Any]) -> Iterator[dict[str, Any]]:
    channels = request.artifact.card.network.in_channels
    idle, start = held_bytes(), time.perf_counter()
    engine = get_engine(request)
    description = engine.describe()
    yield {"opened": asdict(description), "seconds": time.perf_counter() - start}
    for number, item in enumerate(wanted):
        if number and description.device == "cpu":
            del engine
            drop_engine(request)
            engine = get_engine(request)
        tile_y, tile_x = item["tile"]
        seconds = _time(_runner(engine, request, (item["batch"], channels, tile_y, tile_x)), item["seconds"])
        memory = max(peak_bytes() - idle, 0) if description.device == "cpu" else 0
        yield {"seconds": seconds, "memory_bytes": memory}


def _runner(engine: Any, request: EngineRequest, shape: tuple[int, int, int, int]) -> Callable[[], object]:
    """Return what runs one batch as a segmentation does: from raw pixels where the engine takes them."""
    rng, card = np.random.default_rng(0), request.artifact.card
    form = ByteForm(dtype=card.input.dtype, kinds=("labels", "probabilities"))
    if not engine.open_bytes(form):
        batch = rng.standard_normal(shape, np.float32)
        return lambda: engine.infer(batch)
    low, high = card.input.value_range
    raw = rng.uniform(low, high, shape).astype(form.dtype)
    gain, offset = np.float32(1 / np.asarray(card.normalisation.std)), np.zeros(shape[1], np.float32)
    return lambda: sum(1 for _ in engine.stream([raw], form, gain=gain, offset=offset))


def _time(run: Callable[[], object], limit_s: float) -> float:
    """Return the median of the seconds a run takes, after the warm-up."""
    deadline = time.monotonic() + limit_s
    for _ in range(WARM_UP):
        if _clock(run) > SLOW_SECONDS:
            break
    times: list[float] = []
    while len(times) < MOST_RUNS:
        times.append(_clock(run))
        enough = ENOUGH_SECONDS if len(times) >= RUNS else SLOW_SECONDS
        if sum(times) >= enough or time.monotonic() + times[-1] > deadline:
            break
    return statistics.median(times)


def _clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def held_bytes() -> int:
    """Return what this process holds now; where the system does not tell, the most it has held."""
    return _status("VmRSS") or _windows("WorkingSetSize") or peak_bytes()


def peak_bytes() -> int:
    """Return the most that this process has held; 0 where the system does not tell."""
    return _status("VmHWM") or _windows("PeakWorkingSetSize") or _usage()


def _status(name: str) -> int:
    """Return a size of Linux's own account of this process, 0 elsewhere."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows API."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )


def _windows(name: str) -> int:
    """Return a size of Windows's own account of this process, 0 elsewhere."""
    if sys.platform != "win32":
        return 0
    counters = _Counters()
    counters.cb = ctypes.sizeof(counters)
    kernel = ctypes.WinDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p  # a handle has 64 bits
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    is_told = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return int(getattr(counters, name)) if is_told else 0


def _usage() -> int:
    """Return the peak as POSIX tells it, 0 elsewhere."""
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
