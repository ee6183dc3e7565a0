"""A million blocks: how long planning takes, and what memory and time a million tasks cost beside their work.

    python benchmarks/million_blocks.py [--tasks 1000000]

1. Plans a volume of a million blocks, goes through all their numbers in the order of the run, and makes some blocks.
2. Sends as many tasks that do nothing through the scheduler of this process, as `segment` does, and looks now and then
   at the memory of the process (scheduler, worker and coordinator are in it) and at the tasks that the scheduler knows.
   It takes an hour or two; fewer tasks show the same.

Dask keeps the names of the last 100,000 tasks that it saw (`dask.utils.key_split`). That cache is filled beforehand, so
that whatever else grows is seen; what it takes is said.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import save
from dask.utils import key_split

from unet_deploy.card import Network
from unet_deploy.runtime.plan import Extents, plan_segmentation
from unet_deploy.runtime.scheduling import connect, run_tasks

BLOCKS = 10**6
MARKS = (10**3, 10**4, 10**5, 10**6)


def fill_name_cache() -> int:
    """Fill Dask's cache of the names of tasks; return the bytes that it takes."""
    before = resident_bytes()
    for _ in range(key_split.cache_info().maxsize or 0):
        key_split(f"do_nothing-{uuid.uuid4()}")
    return resident_bytes() - before


def do_nothing(_: bytes, i: int) -> int:
    return i


def resident_bytes() -> int:
    """Return the memory that this process holds now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def plan_many() -> dict[str, Any]:
    """Plan a volume of a little over `BLOCKS` blocks; return how long that took."""
    start = time.perf_counter()
    plan = plan_segmentation(
        Network(depth=4, base_width=64, in_channels=1, classes=2),
        Extents(t=1, z=1000, y=64 * 1024, x=64 * 1024),
        source_chunk=(1, 1024, 1024),
    )
    planned = time.perf_counter()
    before = resident_bytes()
    count, checksum = 0, 0
    for index in plan.order():
        count, checksum = count + 1, checksum + index
    ordered = time.perf_counter()
    assert count == plan.n_blocks >= BLOCKS
    assert checksum == count * (count - 1) // 2, "each number once"
    held = resident_bytes() - before
    some = [plan.block(index) for index in range(0, count, count // 1000)]
    made = time.perf_counter()
    assert len(some) >= 1000
    return {
        "blocks": count,
        "pixels": plan.extents.pixels,
        "plan_s": round(planned - start, 4),
        "order_s": round(ordered - planned, 3),
        "order_memory_bytes": held,
        "one_block_us": round((made - ordered) / len(some) * 1e6, 1),
    }


def run_many(tasks: int) -> Iterator[dict[str, Any]]:
    """Run so many tasks that do nothing; yield a row at each mark."""
    marks = sorted({mark for mark in MARKS if mark < tasks} | {tasks})
    with connect() as client:
        start, start_cpu = time.perf_counter(), time.process_time()
        last, last_s, last_cpu = 0, start, start_cpu
        known = 0
        for done, _ in enumerate(run_tasks(client, do_nothing, (b"shared",), tasks), 1):
            if done % 500 == 0 or done in marks:
                known = max(known, client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
            if done in marks:
                now, cpu = time.perf_counter(), time.process_time()
                yield {
                    "tasks": done,
                    "resident_bytes": resident_bytes(),
                    "most_tasks_known_to_the_scheduler": known,
                    "us_per_task": round((now - last_s) / (done - last) * 1e6),
                    "cpu_us_per_task": round((cpu - last_cpu) / (done - last) * 1e6),
                }
                last, last_s, last_cpu = done, now, cpu


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=10**6)
    options = parser.parse_args()
    planning = plan_many()
    print(planning)
    names = fill_name_cache()
    rows = []
    for row in run_many(options.tasks):
        print(row, flush=True)
        rows.append(row)
    flat = [row["resident_bytes"] for row in rows if row["tasks"] >= 10**4] or [rows[-1]["resident_bytes"]]
    save(
        "million-blocks",
        {
            "data": "none: tasks that do nothing",
            "what": "planning a million blocks, and memory and time by number of tasks, all in one process",
            "command": f"python benchmarks/million_blocks.py --tasks {options.tasks}",
            "planning": planning,
            "name_cache_bytes": names,
            "memory_ratio_last_to_ten_thousand": round(flat[-1] / flat[0], 4),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
