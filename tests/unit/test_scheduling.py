"""Work that its workers do not survive. What becomes of it on real ones: tests/faults/test_workers.py."""

from __future__ import annotations

import pytest

from unet_deploy.errors import SchedulerError
from unet_deploy.runtime.scheduling import _give_up


def test_a_part_that_kills_its_workers_is_an_error() -> None:
    with pytest.raises(SchedulerError, match=r"^workers died while they did a part of the work") as caught:
        _give_up(7, "worker tcp://10.0.0.1:4000 died", None)
    assert caught.value.details == ("part 7: worker tcp://10.0.0.1:4000 died",)
    assert caught.value.fix.startswith("look at the workers' logs")


def test_a_block_that_kills_its_workers_fails() -> None:
    assert _give_up(7, "they died", lambda i, reason: (i, reason)) == (7, "they died")
