"""How tasks are submitted: a bounded number at a time, to workers that may die, join, stall or all be gone.

1. What all tasks share is sent to the workers once, and again when the last that held it is gone.
2. Twice as many tasks are submitted as there are threads, so that a million tasks cost the scheduler constant memory.
   Workers that join are used, and those that left are not waited for (`runtime._workers`).
3. A task whose worker died is run by another. One that took its workers with it is tried once more by itself, since it
   may have died of its neighbours, and is then given up.
4. A task that takes far longer than the others is given to another worker as well. The first result counts.
5. No worker for a while, or none that is not paused, ends the run.

The scheduler itself notices a process that hangs, after ``distributed.scheduler.worker-ttl`` (five to ten minutes): it
restarts or removes the worker and runs its tasks elsewhere. Step 4 is for what it does not notice: a thread that waits
for a file system, in a process that still answers.
"""

from __future__ import annotations

import logging
import statistics
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from unet_deploy.errors import SchedulerError, UnetDeployError
from unet_deploy.runtime._workers import TICK_S, AwakeClock, Patience, Workers
from unet_deploy.runtime.dask_client import connect

__all__ = ["Patience", "connect", "run_tasks"]

logger = logging.getLogger(__name__)

MAX_SENT_AGAIN = 10
"""How often a task is submitted anew because its input was lost with a worker."""
MAX_ALONE = 8
"""So many tasks that killed their workers wait to be tried alone; with more, it is not their neighbours' doing."""
STALL_RATIO = 20
"""A task is late when it took so many times the median of the others."""
N_TIMES = 1001
_END = object()


def run_tasks(
    client: Any,
    function: Callable[..., Any],
    shared: tuple[Any, ...],
    numbers: int | Iterable[int | None],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_killed: Callable[[int, str], Any] | None = None,
    patience: Patience | None = None,
) -> Generator[Any, None, None]:
    """Yield ``function(*shared, i)`` as they finish, a bounded number submitted at a time, one result for each i.

    A task may run twice, or be broken off: a worker that dies after it wrote and before it said so, or one that is
    late, leaves its task to another. So running it twice must do what running it once does. Blocks are so: their result
    depends on nothing but their number, and every chunk is written whole and put into place by one rename, so that
    whoever comes second replaces bytes by the same bytes.

    Close what is returned where not all of it is wanted: what is in flight is cancelled then.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    function, shared
        The task, and what it takes before its number; the first of these is sent to the workers once.
    numbers
        The numbers i, each once, or how many from 0 on. None among them means that there is nothing to do just now:
        they are asked again when a task has finished, or a little later.
    should_stop
        Asked before each task and while there is nothing to do; once it says so, what is in flight is finished and
        nothing more begun. Where no worker is left to finish it, it is left.
    on_killed
        Gives the result of a task that its workers did not survive, from its number and the reason.
    patience
        How long to wait for what; the defaults of `Patience` if None.

    Raises
    ------
    SchedulerError
        If a task is given up and there is no `on_killed`, no worker is able for a while, or the scheduler is gone.
    UnetDeployError
        What a task raised; other exceptions of a task come as they are, after Dask has printed them.
    """
    run = _Run(client, function, shared, should_stop, on_killed, patience or Patience())
    return run.results(iter(range(numbers) if isinstance(numbers, int) else numbers))


@dataclass(slots=True)
class _Attempt:
    """One submission of a task; a task that is late has several. The worker is known of late ones."""

    number: int
    future: Any
    begun: float
    generation: int
    is_alone: bool
    worker: str | None = None


class _Run:
    def __init__(
        self,
        client: Any,
        function: Callable[..., Any],
        shared: tuple[Any, ...],
        should_stop: Callable[[], bool],
        on_killed: Callable[[int, str], Any] | None,
        patience: Patience,
    ) -> None:
        self.client, self.function, self.patience = client, function, patience
        self.big, *self.small = shared
        self.should_stop, self.on_killed = should_stop, on_killed
        self.is_over = self.is_stopped = False  # no further numbers; because it was asked for
        self.live: dict[int, list[_Attempt]] = {}
        self.attempts: dict[str, _Attempt] = {}  # the same, by key
        self.outlived: dict[str, _Attempt] = {}  # late ones whose task another finished: do their workers come back?
        self.again: deque[int] = deque()
        self.alone: deque[int] = deque()
        self.lost: dict[int, int] = {}
        self.arrivals: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self.sent: Any = None
        self.generation, self.can_send_to_all = 0, True  # how often it was sent; whether all answered
        self.times: deque[float] = deque(maxlen=N_TIMES)
        self.longest = 0.0
        self.clock = AwakeClock()
        self.ask_at = 0.0
        self.workers = Workers(client, patience, self.clock)

    def results(self, left: Iterator[int | None]) -> Generator[Any, None, None]:
        """Yield them: the loop of all that is done here."""
        try:
            while True:
                self._fill(left)
                if self.live or self.again or self.alone:
                    self._look()
                elif self.is_over:
                    return
                until = self.ask_at - self.clock()
                try:
                    key, outcome = self.arrivals.get(timeout=min(until, TICK_S) if until > 0 else TICK_S)
                except Empty:
                    continue
                yield from self._settle(key, outcome)
        finally:
            self._drop_all()
            if self.sent is not None and self.client.status == "running":
                self.sent.release()

    def _fill(self, left: Iterator[int | None]) -> None:
        """Submit tasks until enough are in flight."""
        while self.again:
            if not self._submit(self.again[0]):
                return
            self.again.popleft()
        while not self.is_over and not self._is_one_alone and len(self.live) < self.workers.capacity:
            if self.should_stop():
                self.is_over = self.is_stopped = True
                self.alone.clear()
            elif self.clock() < self.ask_at:
                break
            elif (i := next(left, _END)) is _END:
                self.is_over = True
            elif i is None:
                self.ask_at = self.clock() + self.patience.poll_s
            else:
                assert isinstance(i, int), i
                assert i not in self.live, i
                if not self._submit(i):
                    self.again.append(i)
                    return
        if self.alone and not self.live and self._submit(self.alone[0], is_alone=True):
            self.alone.popleft()

    @property
    def _is_one_alone(self) -> bool:
        first = next(iter(self.live.values()), None)
        return first is not None and first[0].is_alone

    def _submit(self, i: int, *, is_alone: bool = False) -> bool:
        """Submit a task, if there is somebody to do it; tell whether it was."""
        self.workers.require_scheduler()
        if self.sent is None and not self._send():
            return False
        able = {"workers": self.workers.able, "allow_other_workers": True}
        where: dict[str, Any] = able if self.workers.stalled else {}
        key = f"{getattr(self.function, '__name__', 'task')}-{uuid.uuid4()}"
        task = (self.function, self.sent, *self.small, i)
        future = self.client.submit(_answer, *task, key=key, pure=False, **where)
        attempt = _Attempt(i, future, self.clock(), self.generation, is_alone)
        self.attempts[future.key] = attempt
        if not self.live:
            self.workers.heard()
        self.live.setdefault(i, []).append(attempt)
        self.client.loop.add_callback(self._await, future)
        return True

    def _send(self) -> bool:
        """Send what all tasks share, if somebody is there; tell whether it was sent."""
        if not self.workers.threads:
            self._look()
        if not self.workers.threads:
            return False
        how = {"hash": False, "broadcast": self.can_send_to_all, "workers": self.workers.able}
        try:
            self.sent = self.client.sync(
                self.client.scatter, self.big, callback_timeout=max(self.patience.stall_s, 10), **how
            )
        except (OSError, KeyError) as error:  # somebody is gone, or (TimeoutError is an OSError) does not answer
            logger.warning("what the tasks share could not be sent to the workers: %r", error)
            self.can_send_to_all = False  # but to one of them, another each time, and they to each other
            self.workers.look_soon()
            return False
        self.generation += 1
        return True

    async def _await(self, future: Any) -> None:
        """Fetch a result when it is there, in the client's own thread: fetching may hang as computing may."""
        from distributed import CancelledError

        try:
            outcome: Any = (await future,)
        except CancelledError:
            outcome = None  # also that of a task whose input is lost
        except Exception as error:
            outcome = error
        self.arrivals.put((future.key, outcome))

    def _settle(self, key: str, outcome: Any) -> Iterator[Any]:
        """Yield the result of a task when the first attempt at it ends: a tuple of one, an exception, or None."""
        from distributed import KilledWorker

        self.ask_at = 0.0
        self.workers.heard()
        if (outlived := self.outlived.pop(key, None)) is not None:
            self._is_back(outlived)
            return
        attempt = self.attempts.pop(key, None)
        if attempt is None:  # cancelled by us
            return
        i, others = attempt.number, self.live[attempt.number]
        others.remove(attempt)
        attempt.future.release()
        if isinstance(outcome, tuple):
            self._is_back(attempt)
            if not others and attempt.worker is None:
                self.times.append(self.clock() - attempt.begun)
                self.longest = max(self.longest, self.times[-1])
            self._leave(i)
            if isinstance(outcome[0], UnetDeployError):
                raise outcome[0]
            yield outcome[0]
            return
        if others:  # another worker is at it
            return
        del self.live[i]
        if outcome is None:
            yield from self._send_again(attempt)
        elif isinstance(outcome, KilledWorker):
            died = f"{outcome.allowed_failures + 1} of them, the last at {outcome.last_worker.address}"
            yield from self._try_alone(attempt, died)
        else:
            raise outcome

    def _send_again(self, attempt: _Attempt) -> Iterator[Any]:
        """Submit a task anew whose input was lost with a worker; yield what it is given up with, if it is."""
        i = attempt.number
        if attempt.generation == self.generation:
            self.sent = None
        self.workers.look_soon()
        self.lost[i] = self.lost.get(i, 0) + 1
        if self.lost[i] <= MAX_SENT_AGAIN:
            (self.alone if attempt.is_alone else self.again).append(i)
        else:
            yield _give_up(i, "its input was lost with its worker, again and again", self.on_killed)

    def _try_alone(self, attempt: _Attempt, died: str) -> Iterator[Any]:
        """Let a task run alone that its workers died of; yield what it is given up with, if it is.

        The scheduler blames a worker's death on all tasks that it had.
        """
        if self.is_stopped:
            return
        if attempt.is_alone or len(self.alone) >= MAX_ALONE:
            reason = f"{died}; their logs say why, most often that memory ran out"
            yield _give_up(attempt.number, reason, self.on_killed)
        else:
            logger.warning("part %d: the workers that ran it died, %s; it waits to run alone", attempt.number, died)
            self.alone.append(attempt.number)

    def _leave(self, i: int) -> None:
        """Forget further attempts at a task that is done; those on stalled workers are kept to see whether they end."""
        self.lost.pop(i, None)
        for attempt in self.live.pop(i):
            del self.attempts[attempt.future.key]
            if attempt.worker in self.workers.stalled:
                self.outlived[attempt.future.key] = attempt
            else:
                attempt.future.cancel()

    def _is_back(self, attempt: _Attempt) -> None:
        if attempt.worker in self.workers.stalled:
            logger.warning("worker %s is back", attempt.worker)
            self.workers.stalled.discard(attempt.worker)

    def _look(self) -> None:
        """Do what follows from who is there, every few seconds."""
        if not self.workers.look():
            return
        for key, attempt in list(self.outlived.items()):
            if attempt.worker not in self.workers.threads:  # or the scheduler would run it once more
                self.outlived.pop(key).future.cancel()
        if self.workers.threads:
            self._help_late_tasks()
        elif self.should_stop():
            self.is_over = self.is_stopped = True
            self._drop_all()

    def _help_late_tasks(self) -> None:
        """Submit late tasks once more, to workers on which none is late."""
        now, stall_s = self.clock(), self.patience.stall_s
        late = [attempts[-1] for attempts in self.live.values() if now - attempts[-1].begun > stall_s]
        if not late or not self.times:
            return
        limit = max(stall_s, STALL_RATIO * statistics.median(self.times), 2 * self.longest)
        late = [attempt for attempt in late if now - attempt.begun > limit]
        held = self.workers.find_holders([attempt.future for attempt in late])
        if self.workers.threads.keys() <= self.workers.stalled | set(held.values()):
            return  # nobody else is there
        late = [attempt for attempt in late if attempt.future.key in held]
        for attempt in late:
            attempt.worker = held[attempt.future.key]
            if attempt.worker not in self.workers.stalled:
                self.workers.stalled.add(attempt.worker)
                self.sent = None  # the others may not be able to fetch it from there, so it is sent to them
                text = "worker %s has not done part %d in %.0f s: others do it too, and it gets no more until it ends"
                logger.warning(text, attempt.worker, attempt.number, now - attempt.begun)
        for attempt in late:
            self._submit(attempt.number, is_alone=attempt.is_alone)

    def _drop_all(self) -> None:
        futures = [a.future for a in (*self.attempts.values(), *self.outlived.values())]
        for tasks in (self.live, self.attempts, self.outlived, self.again, self.alone):
            tasks.clear()
        if futures and self.client.status == "running":
            self.client.cancel(futures)


def _answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a task; an error for the user is its answer, since Dask prints what a task raises, with all its calls."""
    try:
        return function(*arguments)
    except UnetDeployError as error:
        return error


def _give_up(i: int, reason: str, on_killed: Callable[[int, str], Any] | None) -> Any:
    if on_killed is not None:
        return on_killed(i, reason)
    raise SchedulerError(
        "workers died while they did a part of the work, one after the other",
        f"part {i}: {reason}",
        fix="look at the workers' logs; where memory ran out, give them more or allow less (--max-memory)",
    )
