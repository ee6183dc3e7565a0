"""A run that must not go on is held, and goes on by itself."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from unet_deploy.errors import DeviceMemoryError
from unet_deploy.runtime.holding import check_memory, hold, reason_to_hold
from unet_deploy.runtime.machine import Memory, held_memory_bytes


def test_nothing_is_held_without_a_reason(tmp_path: Path) -> None:
    assert reason_to_hold(tmp_path, min_free_bytes=0) is None
    assert list(hold([3, None, 4], lambda: None)) == [3, None, 4]


def test_a_full_disk_and_a_request_are_reasons(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert reason_to_hold(tmp_path, min_free_bytes=free // 2) is None
    why = reason_to_hold(tmp_path, min_free_bytes=2 * free + 10**9)
    assert why is not None
    assert str(tmp_path) in why
    assert "are to stay free: free some space" in why
    assert reason_to_hold(tmp_path, min_free_bytes=0, should_pause=lambda: True) == "a pause was asked for"


def test_a_disk_that_does_not_answer_is_no_reason(tmp_path: Path) -> None:
    assert reason_to_hold(tmp_path / "gone", min_free_bytes=2**60) is None


def test_a_held_run_gives_none_says_so_once_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    answers: Iterator[str | None] = iter([None, "full", "full", None, "asked", None, None])
    with caplog.at_level(logging.INFO, logger="unet_deploy.runtime.holding"):
        given = list(hold([1, 2, 3, 4], lambda: next(answers)))
    assert given == [1, None, None, 2, None, 3, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "paused: full",
        "going on",
        "paused: asked",
        "going on",
    ]


@pytest.mark.parametrize("limit", [None, 3 * 10**9])
def test_a_run_that_does_not_fit_is_refused(limit: int | None) -> None:
    memory = Memory(total_bytes=8 * 10**9, available_bytes=4 * 10**9, limit_bytes=limit)
    check_memory(2 * 10**9, memory)
    known = "4.0" if limit is None else "3.0"
    smaller = "3200MB" if limit is None else "2400MB"
    with pytest.raises(DeviceMemoryError, match=rf"may need 5\.0 GB of memory, {known} GB are available") as caught:
        check_memory(5 * 10**9, memory)
    assert f"--max-memory {smaller}" in caught.value.fix
    if limit is None:  # what this process holds is in the peak, and no longer available
        check_memory(5 * 10**9, memory, held_bytes=10**9)


def test_what_this_process_holds_is_known_where_the_system_says_it() -> None:
    held = held_memory_bytes()
    assert (2**24 < held < 2**40) if Path("/proc/self/statm").exists() else held == 0


def test_a_machine_that_does_not_tell_is_not_checked() -> None:
    check_memory(2**60, Memory(total_bytes=None, available_bytes=None, limit_bytes=None))


@pytest.mark.skipif(os.name != "posix", reason="Windows has priority classes")
def test_low_priority_is_that_of_what_comes_after() -> None:
    import subprocess
    import sys

    program = (
        "import os\n"
        "from unet_deploy.runtime.machine import lower_priority\n"
        "before = os.nice(0)\n"
        "lower_priority()\n"
        "print(os.nice(0) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert 0 < int(done.stdout) <= 10
