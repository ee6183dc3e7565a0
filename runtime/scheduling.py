"""Where tasks run: a Dask client in this process, at an address, or the caller's own; and how they are submitted.

1. `connect` gives a client and closes only what it opened.
2. `run_tasks` sends what all tasks share once, and keeps a bounded number of them submitted, so that a million tasks
   cost the scheduler constant memory.
3. Workers may die and join. A task whose worker died is run by another; what was sent to workers that are gone is sent
   again. A task that takes its workers with it, one after the other, is given up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from unet_deploy.errors import SchedulerError
from unet_deploy.runtime.plan import BLOCKS_IN_FLIGHT

MAX_SENT_AGAIN = 10
"""How often a task is submitted anew because its input was lost with a worker."""


def run_tasks(
    client: Any,
    function: Callable[..., Any],
    shared: tuple[Any, ...],
    numbers: int | Iterable[int],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_killed: Callable[[int, str], Any] | None = None,
) -> Iterator[Any]:
    """Yield ``function(*shared, i)`` as they finish, a bounded number submitted at a time.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    function, shared
        The task, and what it takes before its number; the first of these is sent to the workers once.
    numbers
        The numbers i, or how many from 0 on.
    should_stop
        Asked before each task; once it says so, what is in flight is finished and nothing more begun.
    on_killed
        Gives the result of a task that its workers did not survive, from its number and the reason.

    Raises
    ------
    SchedulerError
        If a task is given up and there is no `on_killed`.
    """
    from distributed import KilledWorker, as_completed

    big, *small = shared
    sent = client.scatter(big, hash=False, broadcast=True)
    left = iter(range(numbers) if isinstance(numbers, int) else numbers)
    tasks: dict[str, int] = {}
    lost: dict[int, int] = {}

    def submit(i: int) -> Any:
        future = client.submit(function, sent, *small, i, pure=False)
        tasks[future.key] = i
        return future

    in_flight = 2 * sum(client.nthreads().values()) + 1
    first = [] if should_stop() else list(islice(left, in_flight))
    completed = as_completed([submit(i) for i in first], loop=client.loop)
    try:
        for future in completed:
            i = tasks.pop(future.key)
            if future.status in ("cancelled", "lost"):  # the only worker that held `sent` is gone
                lost[i] = lost.get(i, 0) + 1
                if lost[i] <= MAX_SENT_AGAIN:
                    sent = client.scatter(big, hash=False, broadcast=True)
                    completed.add(submit(i))
                    continue
                yield _give_up(i, "its input was lost with its worker, again and again", on_killed)
            else:
                try:
                    result = future.result()
                except KilledWorker as error:
                    result = _give_up(i, str(error).splitlines()[0], on_killed)
                yield result
            future.release()
            if not should_stop():
                for i in islice(left, 1):
                    completed.add(submit(i))
    except BaseException:
        client.cancel(list(completed.futures))
        raise


def _give_up(i: int, reason: str, on_killed: Callable[[int, str], Any] | None) -> Any:
    if on_killed is not None:
        return on_killed(i, reason)
    raise SchedulerError(
        "workers died while they did a part of the work, one after the other",
        f"part {i}: {reason}",
        fix="look at the workers' logs; where memory ran out, give them more or allow less (--memory)",
    )


@contextmanager
def connect(scheduler: Any | None) -> Iterator[Any]:
    """Give a Dask client: the one given, one for an address, or one in this process.

    Parameters
    ----------
    scheduler
        None, an address such as ``tcp://host:8786``, or a ``distributed.Client`` (which stays open).

    Raises
    ------
    SchedulerError
        If nothing answers at the address, or no worker is there.
    """
    if scheduler is not None and not isinstance(scheduler, str):
        yield scheduler
        return
    if scheduler is None:
        with _in_process_client() as client:
            yield client
        return
    try:
        client = _client_at(scheduler)
    except Exception as error:  # of a wrong address it may be OSError, ValueError or TypeError
        raise SchedulerError(
            f"no Dask scheduler answers at {scheduler}",
            f"{type(error).__name__}: {error}",
            fix="start one (dask scheduler), or leave --scheduler out to run in this process",
        ) from error
    with client:
        if not client.nthreads():
            raise SchedulerError(
                f"the Dask scheduler at {scheduler} has no workers",
                fix=f"start one where the volume can be read: dask worker {scheduler} --nthreads 2",
            )
        yield client


def _client_at(address: str) -> Any:
    """Return a client of the scheduler at an address; one that cannot be started is closed.

    Left to its finaliser, it would take a lock of distributed's, wherever the garbage collector happens to come by: in
    the start of another client, which holds that lock, the two would wait for each other for ever.
    """
    from distributed import Client

    client = Client.__new__(Client)
    try:
        Client.__init__(client, address, timeout=10, set_as_default=False)
    except BaseException:
        client.close()
        raise
    return client


@contextmanager
def _in_process_client() -> Iterator[Any]:
    """Give a client whose scheduler and worker live in this process, serve no page and touch no network but loopback.

    ``LocalCluster`` would open the diagnostics ports on all interfaces even with its dashboard off.
    """
    import dask
    from distributed import Client, Scheduler, SpecCluster, Worker

    quiet = {
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        # The network uses every core: nothing else may sample, monitor or tick beside it.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.tick.limit": "1h",
    }
    http = {"dashboard": False, "dashboard_address": "127.0.0.1:0", "protocol": "inproc://"}
    worker = {"cls": Worker, "options": {**http, "nthreads": BLOCKS_IN_FLIGHT, "memory_limit": 0}}  # the plan bounds it
    with (
        dask.config.set(quiet),
        SpecCluster(
            scheduler={"cls": Scheduler, "options": http},
            workers={0: worker},
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,  # the caller's own computations stay where they are
    ):
        yield client
