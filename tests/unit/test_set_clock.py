"""A clock that is set back wakes what waits for it; one that is merely slow does not."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.set_clock import SET_BACK
from unet_deploy.runtime._set_clock import LOOK_S, STEP_S, clock_watched


class Sender:
    """As dask's `BatchedSend`, as far as it waits."""

    def __init__(self) -> None:
        self.next_deadline: float | None = time.time() + 3600
        self.waker = SimpleNamespace(set=lambda: self.woken.append(True))
        self.woken: list[bool] = []


def make_client(sender: Sender, scheduler: Any) -> Any:
    loop = SimpleNamespace(add_callback=lambda function, *arguments: function(*arguments))
    scheduler.loop = loop
    return SimpleNamespace(
        loop=loop,
        scheduler_comm=sender,
        cluster=SimpleNamespace(scheduler=scheduler, workers={}),
        periodic_callbacks={},
    )


@pytest.mark.parametrize("step_s", [600.0, STEP_S / 10])
def test_what_waits_is_woken(step_s: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    ticking = SimpleNamespace(
        is_running=lambda: True, stop=lambda: calls.append("stop"), start=lambda: calls.append("start")
    )
    mine, theirs = Sender(), Sender()
    scheduler = SimpleNamespace(client_comms={"a": theirs}, periodic_callbacks={"tick": ticking})
    real, back = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() - back[0])
    with caplog.at_level(logging.WARNING, "unet_deploy"), clock_watched(make_client(mine, scheduler)):
        back[0] = step_s
        deadline = time.monotonic() + 10 * LOOK_S
        while not theirs.woken and time.monotonic() < deadline and step_s > 1:
            time.sleep(0.01)
        time.sleep(1.2 * LOOK_S)
    if step_s < 1:
        assert not mine.woken
        assert not caplog.records
        return
    assert mine.woken == theirs.woken == [True]
    assert mine.next_deadline is theirs.next_deadline is None
    assert calls == ["stop", "start"]
    (record,) = caplog.records
    assert record.getMessage() == "the clock of this machine was set back by 600.0 s"


PROGRAM = """
from unet_deploy.runtime.scheduling import connect, run_tasks

def task(shared, number):
    time.sleep(0.002)
    return number

with connect() as client:
    keep_setting_back()
    print(sorted(run_tasks(client, task, (None,), 200)) == list(range(200)))
"""


def test_tasks_go_on_while_the_clock_is_set_back_again_and_again() -> None:
    """Without the watch, one of these steps falls between two messages, and all is quiet for ten minutes."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SET_BACK + PROGRAM], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
