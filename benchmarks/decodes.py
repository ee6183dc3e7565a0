"""How often each chunk of a volume is decoded in a run: ``python benchmarks/decodes.py``.

Counts, not times, and no network: the windows of all blocks are read as a run reads them, in the plan's order through
the cache of decoded chunks; beside it the same blocks by number, with the same cache, and without any; and by two
processes, which share no cache. One row for each way in which volumes are cut into chunks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from os import getpid
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import save

from unet_deploy.card import Network
from unet_deploy.geometry import Interval
from unet_deploy.runtime.chunk_cache import CHUNKS
from unet_deploy.runtime.plan import Extents, SegmentationPlan, plan_segmentation
from unet_deploy.runtime.volume import Volume, open_volume
from unet_deploy.runtime.windows import plan_window

NETWORK = Network(depth=4, base_width=16, in_channels=1, classes=2)
VOLUMES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int] | None]] = {
    "(1, 1024, 1024)": ((1, 12_288, 12_288), (1, 1024, 1024), None),
    "(64, 64, 64)": ((64, 3072, 2048), (64, 64, 64), None),
    "(1, 256, 256)": ((2, 8192, 8192), (1, 256, 256), None),
    "(1, 256, 256) in shards of (4, 1024, 1024)": ((4, 6144, 6144), (1, 256, 256), (4, 1024, 1024)),
    "(128, 64, 64)": ((128, 2048, 1024), (128, 64, 64), None),
}


def write_volume(
    path: Path, shape: tuple[int, int, int], chunks: tuple[int, int, int], shards: tuple[int, int, int] | None
) -> Volume:
    """Write pixels of which no chunk is a single value."""
    array = zarr.create_array(str(path), shape=shape, chunks=chunks, shards=shards, dtype="uint8")
    step = (shards or chunks)[0]
    plane = np.add.outer(np.arange(shape[1]) // 7, np.arange(shape[2]) // 5).astype(np.uint8)
    for z in range(0, shape[0], step):
        array[z : z + step] = np.broadcast_to(plane + np.uint8(z), (min(step, shape[0] - z), *shape[1:]))
    return open_volume(path)


def read_block(volume: Volume, plan: SegmentationPlan, index: int) -> tuple[int, int]:
    """Read a block's window; return this process and how many chunks it has decoded so far."""
    block = plan.block(index)
    y = plan_window(plan.geometry, block.tiles_y, plan.extents.y).source
    x = plan_window(plan.geometry, block.tiles_x, plan.extents.x).source
    t, spent = Interval(block.t, block.t + 1), plan.spent(index)
    volume.read(t=t, z=block.z, y=y, x=x, cache_bytes=plan.cache_bytes, spent=spent)
    return getpid(), CHUNKS.counts.decoded


def count(volume: Volume, plan: SegmentationPlan, order: Iterable[int], *, processes: int = 0) -> int:
    """Return how many chunks are decoded when blocks are read in an order."""
    CHUNKS.reset()
    if not processes:
        return max(read_block(volume, plan, index)[1] for index in order)
    numbers = [*order]
    each: dict[int, int] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for process, decoded in pool.map(read_block, [volume] * len(numbers), [plan] * len(numbers), numbers):
            each[process] = max(decoded, each.get(process, 0))
    return sum(each.values())


def main() -> None:
    """Count, print and save."""
    rows: list[dict[str, Any]] = []
    for name, (shape, chunks, shards) in VOLUMES.items():
        extents = Extents(t=1, z=shape[0], y=shape[1], x=shape[2])
        plan = plan_segmentation(NETWORK, extents, source_chunk=chunks, source_shard=shards)
        with tempfile.TemporaryDirectory() as folder:
            volume = write_volume(Path(folder) / "volume.zarr", shape, chunks, shards)
            n_chunks = int(np.prod([-(-n // c) for n, c in zip(shape, chunks, strict=True)]))
            by_number, in_order = range(plan.n_blocks), list(plan.order())
            counts = {
                "in_order": count(volume, plan, in_order),
                "by_number": count(volume, plan, by_number),
                "one_chunk_kept": count(volume, replace(plan, cache_bytes=1), by_number),
                "two_processes": count(volume, plan, in_order, processes=2),
            }
        row = {
            "chunks": name,
            "shape": list(shape),
            "blocks": plan.n_blocks,
            "cache_bytes": plan.cache_bytes,
            "chunks_in_volume": n_chunks,
            "planned_decodes_per_chunk": round(plan.decodes_per_chunk, 3),
            "decoded": counts,
            "decodes_per_chunk": {key: round(value / n_chunks, 3) for key, value in counts.items()},
        }
        rows.append(row)
        print(name, row["decodes_per_chunk"])
    save("decodes", {"data": "procedural", "volumes": rows})


if __name__ == "__main__":
    main()
