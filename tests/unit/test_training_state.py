"""A run that was broken off and resumed is the unbroken run, to the last digit; and no other run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from tests.discs import make_discs  # noqa: E402
from unet_deploy.errors import CheckpointError, ModelNotFoundError  # noqa: E402
from unet_deploy.training.augment import AugmentationConfig  # noqa: E402
from unet_deploy.training.config import About, TrainingConfig  # noqa: E402
from unet_deploy.training.data import TrainingData  # noqa: E402
from unet_deploy.training.loop import Progress, TrainingResult, make_optimiser, train_unet  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402
from unet_deploy.training.state import (  # noqa: E402
    STATE_KEY,
    STATE_VERSION,
    History,
    RunIdentity,
    TrainingState,
    hash_data,
    load_state,
    save_state,
)

SMALL = TrainingConfig(
    depth=1,
    base_width=4,
    dropout=0.5,
    tile_side=44,
    steps=11,
    warm_up_steps=2,
    validation_every_steps=3,
    learning_rate=5e-3,
    device="cpu",
    threads=1,
)
CPU = torch.device("cpu")


class StoppedError(Exception):
    """Stands for whatever ends a run: a kill leaves the same file."""


def train(path: Path | None, config: TrainingConfig = SMALL, *, resume: bool = False, stop: int = 0) -> TrainingResult:
    """Train on discs told apart; with `stop`, raise after so many steps."""

    def watch(progress: Progress) -> None:
        if progress.step == stop:
            raise StoppedError

    return train_unet(
        make_discs(2, has_cells=True),
        config,
        about=About(name="discs"),
        state_path=path,
        resume=resume,
        on_progress=watch,
    )


def require_equal(came: TrainingResult, expected: TrainingResult) -> None:
    """All that a run gives is the same, bit for bit, but the time it took."""
    assert came.history.losses == expected.history.losses
    assert came.history.validations == expected.history.validations
    assert (came.best, came.steps) == (expected.best, expected.steps)
    ours, theirs = came.model.state_dict(), expected.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert replace(came.card.training, seconds=0) == replace(expected.card.training, seconds=0)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The state of a run broken off after its first validation."""
    with pytest.raises(StoppedError):
        train(tmp_path / "state.pt", stop=4)
    return tmp_path / "state.pt"


@pytest.mark.parametrize("stop", [3, 5, 9])
@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "adam"},
        {"optimiser": "sgd", "momentum": 0.99},
        {"augmentation": AugmentationConfig(deformation="field", field_sigma_px=6.0)},
        {"weight_averaging": 0.9, "sampling": "cells"},
    ],
    ids=["adam", "sgd", "field", "averaged"],
)
def test_broken_and_resumed_is_unbroken(tmp_path: Path, changes: dict[str, Any], stop: int) -> None:
    config = replace(SMALL, **changes)
    unbroken = train(None, config)
    with pytest.raises(StoppedError):
        train(tmp_path / "state.pt", config, stop=stop)
    torch.manual_seed(99)  # the caller's generator has no say
    resumed = train(tmp_path / "state.pt", config, resume=True)
    require_equal(resumed, unbroken)
    assert len(set(unbroken.history.losses)) == 11


def test_a_run_may_be_broken_more_than_once(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for stop in (4, 7, 10):
        with pytest.raises(StoppedError):
            train(path, resume=stop > 4, stop=stop)
    require_equal(train(path, resume=True), train(None))


def test_a_run_that_is_over_gives_its_result_again(tmp_path: Path) -> None:
    over = train(tmp_path / "state.pt")
    require_equal(train(tmp_path / "state.pt", resume=True), over)


def test_a_time_limit_may_differ_since_it_only_ends_a_run(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    ended = train(path, replace(SMALL, max_seconds=1e-6))
    assert ended.steps == 1
    resumed, unbroken = train(path, resume=True), train(None)
    assert resumed.history.losses == unbroken.history.losses
    assert resumed.history.validations == [*ended.history.validations, *unbroken.history.validations]


def test_the_time_spent_before_counts(tmp_path: Path, broken: Path) -> None:
    before = load_state(broken, RunIdentity.of(make_discs(2, has_cells=True), SMALL, CPU)).seconds
    assert 0 < before < train(broken, resume=True).seconds


def test_without_resume_a_run_begins_anew_and_replaces_the_state(broken: Path) -> None:
    require_equal(train(broken), train(None))
    assert load_state(broken, RunIdentity.of(make_discs(2, has_cells=True), SMALL, CPU)).step == 11
    assert [p.name for p in broken.parent.iterdir()] == ["state.pt"]


def test_the_state_is_written_before_the_report_is_made(tmp_path: Path) -> None:
    """A report that fails, on a full disk say, costs no step."""
    path, steps = tmp_path / "state.pt", []
    data = make_discs(2, has_cells=True)

    def report(_: UNet, history: History) -> None:
        steps.append((len(history.losses), load_state(path, RunIdentity.of(data, SMALL, CPU)).step))

    train_unet(data, SMALL, about=About(name="discs"), state_path=path, on_validation=report)
    assert steps == [(3, 3), (6, 6), (9, 9), (11, 11)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 12}, ["steps: 12 now, 11 in the broken run"]),
        ({"seed": 7}, ["seed: 7 now, 0 in the broken run"]),
        (
            {"optimiser": "sgd", "learning_rate": 0.1},
            ["learning_rate: 0.1 now, 0.005 in the broken run", "optimiser: sgd now, adam in the broken run"],
        ),
        (
            {"augmentation": AugmentationConfig(displacement_std_px=3)},
            ["augmentation.displacement_std_px: 3 now, 10.0 in the broken run"],
        ),
        ({"threads": 3}, ["threads: 3 now, 1 in the broken run"]),
        ({"best_by": "seg"}, ["best_by: seg now, None in the broken run"]),
    ],
)
def test_another_run_is_refused_and_the_difference_named(
    broken: Path, changes: dict[str, Any], expected: list[str]
) -> None:
    before = broken.read_bytes()
    with pytest.raises(CheckpointError, match=rf"is of another run: {len(expected)} difference\(s\)") as caught:
        train(broken, replace(SMALL, **changes), resume=True)
    assert list(caught.value.details) == expected
    assert "fix: give the settings and data of the broken run, or train anew without --resume" in str(caught.value)
    assert broken.read_bytes() == before


def test_other_data_and_another_device_are_refused(broken: Path) -> None:
    other = RunIdentity.of(make_discs(1, has_cells=True), SMALL, torch.device("cuda", 1))
    with pytest.raises(CheckpointError, match=r"3 difference\(s\)") as caught:
        load_state(broken, other)
    assert list(caught.value.details) == [
        "device: cuda now, cpu in the broken run",
        "threads: None now, 1 in the broken run",
        "the images, their labels or their split are not those of the broken run",
    ]


def change_label(data: TrainingData) -> TrainingData:
    label = data.training[1].label.copy()
    label[0, 0] ^= 1
    return replace(data, training=(data.training[0], replace(data.training[1], label=label), data.training[2]))


def test_all_that_training_takes_from_the_data_is_in_their_hash() -> None:
    data = make_discs(2, has_cells=True)
    first = data.training[0]
    changes: list[Callable[[TrainingData], TrainingData]] = [
        change_label,
        lambda d: replace(d, training=d.training[::-1]),
        lambda d: replace(d, validation=d.validation[:1]),
        lambda d: replace(d, training=d.training[:2], validation=(d.training[2], *d.validation)),
        lambda d: replace(d, training=(replace(first, stem="other"), *d.training[1:])),
        lambda d: replace(d, training=(replace(first, image=first.image + 1), *d.training[1:])),
        lambda d: replace(d, training=(replace(first, cells=None), *d.training[1:])),
        lambda d: replace(d, training=(replace(first, instances=None), *d.training[1:])),
        lambda d: replace(d, training=(replace(first, ignored=np.zeros((40, 56), np.bool_)), *d.training[1:])),
        lambda d: replace(d, training=(replace(first, grey_range=(1.0, 2.0)), *d.training[1:])),
        lambda d: replace(d, mean=math.nextafter(d.mean, 0)),
        lambda d: replace(d, std=d.std * 2),
        lambda d: replace(d, classes=("disc", "ground")),
        lambda d: replace(d, class_pixels=(1, 2)),
        lambda d: replace(d, percentiles=(1, 99)),
        lambda d: replace(d, cell_class=0),
    ]
    hashes = [hash_data(data), *(hash_data(change(data)) for change in changes)]
    assert len(set(hashes)) == 1 + len(changes)
    assert hash_data(make_discs(2, has_cells=True)) == hashes[0]


def test_a_state_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no training to resume") as caught:
        train(tmp_path / "state.pt", resume=True)
    text = str(caught.value)
    assert "state.pt does not exist" in text
    assert "a run writes it at its first validation" in text
    assert "fix: train without --resume" in text


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_state_that_was_cut_off(broken: Path, share: float) -> None:
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="is damaged: torch cannot read it"):
        train(broken, resume=True)


def test_a_state_with_a_flipped_bit_anywhere(broken: Path) -> None:
    """Whatever the damage, it is ours to name; torch alone would read on past a wrong checksum."""
    whole, identity = broken.read_bytes(), RunIdentity.of(make_discs(2, has_cells=True), SMALL, CPU)
    expected, random, refusals = load_state(broken, identity), np.random.default_rng(0), list[str]()
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        broken.write_bytes(damaged)
        try:
            state = load_state(broken, identity)
        except CheckpointError as error:
            refusals.append(str(error))
        else:  # padding, and dates that nobody reads
            assert all(torch.equal(state.model[name], expected.model[name]) for name in expected.model)
    assert len(refusals) > 30
    assert all("damaged" in refusal for refusal in refusals)


@pytest.mark.parametrize("version", [STATE_VERSION + 1, "1", None])
def test_another_version(broken: Path, version: Any) -> None:
    content = torch.load(broken, weights_only=True)
    torch.save({**content, STATE_KEY: version}, broken)
    with pytest.raises(
        CheckpointError, match=f"is no training state of this release, version {STATE_VERSION}"
    ) as caught:
        train(broken, resume=True)
    assert "fix: use the run folder of the training that was broken off" in str(caught.value)


def test_a_checkpoint_is_no_state(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="is no training state of this release"):
        train(tiny_checkpoint, resume=True)


@pytest.mark.parametrize(
    "changes", [{"history": None}, {"history": "{}"}, {"identity": "[]"}, {"best": "{"}, {"identity": '{"a": 1}'}]
)
def test_a_state_with_parts_changed(broken: Path, changes: dict[str, Any]) -> None:
    torch.save({**torch.load(broken, weights_only=True), **changes}, broken)
    with pytest.raises(CheckpointError, match="is a training state with parts missing or changed"):
        train(broken, resume=True)


def test_a_state_with_a_part_missing(broken: Path) -> None:
    content = torch.load(broken, weights_only=True)
    del content["optimiser"]
    torch.save(content, broken)
    with pytest.raises(CheckpointError, match="parts missing or changed") as caught:
        train(broken, resume=True)
    assert "KeyError: 'optimiser'" in str(caught.value)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_in_a_state_do_not_run(tmp_path: Path, broken: Path) -> None:
    torch.save({**torch.load(broken, weights_only=True), "extra": Bomb(tmp_path / "trace")}, broken)
    with pytest.raises(CheckpointError, match="holds pickled objects; loading them could run code"):
        train(broken, resume=True)
    assert not (tmp_path / "trace").exists()


def test_what_is_restored_is_what_was_taken(tmp_path: Path) -> None:
    """Weights, moments and both generators, before any validation."""
    data, path = make_discs(), tmp_path / "state.pt"
    torch.manual_seed(3)
    model, average = UNet(depth=1, base_width=2), UNet(depth=1, base_width=2)
    generator = torch.Generator().manual_seed(4)
    optimiser = make_optimiser(model, SMALL)
    model(torch.rand(1, 1, 28, 28)).sum().backward()
    optimiser.step()
    history = History(losses=[0.1 + 0.2, 1e-17])
    identity = RunIdentity.of(data, SMALL, CPU)
    save_state(
        path, TrainingState.of(model, average, optimiser, generator, history=history, best=None, seconds=1.5), identity
    )
    expected = torch.rand(3), torch.rand(3, generator=generator)

    state = load_state(path, identity)
    assert (state.step, state.seconds, state.best, state.history) == (2, 1.5, None, history)
    other, other_average = UNet(depth=1, base_width=2), UNet(depth=1, base_width=2)
    other_optimiser = make_optimiser(other, SMALL)
    state.restore(other, other_average, other_optimiser, generator)
    assert torch.equal(torch.rand(3), expected[0])
    assert torch.equal(torch.rand(3, generator=generator), expected[1])
    for came, taken in ((other, model), (other_average, average)):
        assert all(torch.equal(a, b) for a, b in zip(came.parameters(), taken.parameters(), strict=True))
    moments = zip(other_optimiser.state.values(), optimiser.state.values(), strict=True)
    assert all(torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) and a["step"] == b["step"] == 1 for a, b in moments)
