"""One run of one contender, in a process of its own; benchmarks/peers.py starts it and reads its last line.

    python benchmarks/peers_run.py '{"contender": "whole image", "volume": …}'

1. Imports, on a clock of their own.
2. Memory is touched (`common.touch_memory`), or contenders would pay for how long ago the one before them ended.
3. The clock and the CPU's start; the contender opens the volume, computes, and has written its labels when they stop.
4. The process's peak memory, imports included, is what the system counted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    order = json.loads(sys.argv[1])
    started = time.perf_counter()
    # Inside the clock: zarr and numpy are the contender's imports too.
    from peers_contenders import CONTENDERS, REFERENCES, Job, import_all

    contender = (CONTENDERS | REFERENCES)[order.pop("contender")]
    job = Job(**order)
    import_all(contender, engine=job.engine)
    from common import touch_memory

    imported_s, imports_bytes = time.perf_counter() - started, peak_bytes()
    touch_memory()
    began, cpu = time.perf_counter(), _cpu_seconds()
    labels = contender.run(job, **contender.settings) or job.output
    done = time.perf_counter()
    engine = {"onnxruntime-cpu": ("onnxruntime",), "openvino": ("openvino",), "torch": ("torch",)}[job.engine]
    result: dict[str, Any] = {
        "imports_s": round(imported_s, 3),
        "wall_s": round(done - began, 3),
        "cpu_s": round(_cpu_seconds() - cpu, 3),
        "peak_mib": peak_bytes() // 2**20,
        "imports_mib": imports_bytes // 2**20,
        "labels": labels,
        "versions": {name: version(name) for name in (*contender.packages, *engine)},
    }
    sys.stdout.flush()
    print(json.dumps(result))


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` begins at what the parent held when it forked
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import psutil

    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
