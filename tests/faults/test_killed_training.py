"""A training that is killed, or whose disk fills up, goes on as if nothing had been.

Run as a module, this file is the training that is killed: ``python -m tests.faults.test_killed_training STATE EVERY``.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra 'train' is not installed")

from tests.discs import make_discs
from tests.tiny import no_file_above
from unet_deploy.errors import NoSpaceError
from unet_deploy.training.config import About, TrainingConfig
from unet_deploy.training.loop import Progress, TrainingResult, train_unet

ROOT = Path(__file__).resolve().parents[2]
STEPS = 100


def train(
    state: Path | None,
    *,
    every: int,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **changes: Any,
) -> TrainingResult:
    config = TrainingConfig(
        depth=1,
        base_width=4,
        dropout=0.5,
        tile_side=44,
        steps=STEPS,
        warm_up_steps=2,
        validation_every_steps=every,
        learning_rate=5e-3,
        device="cpu",
        threads=1,
        **changes,
    )
    data = make_discs(2, has_cells=True)
    return train_unet(data, config, about=About(name="discs"), state_path=state, resume=resume, on_progress=on_progress)


def require_equal(came: TrainingResult, expected: TrainingResult) -> None:
    assert came.history.losses == expected.history.losses
    assert came.history.validations == expected.history.validations
    assert came.best == expected.best
    ours, theirs = came.model.state_dict(), expected.model.state_dict()
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def kill_a_training(state: Path, every: int) -> None:
    """Start a training, wait for its state, and kill it at a moment nobody chose."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.test_killed_training", str(state), str(every)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        for _ in range(1200):
            if state.exists():
                break
            assert program.poll() is None, program.communicate()
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.5))
        assert program.poll() is None, program.communicate()  # still at work, or this shows nothing
    finally:
        program.kill()
        program.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("every", [10, 1])  # with 1, most of the time goes into writing the state
def test_killed_and_resumed_is_unbroken(tmp_path: Path, every: int) -> None:
    state = tmp_path / "state.pt"
    kill_a_training(state, every)
    steps: list[int] = []
    resumed = train(state, every=every, resume=True, on_progress=lambda p: steps.append(p.step))
    assert steps == list(range(steps[0], STEPS + 1))
    assert steps[0] > every  # it did not begin anew
    require_equal(resumed, train(None, every=every))


def test_a_disk_that_fills_up_costs_the_steps_since_the_last_state(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    with ExitStack() as stack:

        def fill(progress: Progress) -> None:
            if progress.step == 25:
                stack.enter_context(no_file_above(1000))

        with pytest.raises(NoSpaceError, match=r"the disk is full: state\.pt needs 0\.\d MiB") as caught:
            train(state, every=10, on_progress=fill)
    assert "what stood there before is whole" in str(caught.value)
    assert "fix: free some space and go on with --resume" in str(caught.value)
    assert list(tmp_path.iterdir()) == [state]
    steps: list[int] = []
    resumed = train(state, every=10, resume=True, on_progress=lambda p: steps.append(p.step))
    assert steps[0] == 21
    require_equal(resumed, train(None, every=10))


def test_what_a_kill_in_the_midst_of_writing_leaves_is_not_read(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    train(state, every=50, max_seconds=1e-6)
    state.with_name(f".{state.name}.4711.part").write_bytes(state.read_bytes()[:1000])
    resumed = train(state, every=50, resume=True)
    assert resumed.history.losses == train(None, every=50).history.losses


if __name__ == "__main__":
    train(Path(sys.argv[1]), every=int(sys.argv[2]), on_progress=lambda _: time.sleep(0.05))
