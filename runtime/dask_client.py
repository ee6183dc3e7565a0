"""The Dask client that a run works through: one of this process, of a scheduler elsewhere, or the caller's own.

1. Nothing given: scheduler and worker live in this process, serve no page and touch no network but loopback.
2. An address, or the file that ``dask scheduler --scheduler-file`` wrote: what answers there, if it has workers.
3. A ``distributed.Client``: that, and it stays open. `connect` closes only what it opened.
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unet_deploy.errors import SchedulerError, UsageError
from unet_deploy.runtime._set_clock import clock_watched
from unet_deploy.runtime.plan import BLOCKS_IN_FLIGHT


def runs_here(scheduler: Any | None = None, scheduler_file: str | Path | None = None) -> bool:
    """Tell whether blocks run in this process: nobody named another, or gave a client with workers in this one."""
    if scheduler_file is not None or isinstance(scheduler, str):
        return False
    address = getattr(getattr(scheduler, "scheduler", None), "address", "")
    return scheduler is None or str(address).startswith("inproc://")


@contextmanager
def connect(
    scheduler: Any | None = None, scheduler_file: str | Path | None = None, *, threads: int = BLOCKS_IN_FLIGHT
) -> Iterator[Any]:
    """Give a Dask client: the one given, one for an address or a scheduler file, or one in this process.

    Parameters
    ----------
    scheduler
        None, an address such as ``tcp://host:8786``, or a ``distributed.Client`` (which stays open).
    scheduler_file
        The file that ``dask scheduler --scheduler-file`` wrote; in place of an address.
    threads
        How many blocks the client in this process works on at once; of no effect on another.

    Raises
    ------
    UsageError
        If both are given.
    SchedulerError
        If the file is absent or none of a scheduler, nothing answers at the address, or no worker is
        there.
    """
    if scheduler is not None and scheduler_file is not None:
        raise UsageError(
            "a scheduler and a scheduler file were given, where one was expected",
            f"the scheduler {scheduler} and the file {scheduler_file}",
            fix="leave --scheduler or --scheduler-file out",
        )
    if scheduler is None and scheduler_file is None:
        with _in_process_client(threads) as client:
            yield client
        return
    if scheduler is not None and not isinstance(scheduler, str):
        yield scheduler
        return
    found: tuple[str, ...] = ()
    if scheduler_file is None:
        assert isinstance(scheduler, str)
        address, where = scheduler, {"address": scheduler}
        to_worker = scheduler
    else:
        address, where = read_scheduler_file(scheduler_file), {"scheduler_file": str(scheduler_file)}
        found = (f"the address is that in {scheduler_file}, which a scheduler leaves behind when it is killed",)
        to_worker = f"--scheduler-file {scheduler_file}"
    try:
        client = _start_client(**where)
    except Exception as error:  # of a wrong address it may be OSError, ValueError or TypeError
        raise SchedulerError(
            f"no Dask scheduler answers at {address}",
            f"{type(error).__name__}: {error}",
            *found,
            fix="start one (dask scheduler), or leave --scheduler out to run in this process"
            if scheduler_file is None
            else f"start one (dask scheduler --scheduler-file {scheduler_file}), or leave --scheduler-file out to run "
            "in this process",
        ) from error
    with client:
        if not client.nthreads():
            raise SchedulerError(
                f"the Dask scheduler at {address} has no workers",
                *found,
                fix=f"start one where the volume can be read: dask worker {to_worker} --nthreads 2",
            )
        with clock_watched(client):
            yield client


@contextmanager
def imported_beside() -> Iterator[None]:
    """Import Dask in a thread, which takes a quarter of a second; for what leaves Python's lock free meanwhile.

    It has ended when the context does, so that nobody meets a package that is half there. What is missing is said by
    whoever needs it.
    """
    thread = threading.Thread(target=_import_quietly, name="import", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import_quietly() -> None:
    with suppress(Exception):  # whatever a broken package raises
        importlib.import_module("distributed")


def read_scheduler_file(path: str | Path) -> str:
    """Return the address in the file that ``dask scheduler --scheduler-file`` wrote.

    Raises
    ------
    SchedulerError
        If the file is absent, cannot be read, or is none of a scheduler.
    """
    start = f"dask scheduler --scheduler-file {path}"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        address = found["address"]
    except FileNotFoundError as error:
        raise SchedulerError(
            f"there is no scheduler file {path}",
            "a scheduler writes it when it starts, where all machines of the cluster should see it",
            fix=f"start one: {start}",
        ) from error
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}" if not isinstance(error, LookupError | TypeError) else "no address"
        raise SchedulerError(
            f"{path} is not the file of a Dask scheduler",
            f"a JSON object with an address was expected; {said}",
            fix=f"let a scheduler write it: {start}",
        ) from error
    return str(address)


def _start_client(**where: str) -> Any:
    """Return a client of the scheduler at an address or of a file; one that cannot be started is closed.

    Left to its finaliser, it would take a lock of distributed's, wherever the garbage collector happens to come by: in
    the start of another client, which holds that lock, the two would wait for each other for ever.
    """
    from distributed import Client

    client = Client.__new__(Client)
    try:
        Client.__init__(client, timeout=10, set_as_default=False, **where)
    except BaseException:
        client.close()
        raise
    return client


@contextmanager
def _in_process_client(threads: int) -> Iterator[Any]:
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
        # A process that was stopped for an hour, or a laptop that slept, would remove its own worker when it wakes.
        "distributed.scheduler.worker-ttl": None,
    }
    http = {"dashboard": False, "dashboard_address": "127.0.0.1:0", "protocol": "inproc://"}
    worker = {"cls": Worker, "options": {**http, "nthreads": threads, "memory_limit": 0}}  # the plan bounds it
    with (
        dask.config.set(quiet),
        SpecCluster(
            scheduler={"cls": Scheduler, "options": http},
            workers={0: worker},
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,  # the caller's own computations stay where they are
        clock_watched(client),
    ):
        yield client
