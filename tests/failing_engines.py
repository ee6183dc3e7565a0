"""Engines that end badly, to be opened in another process: each at tiles beyond `LIMIT`, or when it is opened."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial

from unet_deploy.errors import DeviceError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.runtime.engines.fake import FakeEngine

LIMIT = 60


class Failing(FakeEngine):
    """The integer engine; larger tiles than `LIMIT`, or all with `is_at_once`, end as `how` says."""

    def __init__(self, artifact: Artifact, how: str, is_at_once: bool) -> None:
        super().__init__(artifact.card.unet, takes_bytes=how == "raw pixels")
        self.how, self.is_at_once = how, is_at_once

    def open(self) -> None:
        if self.how == "no driver":
            raise DeviceError("the driver is too old", "driver 1.0, 2.0 was expected", fix="update it")

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
