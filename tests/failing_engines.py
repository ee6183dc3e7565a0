"""Engines to be opened in another process: those that end badly, and one that holds memory for each tile shape."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from unet_deploy.errors import DeviceError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import Batch, EngineDescription
from unet_deploy.runtime.engines.fake import FakeEngine

LIMIT = 60
HELD_BYTES = 64 * 2**20
"""What a `Holding` holds for each shape: beside it, the arrays of a small tile are nothing."""


class Failing(FakeEngine):
    """The integer engine; larger tiles than `LIMIT`, or all with `is_at_once`, end as `how` says, as may opening."""

    def __init__(self, artifact: Artifact, how: str, is_at_once: bool) -> None:
        super().__init__(artifact.card.unet, takes_bytes=how == "raw pixels")
        self.how, self.is_at_once = how, is_at_once

    def open(self) -> None:
        if self.how == "no driver":
            raise DeviceError("the driver is too old", "driver 1.0, 2.0 was expected", fix="update it")
        if self.how == "hangs when opened":
            time.sleep(600)

    def infer(self, batch: Batch) -> Batch:
        os.write(1, b"a library writes to stdout\n")
        if self.is_at_once or max(batch.shape) > LIMIT:
            self._end()
        return super().infer(batch)

    def _end(self) -> None:
        if self.how == "exits":
            print("Fatal: no such instruction", file=sys.stderr, flush=True)
            os._exit(7)
        if self.how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hangs":
            time.sleep(600)
        if self.how == "no memory":
            raise MemoryError("8 GB were wanted")


def _make(artifact: Artifact, *, how: str, is_at_once: bool) -> Failing:
    return Failing(artifact, how, is_at_once)


def failing(how: str, *, is_at_once: bool = False) -> partial[Failing]:
    """Return a factory of an engine that ends like this; another process can import it."""
    return partial(_make, how=how, is_at_once=is_at_once)


class Holding(FakeEngine):
    """The integer engine, which keeps memory for each shape that it has run, as those do that compile for shapes.

    That it was opened is noted in a file, with a line.
    """

    def __init__(self, artifact: Artifact, device: str, log: Path) -> None:
        super().__init__(artifact.card.unet)
        self.device, self.log = device, log
        self.held: dict[tuple[int, ...], object] = {}

    def open(self) -> None:
        with self.log.open("a") as file:
            file.write("opened\n")

    def infer(self, batch: Batch) -> Batch:
        if batch.shape not in self.held:
            self.held[batch.shape] = np.ones(HELD_BYTES, np.uint8)
        return super().infer(batch)

    def describe(self) -> EngineDescription:
        return replace(super().describe(), device=self.device)


def _make_holding(artifact: Artifact, *, device: str, log: Path) -> Holding:
    return Holding(artifact, device, log)


def holding(log: Path, *, device: str = "cpu") -> partial[Holding]:
    """Return a factory of an engine that holds memory, on what it says is a device; another process can import it."""
    return partial(_make_holding, device=device, log=log)
