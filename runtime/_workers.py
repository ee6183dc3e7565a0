"""Who there is to do the work of a run: the workers of its scheduler, counted every few seconds.

1. Their threads say how many tasks are worth submitting.
2. Workers on which a task is late are *stalled*: they get no more until they come back.
3. Where nobody is left for a while, or the scheduler itself is gone, that is an error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unet_deploy.errors import SchedulerError

logger = logging.getLogger(__name__)

TICK_S = 0.2
"""How often it is asked whether to stop, and looked at the clock, while nothing else happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what, in seconds."""

    poll_s: float = 1.0
    """Before numbers are asked for again, where there were none just now."""
    check_s: float = 5.0
    """Between two looks at the workers."""
    stall_s: float = 600.0
    """No task is late before."""
    no_worker_s: float = 300.0
    """For another worker, when the last is gone."""


@dataclass(slots=True)
class AwakeClock:
    """Seconds in which this process was awake and at this work: it may be stopped, or sleep, for hours."""

    seconds: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def __call__(self) -> float:
        now = time.monotonic()
        self.seconds += min(now - self.last, 5 * TICK_S)
        self.last = now
        return self.seconds


class Workers:
    """The workers of a client's scheduler, as they were when last looked at."""

    def __init__(self, client: Any, patience: Patience, clock: AwakeClock) -> None:
        self._client, self._patience, self._clock = client, patience, clock
        self._address = str(getattr(client.scheduler, "address", "gone"))
        self._look_at = 0.0
        self._seen_at = self._heard_at = clock()
        self.threads: dict[str, int] = {}
        self.stalled: set[str] = set()

    @property
    def capacity(self) -> int:
        """How many tasks to keep submitted: each thread has one and the next, and one is on its way."""
        return 2 * sum(self.threads.values()) + 1

    @property
    def able(self) -> list[str]:
        """The addresses of those that are not stalled; of all, where all are."""
        return [worker for worker in self.threads if worker not in self.stalled] or list(self.threads)

    def look(self) -> bool:
        """Count them, if it is time to; tell whether they were counted.

        Raises
        ------
        SchedulerError
            If nobody was there for long, all have too little memory to go on, or the scheduler is gone.
        """
        now = self._clock()
        if now < self._look_at:
            return False
        had_some, self.threads = bool(self.threads), self._count_threads()
        self._look_at = now + (self._patience.check_s if self.threads else min(self._patience.check_s, 1.0))
        self.stalled &= self.threads.keys()
        if self.threads:
            self._seen_at = now
            self._client.run_on_scheduler(_forget_submissions)
            if now - self._heard_at > self._patience.no_worker_s:
                self._require_one_awake()
                self._heard_at = now
        elif had_some:
            self._seen_at = now
            logger.warning("no Dask worker is left; waiting for others")
        elif now - self._seen_at > self._patience.no_worker_s:
            raise SchedulerError(
                f"no Dask worker was there for {self._patience.no_worker_s:.0f} s",
                f"the scheduler is {self._address}; the workers' logs, or the batch system's, say why they ended",
                fix=f"start workers (dask worker {self._address} --nthreads 2), then give the same command: "
                "it goes on with what is done",
            )
        return True

    def heard(self) -> None:
        """Note that a task has ended, or the first was submitted after a rest."""
        self._heard_at = self._clock()

    def look_soon(self) -> None:
        """Let the next look be at once."""
        self._look_at = 0.0

    def find_holders(self, futures: Sequence[Any]) -> dict[str, str]:
        """Return, by key, which worker computes or keeps each of them; what only waits for one is with nobody."""
        keys = {future.key for future in futures}
        try:
            held = {key: worker for worker, its in self._client.processing().items() for key in its if key in keys}
            rest = [future for future in futures if future.key not in held]
            done = self._client.who_has(rest) if rest else {}
        except OSError:  # the scheduler is out of reach just now
            return {}
        return held | {key: workers[0] for key, workers in done.items() if workers}

    def require_scheduler(self) -> None:
        """Refuse to go on when the client has given the scheduler up.

        Raises
        ------
        SchedulerError
            If it has. Before, distributed tries for a while to connect again.
        """
        if self._client.status in ("closing", "closed"):
            raise SchedulerError(
                "the connection to the Dask scheduler was lost",
                f"the scheduler was {self._address}",
                fix="start it and its workers anew, then give the same command: it goes on with what is done",
            )

    def _require_one_awake(self) -> None:
        """Refuse to wait for workers that Dask has paused, all of them: nothing they have would go away by itself."""
        paused = self._client.run_on_scheduler(_find_paused)
        if set(paused) >= self.threads.keys():
            raise SchedulerError(
                f"all {len(paused)} Dask workers are paused: no part was done in {self._patience.no_worker_s:.0f} s",
                f"the scheduler is {self._address}; Dask pauses a worker above 80 % of its memory limit",
                fix="start them with a larger --memory-limit, or 0 for none, then give the same command",
            )

    def _count_threads(self) -> dict[str, int]:
        """Return the threads of each; none while the scheduler is out of reach."""
        self.require_scheduler()
        if self._client.status != "running":
            return {}
        try:
            return dict(self._client.nthreads())
        except OSError:
            return {}


def _find_paused(dask_scheduler: Any) -> list[str]:
    return [address for address, worker in dask_scheduler.workers.items() if worker.status.name == "paused"]


def _forget_submissions(dask_scheduler: Any) -> None:
    """Drop what the scheduler's spans note of each call of `Client.submit`: a million notes are 400 MB, all alike."""
    alike = {"type": "Future"}
    for span in getattr(dask_scheduler.extensions.get("spans"), "spans", {}).values():
        notes = (getattr(span, "metadata", None) or {}).get("collections", [])
        if notes.count(alike) > 1:
            notes[:] = [alike, *(note for note in notes if note != alike)]
