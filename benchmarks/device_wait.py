"""How long a GPU would wait for its host: Zarr to Zarr with an engine that takes a device's time, and no processor's.

    python benchmarks/device_wait.py [--mpx-per-s 20] [--flights 2 4 6] [--side 8192] [--write labels probabilities]

1. `SleepingEngine` keeps the times of a device that computes one batch after the other at a fixed rate, and sleeps
   until a batch would be done. As the TensorRT engine does, it copies batches in and has up to three on their way. Its
   results are those of the bundled network on a real tile, so they compress as real ones do.
2. A mosaic is segmented with so many blocks at once, in turn. *Busy* is the share of time that the device computes:
   from its first batch to its last, and of the whole call.
3. The processor's time for a megapixel, which does not depend on the rate, says how many cores a faster device takes.

A rate of 200 on a machine of many cores is what a data centre's GPU asks for; scaled to 2 cores that is about 20.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import make_mosaic, save
from gpu_engines import fast_folder, real_tile

from unet_deploy.runtime import load_bundled_artifact, open_engine, segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.dask_client import connect
from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult, EngineDescription, RawBatch
from unet_deploy.runtime.normalise import normaliser_of_image, to_labels, to_probabilities

SLOTS = 3
"""As of `engines.tensorrt`."""


@dataclass(slots=True, kw_only=True)
class Device:
    """The times of a device that computes one batch after the other."""

    pixels_per_second: float
    first: float | None = None
    free: float = 0.0
    busy: float = 0.0
    gaps: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, pixels: int) -> float:
        """Put a batch behind the others; return when it will be done."""
        with self.lock:
            seconds = pixels / self.pixels_per_second
            start = max(time.perf_counter(), self.free)
            if self.first is None:
                self.first = start
            elif start > self.free:
                self.gaps.append(start - self.free)
            self.free = start + seconds
            self.busy += seconds
            return self.free


class SleepingEngine:
    """See the module; `labels` (y, x) and `probabilities` (classes, y, x) are what it says of every tile."""

    def __init__(self, device: Device, labels: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.uint8]) -> None:
        self._device, self._labels, self._probabilities = device, labels, probabilities
        self._form: ByteForm | None = None

    def open(self) -> None:
        """Do nothing."""

    def infer(self, batch: Batch) -> Batch:
        """Not to be used: raw pixels are always taken."""
        raise AssertionError(batch.shape)

    def open_bytes(self, form: ByteForm) -> bool:
        """Take any form."""
        self._form = form
        return True

    def stream(self, batches: Iterable[RawBatch], *, gain: Batch, offset: Batch) -> Iterator[ByteResult]:
        """Yield results in order, each no sooner than the device would have it."""
        assert gain.shape == offset.shape
        sent: deque[tuple[float, RawBatch]] = deque()
        for batch in batches:
            if len(sent) == SLOTS:
                yield self._result(*sent.popleft())
            copied = batch.copy()
            n, _, y, x = batch.shape
            shrink = self._shrink
            sent.append((self._device.begin(n * (y - shrink) * (x - shrink)), copied))
        while sent:
            yield self._result(*sent.popleft())

    def close(self) -> None:
        """Do nothing."""

    def describe(self) -> EngineDescription:
        """Say what this is."""
        return EngineDescription(engine="fake", device="cuda:0", precision="fp32", provider="none", versions={})

    @property
    def _shrink(self) -> int:
        return 2 * CONTEXT

    def _result(self, done: float, batch: RawBatch) -> ByteResult:
        assert self._form is not None
        time.sleep(max(done - time.perf_counter(), 0))
        n, y, x = batch.shape[0], batch.shape[2] - self._shrink, batch.shape[3] - self._shrink
        labels = np.broadcast_to(self._labels[:y, :x], (n, y, x))
        probabilities = np.broadcast_to(self._probabilities[:, :y, :x], (n, len(self._probabilities), y, x))
        return ByteResult(
            labels=labels if "labels" in self._form.kinds else None,
            probabilities=probabilities if "probabilities" in self._form.kinds else None,
            checksum=np.zeros(n, np.float32),
        )


CONTEXT = load_bundled_artifact().card.geometry.context


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpx-per-s", type=float, default=20.0)
    parser.add_argument("--flights", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--tile", type=int, default=1212)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", nargs="+", default=["labels", "probabilities"])
    options = parser.parse_args()
    artifact = load_bundled_artifact()
    labels, probabilities = real_results(artifact, options.tile)
    silent = Artifact(  # no graph: nothing is replayed
        data=b"", card=replace(artifact.card, test_tensor=None), source="sleeping", sha256="0" * 64, n_nodes=0
    )
    rows: dict[int, list[dict[str, float]]] = {flight: [] for flight in options.flights}
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        volume = make_mosaic(Path(name) / "mosaic.zarr", options.side)
        for _ in range(options.runs):
            for flight in options.flights:
                device = Device(pixels_per_second=options.mpx_per_s * 1e6)
                engine = SleepingEngine(device, labels, probabilities)
                rows[flight].append(time_run(volume, silent, engine, device, flight, options))
                print(flight, rows[flight][-1], file=sys.stderr, flush=True)
    save(
        f"device-wait-{options.mpx_per_s:g}-{options.side}-{'-'.join(options.write)}",
        {
            "what": "share of time that a device of a fixed rate computes, Zarr to Zarr, by blocks at once",
            "command": f"python benchmarks/device_wait.py --mpx-per-s {options.mpx_per_s:g} --side {options.side} "
            f"--write {' '.join(options.write)}",
            "blocks_at_once": {
                str(flight): {key: round(statistics.median(row[key] for row in some), 4) for key in some[0]}
                for flight, some in rows.items()
            },
            "runs": options.runs,
        },
    )


def time_run(
    volume: Path, artifact: Artifact, engine: Any, device: Device, flight: int, options: Any
) -> dict[str, float]:
    """Return what one run shows, with so many blocks at once."""
    with connect(threads=flight) as client:
        before, start = os.times(), time.perf_counter()
        result = segment(
            volume,
            model=artifact,
            output=volume.with_name("out.ome.zarr"),
            overwrite=True,
            write=options.write,
            tile=(options.tile, options.tile),
            engine_factory=lambda _: engine,
            scheduler=client,
        )
        seconds, after = time.perf_counter() - start, os.times()
    assert device.first is not None
    cpu = after.user - before.user + after.system - before.system
    return {
        "busy_first_to_last": device.busy / (device.free - device.first),
        "busy_of_all": device.busy / seconds,
        "waits": len(device.gaps),
        "median_wait_ms": 1e3 * statistics.median(device.gaps or [0.0]),
        "mpx_per_s": result.pixels / seconds / 1e6,
        "cpu_ms_per_mpx": 1e9 * cpu / result.pixels,
        "cores_for_200_mpx_per_s": 200 * 1e6 * cpu / result.pixels,
        "read_ms_per_mpx": 1e9 * result.seconds["read"] / result.pixels,
        "write_ms_per_mpx": 1e9 * result.seconds["write"] / result.pixels,
    }


def real_results(artifact: Artifact, tile: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return labels and probabilities of a tile of real slices, mirrored where they end."""
    raw = real_tile(tile)[0]
    engine = open_engine(artifact, device="cpu")
    (logits,) = engine.infer(np.asarray(normaliser_of_image(artifact.card, raw)(raw)[None]))
    engine.close()
    return to_labels(logits), to_probabilities(logits)


if __name__ == "__main__":
    main()
