"""Spans: nothing where nothing records, and what each thread noted where something does."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from unet_deploy.runtime.timeline import (
    DEVICE,
    HELPER,
    Recorded,
    carried,
    marker,
    recording,
    span,
    this_worker,
    time_of_day,
)


def names(recorded: Recorded) -> list[str]:
    return [mark[0] for mark in recorded.marks]


def test_where_nothing_records_nothing_is_made() -> None:
    assert span("read") is span("infer", "a note", is_device=True)
    with span("read") as given:
        assert given is None
    marker()("infer", 0.0, 1.0)
    assert carried(names) is names


def test_what_is_noted_has_its_time_its_block_and_its_note() -> None:
    before = time.time()
    with recording(7) as log:
        with span("read", "chunk 3"):
            time.sleep(0.002)
        (found,) = log.take().spans()
        assert not [*log.take().spans()]  # it was forgotten
    assert (found.name, found.block, found.note) == ("read", 7, "chunk 3")
    assert (found.worker, found.thread) == (this_worker(), threading.current_thread().name)
    assert found.seconds >= 0.002
    assert before - 9 < found.start_s < found.stop_s < time.time() + 9  # clocks are set


def test_spans_nest_and_errors_pass_through() -> None:
    with recording() as log:
        with pytest.raises(KeyError), span("read"), span("decode"):
            raise KeyError
        with span("infer", is_device=True):
            pass
        recorded = log.take()
    assert names(recorded) == ["decode", "read", "infer"]
    (_, decoded_from, decoded_to, _), (_, read_from, read_to, _), infer = recorded.marks
    assert read_from <= decoded_from <= decoded_to <= read_to
    assert recorded.device == (infer,)
    assert recorded.count == 4
    assert [found.thread for found in recorded.spans()][-1] == DEVICE


def test_a_recording_within_another_keeps_to_itself() -> None:
    with recording(thread="main") as outer:
        with span("journal"):
            pass
        with recording(1) as inner, span("read"):
            pass
        with span("finish"):
            pass
        assert names(inner.take()) == ["read"]
        recorded = outer.take()
    assert (names(recorded), recorded.thread, recorded.block) == (["journal", "finish"], "main", None)
    assert span("read") is span("infer")  # nothing records any more


def test_other_threads_do_not_record_unless_work_is_carried_to_them() -> None:
    def work(seconds: float) -> float:
        with span("in the thread"):
            time.sleep(seconds)
        return seconds

    with recording(3) as log, ThreadPoolExecutor(1) as pool:
        with span("write labels"):
            plain = pool.submit(work, 0.0)
            helped = pool.submit(carried(work), 0.002)
            assert (plain.result(), helped.result()) == (0.0, 0.002)
        recorded = log.take()
    assert names(recorded) == ["write labels"]
    (helper,) = (found for found in recorded.spans() if found.thread == HELPER)
    assert (helper.name, helper.block) == ("write labels", 3)
    assert helper.seconds >= 0.002


def test_what_is_carried_is_noted_even_if_it_fails() -> None:
    with recording() as log:
        with span("write labels"):
            fail = carried(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            fail()
        assert len(log.take().helpers) == 1


def test_the_engine_is_marked_from_any_thread() -> None:
    with recording(5) as log:
        mark = marker()
        other = threading.Thread(target=mark, args=("infer", 1.0, 2.0))
        other.start()
        other.join()
        (found,) = log.take().spans()
    assert (found.thread, found.block) == (DEVICE, 5)
    assert (found.start_s, found.stop_s) == (time_of_day(1.0), time_of_day(2.0))


def test_what_travels_back_is_small() -> None:
    with recording(1) as log:
        for _ in range(100):
            with span("infer", is_device=True):
                pass
        recorded = log.take()
    assert len(pickle.dumps(recorded)) < 100 * 60
    assert pickle.loads(pickle.dumps(recorded)) == recorded
