"""The rule by which an engine's time is accounted for, on spans made by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from unet_deploy.runtime.device_use import (
    CAUSES,
    LATE_BLOCKS,
    MOST_GAPS,
    DeviceAccount,
    DeviceUse,
    innermost,
    measure_device,
)
from unet_deploy.runtime.timeline import DEVICE, HELPER, Span


def made(name: str, start: float, stop: float, *, thread: str = "1", block: int = 0, worker: str = "w") -> Span:
    return Span(name=name, worker=worker, thread=thread, start_s=start, stop_s=stop, block=block)


def tile(start: float, stop: float, **where: object) -> list[Span]:
    """Return a tile's spans: of the thread that ran it, and of the engine."""
    own = made("infer", start, stop, **where)  # type: ignore[arg-type]
    return [own, made("infer", start, stop, **{**where, "thread": DEVICE})]  # type: ignore[arg-type]


def test_one_thread_keeps_the_engine_waiting_with_all_that_it_does() -> None:
    use = measure_device(
        [
            *(made("read", 0, 10), made("decode", 2, 9)),  # before the first tile: nobody waits yet
            *(made("hold", 10, 20), made("normalise", 10, 11), *tile(11, 14), made("label", 14, 16), *tile(16, 19)),
            *(made("label", 19, 20), made("write", 20, 26), made("write labels", 21, 23)),
            *(made("read", 27, 30, block=1), made("decode", 28, 29, block=1)),  # 26 to 27: nobody does anything
            *(made("wait", 30, 30.5, block=1), made("hold", 30.5, 40, block=1), *tile(31, 39, block=1)),
            made("label", 39, 40, block=1),  # after the last tile
        ]
    )
    assert use.between_s == 39 - 11
    assert use.busy_s == 3 + 3 + 8
    assert use.waited == {
        "writing": 6,
        "labelling": 3,
        "reading": 3,
        "scheduling": 1,
        "handing over": 0.5,
        "other": 0.5,
    }
    assert use.busy_share == 0.5
    assert use.share_of(56) == 0.25
    longest = use.gaps[0]
    assert (longest.start_s, longest.stop_s, longest.seconds) == (19, 31, 12)
    assert longest.causes == {
        "labelling": 1,
        "writing": 6,
        "scheduling": 1,
        "reading": 3,
        "handing over": 0.5,
        "other": 0.5,
    }


def test_a_second_thread_hides_what_the_first_does() -> None:
    use = measure_device(
        [
            *(made("hold", 0, 10), *tile(0, 9), made("label", 9, 10), made("write", 10, 20)),
            *(made("read", 0, 5, thread="2", block=1), made("wait", 5, 10, thread="2", block=1)),
            *(made("hold", 10, 21, thread="2", block=1), *tile(11, 20, thread="2", block=1)),
        ]
    )
    # From 9 to 10 the other thread has the engine and labels; its wait is not what to blame.
    assert use.waited == {"labelling": 1, "other": 1}
    assert use.busy_s == 18


def test_the_thread_that_brings_the_next_tile_is_answerable_for_what_nobody_holds() -> None:
    use = measure_device(
        [
            *(*tile(0, 2), made("write", 2, 10)),
            *(made("decode", 0, 4, thread="2", block=1), made("hold", 5, 8, thread="2", block=1)),
            *tile(6, 8, thread="2", block=1),
        ]
    )
    assert use.waited == {"reading": 2, "scheduling": 1, "other": 1}


def test_batches_on_their_way_together_count_once() -> None:
    spans = [made("infer", 0, 12)]  # a thread that serves an engine's line
    spans += [made("infer", start, stop, thread=DEVICE) for start, stop in ((1, 4), (2, 6), (3, 5), (8, 11))]
    spans += [made("label", 6, 7), made("gather", 7, 8)]
    use = measure_device(spans)
    assert (use.between_s, use.busy_s) == (10, 8)
    assert use.waited == {"labelling": 1, "normalising": 1}


def test_who_serves_the_engines_line_is_answerable_for_it() -> None:
    use = measure_device(
        [
            *(made("infer", 0, 9), made("infer", 0, 2, thread=DEVICE), made("gather", 3, 5)),
            *(made("infer", 1, 9, thread="2", block=1), made("infer", 5, 8, thread=DEVICE, block=1)),
        ]
    )
    assert use.waited == {"other": 1, "normalising": 2}


def test_each_worker_has_an_engine_of_its_own() -> None:
    spans = [*tile(0, 4), *tile(6, 10), *tile(100, 104, worker="v"), *tile(105, 110, worker="v")]
    use = measure_device(spans)
    assert (use.workers, use.between_s, use.busy_s) == (2, 20, 17)
    assert use.waited == {"scheduling": 3}
    assert use.share_of(17) == 0.5
    assert [gap.worker for gap in use.gaps] == ["w", "v"]


def test_helpers_are_not_what_an_engine_waits_for() -> None:
    use = measure_device([*tile(0, 1), made("write labels", 1, 5, thread=HELPER), made("write", 1, 2), *tile(3, 4)])
    assert use.waited == {"writing": 1, "scheduling": 1}


@pytest.mark.parametrize("spans", [[], [made("read", 0, 1)], tile(3, 3)])
def test_no_tile_no_time(spans: list[Span]) -> None:
    use = measure_device(spans)
    assert (use.between_s, use.busy_s, use.waited_s, use.waited, use.gaps) == (0, 0, 0, {}, ())
    assert use.busy_share == 1
    assert DeviceUse(workers=0, between_s=0, busy_s=0, waited={}).share_of(5) == 0


def test_as_json() -> None:
    use = measure_device([*tile(0, 1), made("decode", 1, 1.25), *tile(1.25, 2)])
    assert use.to_object(4.0) == {
        "workers": 1,
        "busy_s": 1.75,
        "busy_share": 0.875,
        "busy_share_of_run": 0.4375,
        "waited_s": 0.25,
        "waited": {"reading": 0.25},
        "longest_waits": [{"worker": "w", "start_s": 1, "seconds": 0.25, "waited": {"reading": 0.25}}],
    }


def test_innermost_leaves_out_what_is_empty_and_joins_nothing() -> None:
    spans = [made("a", 0, 10), made("b", 2, 4), made("c", 2, 3), made("empty", 5, 5), made("d", 10, 12)]
    assert innermost(spans) == [(0, 2, "a"), (2, 3, "c"), (3, 4, "b"), (4, 5, "a"), (5, 10, "a"), (10, 12, "d")]
    assert innermost([]) == []


def long_run(blocks: int, seed: int) -> list[list[Span]]:
    """Return the tasks of two threads that share an engine, in the order in which they end."""
    draw = random.Random(seed)
    free = {"1": 0.0, "2": 0.0}
    engine = 0.0
    tasks = []
    for block in range(blocks):
        thread = min(free, key=lambda name: free[name])
        at = free[thread] + draw.random()
        read = at + draw.random()
        spans = [made("read", at, read, thread=thread, block=block)]
        at = begun = max(read, engine)
        for _ in range(draw.randint(0, 3)):
            spans.append(made("normalise", at, at + 0.1, thread=thread, block=block))
            spans += tile(at + 0.1, at + 1, thread=thread, block=block)
            at += 1 + draw.random() / 10
        engine = at
        spans.append(made("hold", begun, at, thread=thread, block=block))
        free[thread] = at + draw.random()
        spans.append(made("write", at, free[thread], thread=thread, block=block))
        tasks.append(spans)
    return sorted(tasks, key=lambda spans: spans[-1].stop_s)


def total(account: DeviceAccount, tasks: Sequence[list[Span]]) -> DeviceUse:
    for spans in tasks:
        account.add(spans)
    return account.result()


@pytest.mark.parametrize("seed", range(3))
def test_a_long_run_is_summed_up_on_the_way_as_it_is_at_once(seed: int) -> None:
    tasks = long_run(5 * LATE_BLOCKS, seed)
    whole = measure_device(span for spans in tasks for span in spans)
    along = total(DeviceAccount(), tasks)
    assert along.busy_s == pytest.approx(whole.busy_s)
    assert along.between_s == pytest.approx(whole.between_s)
    assert along.waited == pytest.approx(whole.waited)
    assert [gap.start_s for gap in along.gaps] == [gap.start_s for gap in whole.gaps]
    assert len(along.gaps) == MOST_GAPS
    assert sum(along.waited.values()) == pytest.approx(along.waited_s)
    assert set(along.waited) <= {*CAUSES.values(), "scheduling", "other"}


def test_what_is_held_does_not_grow() -> None:
    account = DeviceAccount()
    most = 0
    for number, spans in enumerate(long_run(8 * LATE_BLOCKS, 1)):
        account.add(spans)
        worker = account._workers["w"]
        held = len(worker.tiles) + len(worker.held) + sum(map(len, worker.did.values()))
        if number < 4 * LATE_BLOCKS:
            most = max(most, held)
        assert held <= 1.2 * most


def test_empty_blocks_are_not_held_either() -> None:
    account = DeviceAccount()
    for block in range(4 * LATE_BLOCKS):
        account.add([made("read", block, block + 0.5, block=block)])
    worker = account._workers["w"]
    assert sum(map(len, worker.did.values())) < 2 * LATE_BLOCKS
    assert account.result().workers == 0
