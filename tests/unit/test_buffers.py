"""Inputs of batches are used again, and never while somebody may still read them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unet_deploy.card import ModelCard
from unet_deploy.runtime.engines.base import Batch, ByteResult, RawBatch
from unet_deploy.runtime.engines.buffers import MOST, Buffers
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.runner import HostRunner, Runner, TileWork, choose_runner
from unet_deploy.runtime.normalise import Normaliser, to_labels

SIDES = 44, 48
PLAIN = Normaliser(mean=(0.0,), std=(1.0,))


@pytest.fixture
def card(fake_artifact: Any) -> ModelCard:
    made: ModelCard = fake_artifact(depth=2).card
    return made


class Noting(FakeEngine):
    """Knows the arrays that it was given, which it keeps, and fails at the batches of those numbers."""

    def __init__(self, network: Any, *, fails_at: Sequence[int] = ()) -> None:
        super().__init__(network)
        self.fails_at = fails_at
        self.given: list[Batch] = []

    def infer(self, batch: Batch) -> Batch:
        self.given.append(batch)
        if len(self.given) in self.fails_at:
            raise RuntimeError("the device was lost")
        return super().infer(batch)


class Poisoned(FakeEngine):
    """Takes raw pixels, and says of all of them that their logits are no numbers."""

    def _to_bytes(self, raw: RawBatch, gain: Batch, offset: Batch) -> ByteResult:
        made = super()._to_bytes(raw, gain, offset)
        return replace(made, checksum=np.full_like(made.checksum, np.nan))


def make_block(engine: CheckedEngine, *, seed: int, n: int, side: int) -> list[TileWork]:
    rng, out = np.random.default_rng(seed), engine.geometry.output_side(side)
    raw = rng.integers(0, 256, (n, 1, side, side), dtype=np.uint8)
    crop = slice(out), slice(out)
    labels = np.empty((n, out, out), np.uint8)
    return [TileWork(z=0, raw=raw[i], crop=crop, labels=labels[i], probabilities=None) for i in range(n)]


def run(runner: Runner, works: list[TileWork], *, batch: int) -> None:
    with runner.reserved():
        assert [*runner.run(works[i : i + batch] for i in range(0, len(works), batch))] == []


def require_right(card: ModelCard, works: list[TileWork]) -> None:
    for work in works:
        assert work.labels is not None
        logits = FakeEngine(card.network).infer(PLAIN(work.raw)[None])[0]
        np.testing.assert_array_equal(work.labels, to_labels(logits))


def test_blocks_of_one_shape_take_no_more_memory_than_one(card: ModelCard) -> None:
    fake = Noting(card.network)
    engine = CheckedEngine(fake, card).open()
    for seed in range(3):
        works = make_block(engine, seed=seed, n=6, side=SIDES[0])
        run(HostRunner(engine, PLAIN), works, batch=2)
        require_right(card, works)
    assert len(fake.given) == 9
    assert len({id(batch) for batch in fake.given}) == MOST


def test_batches_of_several_shapes_do_not_meet(card: ModelCard) -> None:
    fake = Noting(card.network)
    engine = CheckedEngine(fake, card).open()
    for seed, (n, side) in enumerate([(5, SIDES[0]), (3, SIDES[1]), (5, SIDES[0]), (1, SIDES[0])]):
        works = make_block(engine, seed=seed, n=n, side=side)
        run(HostRunner(engine, PLAIN), works, batch=2)
        require_right(card, works)
    assert {batch.shape[0] for batch in fake.given} == {1, 2}


def test_what_a_batch_failed_with_is_not_written_again(card: ModelCard) -> None:
    """A device that was lost may still read it."""
    fake = Noting(card.network, fails_at=[2])
    engine = CheckedEngine(fake, card).open()
    with pytest.raises(RuntimeError, match="the device was lost"):
        run(HostRunner(engine, PLAIN), make_block(engine, seed=0, n=4, side=SIDES[0]), batch=1)
    lost = fake.given[-1]
    before = lost.copy()
    for seed in (1, 2):
        works = make_block(engine, seed=seed, n=4, side=SIDES[0])
        run(HostRunner(engine, PLAIN), works, batch=1)
        require_right(card, works)
    assert all(batch is not lost for batch in fake.given[2:])
    np.testing.assert_array_equal(lost, before)


def test_threads_that_go_through_the_host_at_once_have_batches_of_their_own(card: ModelCard) -> None:
    """Tiles whose checksum is no number are computed again beside the line of the others, which keeps nobody out."""
    engine = CheckedEngine(Poisoned(card.network, takes_bytes=True), card).open()

    def do(seed: int) -> list[TileWork]:
        works = make_block(engine, seed=seed, n=4, side=SIDES[seed % 2])
        run(choose_runner(engine, PLAIN, dtype="uint8", kinds=("labels",)), works, batch=3)
        return works

    with ThreadPoolExecutor(4) as threads:
        for works in threads.map(do, range(8)):
            require_right(card, works)


def test_no_more_are_kept_than_are_used() -> None:
    buffers = Buffers()
    taken = [buffers.take((1, 1, side, side)) for side in range(1, 6)]
    for buffer in taken:
        buffers.give(buffer)
    found = [buffers.take(buffer.shape) for buffer in reversed(taken)]
    assert [new is old for new, old in zip(found, reversed(taken), strict=True)] == [True, True, False, False, False]
