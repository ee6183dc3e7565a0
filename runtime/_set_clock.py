"""A clock that is set back while a run goes on does not hold it.

1. Dask sends messages in bundles: after one has left, the next waits until the time of day has gone on by 2 ms. Where
   the clock is set back by an hour in between, it waits for an hour (`distributed.batched`, tornado's `IOLoop.time`).
2. So the time of day is compared with a clock that nobody sets, twice a second. When it has gone back, waiting senders
   are told to look again, and what is done every few seconds is begun anew.

Nothing else here depends on the time of day: what takes how long is measured by clocks that only go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

LOOK_S = 0.5
STEP_S = 0.05
"""A clock that is kept right is slowed down or set by less."""


@contextmanager
def clock_watched(client: Any) -> Iterator[None]:
    """Wake what waits for the time of day in a client, and in its cluster where that lives in this process."""
    is_over = threading.Event()
    watch = threading.Thread(target=_watch, args=(is_over, lambda: _wake(client)), name="clock", daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        watch.join()


def _watch(is_over: threading.Event, wake: Callable[[], None]) -> None:
    ahead = time.time() - time.monotonic()
    while not is_over.wait(LOOK_S):
        now = time.time() - time.monotonic()
        if now < ahead - STEP_S:
            logger.warning("the clock of this machine was set back by %.1f s", ahead - now)
            wake()
        ahead = now


def _wake(client: Any) -> None:
    cluster = getattr(client, "cluster", None)
    nodes = [client, getattr(cluster, "scheduler", None), *getattr(cluster, "workers", {}).values()]
    for node in nodes:
        loop = getattr(node, "loop", None)
        if loop is not None:
            loop.add_callback(_wake_node, node)  # they belong to the loop's thread


def _wake_node(node: Any) -> None:
    for sender in _senders(node):
        sender.next_deadline = None
        sender.waker.set()
    for callback in list(getattr(node, "periodic_callbacks", {}).values()):
        if callback.is_running():
            callback.stop()
            callback.start()


def _senders(node: Any) -> Iterable[Any]:
    """Return what bundles messages: a client's and a worker's to the scheduler, and the scheduler's to each of them."""
    found = [getattr(node, "scheduler_comm", None), getattr(node, "batched_stream", None)]
    for name in ("stream_comms", "client_comms"):
        found += list(getattr(node, name, {}).values())
    return [sender for sender in found if hasattr(sender, "next_deadline")]
