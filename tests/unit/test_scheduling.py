"""How tasks are submitted, and to whom, with workers in this process. Real ones: tests/faults/test_workers.py."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, Status, get_worker

from unet_deploy.errors import ReadError, SchedulerError, UsageError
from unet_deploy.runtime._workers import AwakeClock, _forget_submissions
from unet_deploy.runtime.scheduling import Patience, _give_up, connect, run_tasks

QUICK = Patience(poll_s=0.02, check_s=0.1, stall_s=0.4, no_worker_s=0.6)


def echo(shared: str, i: int) -> tuple[str, int]:
    return shared, i


def where(_: str, i: int) -> tuple[int, Any]:
    time.sleep(0.02)
    return i, get_worker().name


RELEASED = threading.Event()
BEGUN: Counter[int] = Counter()


def stall_once(_: str, i: int) -> tuple[int, Any]:
    """Wait for ever, or until RELEASED, at the first attempt at number 7."""
    BEGUN[i] += 1
    if i == 7 and BEGUN[i] == 1:
        RELEASED.wait(60)
    time.sleep(0.01)
    return i, get_worker().name


def fail(_: str, i: int) -> int:
    raise RuntimeError(f"no {i}")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect() as found:
        yield found


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Two workers in this process, to which others can be added."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as found:
        yield found


def test_every_number_comes_once(client: Any) -> None:
    found = list(run_tasks(client, echo, ("shared",), 60))
    assert sorted(found) == [("shared", i) for i in range(60)]


def refuse(_: str, i: int) -> int:
    raise ReadError(f"part {i} cannot be read", fix="mend it")


def test_an_error_for_the_user_comes_as_it_is_and_dask_prints_nothing(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ReadError, match=r"^part 3 cannot be read\n  fix: mend it$"):
        list(run_tasks(client, refuse, ("shared",), [3]))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_nothing_to_do(client: Any) -> None:
    assert list(run_tasks(client, echo, ("shared",), 0)) == []
    assert list(run_tasks(client, echo, ("shared",), [None, None], patience=QUICK)) == []


def test_none_is_waited_out(client: Any) -> None:
    """What is in flight is yielded meanwhile, and the numbers are asked again."""
    seen: list[int] = []

    def numbers() -> Iterator[int | None]:
        yield 0
        while seen != [0]:
            yield None
        yield None
        yield from (1, 2)
        while len(seen) < 3:
            yield None
        yield 3

    for _, i in run_tasks(client, echo, ("shared",), numbers(), patience=QUICK):
        seen.append(i)
    assert sorted(seen[1:3]) == [1, 2]
    assert (seen[0], seen[3:]) == (0, [3])


def test_numbers_are_asked_again_while_something_runs(client: Any) -> None:
    """A block that runs for minutes does not keep the others from what has come meanwhile."""
    begun = time.monotonic()

    def numbers() -> Iterator[int | None]:
        yield 7
        while time.monotonic() - begun < 0.2:
            yield None
        yield 8

    BEGUN.clear()
    RELEASED.clear()
    patience = Patience(poll_s=0.02, check_s=0.1)
    run = run_tasks(client, stall_once, ("shared",), numbers(), patience=patience)
    assert next(run)[0] == 8
    RELEASED.set()
    assert [i for i, _ in run] == [7]


def test_a_stop_is_heard_while_there_is_nothing_to_do(client: Any) -> None:
    begun = time.monotonic()

    def nothing() -> Iterator[int | None]:
        while True:
            yield None

    patience = Patience(poll_s=3600)
    run = run_tasks(
        client, echo, ("x",), nothing(), should_stop=lambda: time.monotonic() - begun > 0.3, patience=patience
    )
    assert list(run) == []
    assert 0.3 < time.monotonic() - begun < 5


def test_a_stop_finishes_what_is_in_flight(client: Any) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    seen: list[int] = []
    for _, i in run_tasks(client, echo, ("x",), numbers(), should_stop=lambda: len(seen) >= 20):
        seen.append(i)
    assert sorted(seen) == taken
    assert 20 <= len(taken) <= 26


@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.slow)])
def test_a_bounded_number_is_known_to_the_scheduler(client: Any, count: int) -> None:
    """Nor are more numbers asked for than that."""
    ahead, known, done = 0, 0, 0
    taken = iter(range(count))

    def numbers() -> Iterator[int]:
        nonlocal ahead
        for i in taken:
            ahead = max(ahead, i - done)
            yield i

    for _ in run_tasks(client, echo, ("x",), numbers()):
        done += 1
        if done % 50 == 25:
            known = max(known, client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
    assert done == count
    assert ahead <= 2 * 2 + 1
    assert 1 <= known <= 2 * 2 + 1 + 8  # those released a moment ago are still there


def test_the_scheduler_keeps_no_note_of_every_task(client: Any) -> None:
    """Its spans would keep one for each call of `Client.submit`, for ever."""

    def count(dask_scheduler: Any) -> int:
        spans = dask_scheduler.extensions["spans"].spans.values()
        return sum(len(span.metadata["collections"]) for span in spans if span.metadata)

    client.run_on_scheduler(_forget_submissions)
    before = client.run_on_scheduler(count)
    assert len(list(run_tasks(client, echo, ("x",), 30))) == 30
    assert client.run_on_scheduler(count) > before + 20  # or there is nothing to forget
    patience = Patience(check_s=0.0)
    assert len(list(run_tasks(client, echo, ("x",), 30, patience=patience))) == 30
    assert client.run_on_scheduler(count) < before + 10


def test_what_a_task_raises_is_raised(client: Any) -> None:
    with pytest.raises(RuntimeError, match="no "):
        list(run_tasks(client, fail, ("x",), 20))
    assert sorted(run_tasks(client, echo, ("x",), 3)) == [("x", i) for i in range(3)]  # nothing of it is left


def test_a_run_that_is_left_early_is_cancelled(client: Any) -> None:
    run = run_tasks(client, echo, ("x",), 10**6)
    next(run)
    run.close()  # type: ignore[attr-defined]
    for _ in range(100):
        known = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
        if not known:
            break
        time.sleep(0.05)
    assert known == []


def test_workers_that_join_are_used(cluster: LocalCluster) -> None:
    found: list[Any] = []
    with Client(cluster, set_as_default=False) as client:
        for _, name in run_tasks(client, where, ("x",), 300, patience=QUICK):
            found.append(name)
            if len(found) == 20:
                cluster.scale(5)
    assert len(found) == 300
    assert set(found[:15]) <= {0, 1}
    assert set(found) == {0, 1, 2, 3, 4}


def test_a_late_task_is_done_by_another_worker(cluster: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Its first attempt still waits when the run is over; its worker got nothing more after it was found to be late."""
    BEGUN.clear()
    RELEASED.clear()
    late: list[float] = []
    names: list[Any] = []
    with caplog.at_level(logging.WARNING, "unet_deploy"), Client(cluster, set_as_default=False) as client:
        begun = time.monotonic()

        def numbers() -> Iterator[int | None]:
            yield from range(60)
            while not late:
                yield None
            yield from range(60, 80)

        found: list[int] = []
        for i, name in run_tasks(client, stall_once, ("x",), numbers(), patience=QUICK):
            found.append(i)
            if i == 7:
                late.append(time.monotonic() - begun)
            if i >= 60:
                names.append(name)
        RELEASED.set()
    assert sorted(found) == list(range(80))
    assert BEGUN[7] == 2
    assert 0.4 < late[0] < 10
    assert len(set(names)) == 1
    (said,) = [record.getMessage() for record in caplog.records if "has not done part 7" in record.getMessage()]
    assert "others do it too, and it gets no more until it ends" in said


def test_a_late_worker_that_comes_back_is_used_again(cluster: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    BEGUN.clear()
    RELEASED.clear()
    with caplog.at_level(logging.WARNING, "unet_deploy"), Client(cluster, set_as_default=False) as client:
        late: list[int] = []

        def numbers() -> Iterator[int | None]:
            yield from range(30)
            while not late:
                yield None
            RELEASED.set()
            for _ in range(20):
                yield None
            yield from range(30, 60)

        found: dict[int, Any] = {}
        count = 0
        for i, name in run_tasks(client, stall_once, ("x",), numbers(), patience=QUICK):
            found[i] = name
            count += 1
            if i == 7:
                late.append(i)
    assert (count, len(found)) == (60, 60)
    assert {found[i] for i in range(30, 60)} == {0, 1}
    assert any("is back" in record.getMessage() for record in caplog.records)


def test_the_client_of_this_process_works_on_as_many_tasks_as_it_is_told() -> None:
    with connect(threads=5) as client:
        assert [*client.nthreads().values()] == [5]


def test_a_task_that_everybody_is_late_with_is_waited_for() -> None:
    """There is nobody else to do it."""
    BEGUN.clear()
    RELEASED.clear()
    threading.Timer(1.5, RELEASED.set).start()
    with connect() as client:
        assert len(list(run_tasks(client, stall_once, ("x",), 10, patience=QUICK))) == 10
    assert BEGUN[7] == 1


def test_no_worker_for_a_while_is_an_error(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        run = run_tasks(client, where, ("x",), 1000, patience=QUICK)
        next(run)
        cluster.scale(0)
        with pytest.raises(SchedulerError, match=r"^no Dask worker was there for 1 s\n") as caught:
            list(run)
        address = client.scheduler.address
    assert caught.value.details == (
        f"the scheduler is {address}; the workers' logs, or the batch system's, say why they ended",
    )
    assert caught.value.fix == (
        f"start workers (dask worker {address} --nthreads 2), then give the same command: it goes on with what is done"
    )


def test_workers_that_are_all_paused_are_an_error() -> None:
    """Dask pauses a worker that is short of memory, and starts nothing on it until it has more."""

    def pause(dask_worker: Any) -> None:
        dask_worker.status = Status.paused

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        run = run_tasks(client, where, ("x",), 1000, patience=QUICK)
        next(run)
        client.run(pause)
        with pytest.raises(
            SchedulerError, match=r"^all 2 Dask workers are paused: no part was done in 1 s\n"
        ) as caught:
            list(run)
        address = client.scheduler.address
    assert caught.value.details == (f"the scheduler is {address}; Dask pauses a worker above 80 % of its memory limit",)
    assert caught.value.fix == ("start them with a larger --memory-limit, or 0 for none, then give the same command")


def test_workers_that_come_after_a_while_are_waited_for(cluster: LocalCluster) -> None:
    patience = Patience(poll_s=0.02, check_s=0.1, no_worker_s=60)
    with Client(cluster, set_as_default=False) as client:
        run = run_tasks(client, where, ("x",), 100, patience=patience)
        found = [next(run)[0]]
        cluster.scale(0)
        while client.nthreads():
            time.sleep(0.05)
        threading.Timer(0.5, cluster.scale, [1]).start()
        found += [i for i, _ in run]
    assert sorted(found) == list(range(100))


def test_a_stop_is_heard_while_there_is_no_worker(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        stops: list[bool] = []
        patience = Patience(check_s=0.1, no_worker_s=3600)
        run = run_tasks(client, where, ("x",), 1000, patience=patience, should_stop=lambda: bool(stops))
        next(run)
        cluster.scale(0)
        threading.Timer(0.5, stops.append, [True]).start()
        begun = time.monotonic()
        assert len(list(run)) < 20
        assert time.monotonic() - begun < 20


def test_a_client_that_is_closed_is_an_error(cluster: LocalCluster) -> None:
    client = Client(cluster, set_as_default=False)
    run = run_tasks(client, where, ("x",), 1000, patience=QUICK)
    next(run)
    client.close()
    with pytest.raises(SchedulerError, match=r"^the connection to the Dask scheduler was lost\n") as caught:
        list(run)
    assert caught.value.fix == (
        "start it and its workers anew, then give the same command: it goes on with what is done"
    )


def test_time_asleep_does_not_count() -> None:
    """A laptop that slept for an hour finds no task an hour late."""
    clock = AwakeClock(last=time.monotonic() - 3600)
    assert clock() <= 1.0
    assert clock() <= 1.1


def test_this_process_keeps_its_worker_when_it_was_stopped_for_long(client: Any) -> None:
    """The scheduler removes a worker that it has not heard of for minutes: with them, it was asleep itself."""
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl) is None


def test_a_part_that_kills_its_workers_is_an_error() -> None:
    with pytest.raises(SchedulerError, match=r"^workers died while they did a part of the work") as caught:
        _give_up(7, "worker tcp://10.0.0.1:4000 died", None)
    assert caught.value.details == ("part 7: worker tcp://10.0.0.1:4000 died",)
    assert caught.value.fix.startswith("look at the workers' logs")


def test_a_block_that_kills_its_workers_fails() -> None:
    assert _give_up(7, "they died", lambda i, reason: (i, reason)) == (7, "they died")


def test_a_scheduler_is_reached_by_its_file(tmp_path: Path) -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        protocol="tcp",
        host="127.0.0.1",
    ) as cluster:
        file = tmp_path / "scheduler.json"
        with Client(cluster, set_as_default=False) as other:
            other.write_scheduler_file(str(file))
        with connect(scheduler_file=file) as client:
            assert client.scheduler.address == cluster.scheduler_address
            assert sorted(run_tasks(client, echo, ("x",), 2)) == [("x", 0), ("x", 1)]


def refused(scheduler: Any = None, scheduler_file: Path | None = None) -> SchedulerError:
    with pytest.raises(SchedulerError) as caught, connect(scheduler, scheduler_file):
        raise AssertionError("unreachable")
    return caught.value


def test_a_scheduler_and_a_file_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, connect("tcp://127.0.0.1:8786", tmp_path / "s.json"):
        raise AssertionError("unreachable")
    error = caught.value
    assert error.headline == "a scheduler and a scheduler file were given, where one was expected"
    assert error.details == (f"the scheduler tcp://127.0.0.1:8786 and the file {tmp_path / 's.json'}",)
    assert error.fix == "leave --scheduler or --scheduler-file out"


def test_a_scheduler_file_that_is_absent(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    error = refused(scheduler_file=file)
    assert error.headline == f"there is no scheduler file {file}"
    assert error.fix == f"start one: dask scheduler --scheduler-file {file}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"tcp://127.0.0.1:8786", "JSONDecodeError: Expecting value"),
        (b"\xff\xfe{}", "UnicodeDecodeError"),
        (b"{}", "no address"),
        (b"[1]", "no address"),
        (b"null", "no address"),
        (b"[" * 10**6, "RecursionError"),
    ],
    ids=["text", "bytes", "no address", "list", "null", "deep"],
)
def test_a_file_that_is_not_of_a_scheduler(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(content)
    error = refused(scheduler_file=file)
    assert error.headline == f"{file} is not the file of a Dask scheduler"
    (detail,) = error.details
    assert detail.startswith(f"a JSON object with an address was expected; {said}")
    assert error.fix == f"let a scheduler write it: dask scheduler --scheduler-file {file}"


def test_the_file_of_a_scheduler_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"address": "nowhere"}), encoding="utf-8")
    error = refused(scheduler_file=file)
    assert error.headline == "no Dask scheduler answers at nowhere"
    assert error.details[1:] == (f"the address is that in {file}, which a scheduler leaves behind when it is killed",)
    assert error.fix == (
        f"start one (dask scheduler --scheduler-file {file}), or leave --scheduler-file out to run in this process"
    )
