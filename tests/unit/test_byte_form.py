"""An engine that begins at raw pixels is checked like one that begins at normalised ones, and proved before use."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unet_deploy.card import ModelCard, TestTensor
from unet_deploy.errors import TestTensorError
from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult, RawBatch
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.runner import MAX_OFFSET, ByteRunner, HostRunner, TileWork, choose_runner
from unet_deploy.runtime.engines.symmetries import SymmetricEngine
from unet_deploy.runtime.normalise import Normaliser

BOTH = ByteForm(dtype="uint8", kinds=("labels", "probabilities"))


@pytest.fixture
def card(fake_artifact: Any) -> ModelCard:
    """A card with a test tensor of the fake's own making."""
    made: ModelCard = fake_artifact(depth=2, classes=3).card
    side = made.geometry.smallest_tile
    image = np.random.default_rng(1).integers(0, 256, (2, 1, side, side), dtype=np.uint8)
    logits = FakeEngine(made.network).infer(image.astype(np.float32))
    return replace(made, test_tensor=TestTensor(image=image, logits=logits))


class Wrong(FakeEngine):
    """The integer engine, whose bytes are not what its logits say."""

    def __init__(self, network: Any, what: str) -> None:
        super().__init__(network, takes_bytes=True)
        self.what = what

    def stream(self, batches: Iterable[RawBatch], *, gain: Batch, offset: Batch) -> Iterator[ByteResult]:
        if self.what == "gain":
            gain = gain * 2
        for result in super().stream(batches, gain=gain, offset=offset):
            assert result.labels is not None
            assert result.probabilities is not None
            if self.what == "labels":
                yield replace(result, labels=result.labels ^ 1)
            elif self.what == "one probability":
                result.probabilities[0, 0, 0, 0] ^= 128
                yield result
            elif self.what == "checksum":
                yield replace(result, checksum=result.checksum * np.float32(np.nan))
            else:
                yield result


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_form_is_proved_once_and_then_used(card: ModelCard, dtype: str) -> None:
    fake = FakeEngine(card.network, takes_bytes=True)
    engine = CheckedEngine(fake, card).open()
    form = replace(BOTH, dtype=dtype)
    assert engine.open_bytes(form)
    proved = fake.streamed
    assert proved == 2  # the test tensor's two images
    assert engine.open_bytes(form)
    assert fake.streamed == proved


@pytest.mark.parametrize("what", ["gain", "labels", "one probability", "checksum"])
def test_bytes_that_are_not_what_the_logits_say_are_refused(card: ModelCard, what: str) -> None:
    engine = CheckedEngine(Wrong(card.network, what), card).open()
    with pytest.raises(
        TestTensorError,
        match=r"^fake on cpu does not give for raw pixels what it gives for normalised ones\n"
        r"  test tensor as uint8: \d+ of \d+ values differ by more than rounding\n  model: tiny, precision fp32\n",
    ) as caught:
        engine.open_bytes(BOTH)
    assert caught.value.fix.startswith("use another device (--device cpu)")


# Which way is taken.


def test_the_way_is_the_engines_to_choose(card: ModelCard) -> None:
    plain = Normaliser(mean=(128.0,), std=(40.0,))
    pedestal = Normaliser(mean=(60_000.0,), std=(60_000 / MAX_OFFSET / 2,))
    takes = CheckedEngine(FakeEngine(card.network, takes_bytes=True), card).open()
    leaves = CheckedEngine(FakeEngine(card.network), card).open()

    def way(engine: Any, normaliser: Normaliser) -> type:
        return type(choose_runner(engine, normaliser, dtype="uint8", kinds=("labels",)))

    assert way(takes, plain) is ByteRunner
    assert way(leaves, plain) is HostRunner
    assert way(SymmetricEngine(takes), plain) is HostRunner  # a mean of logits is no mean of bytes
    assert way(takes, pedestal) is HostRunner  # float32 would lose what is seen
    with pytest.raises(AssertionError, match="the mean over symmetries has no byte form"):
        SymmetricEngine(takes).feed(lambda: iter([]), BOTH, n_batches=0, take=print, gain=np.ones(1), offset=np.ones(1))


def test_gain_and_offset_are_the_normaliser() -> None:
    raw = np.arange(0, 65_536, 13, dtype=np.uint16).reshape(1, 1, -1).repeat(2, axis=0)
    for normaliser in (
        Normaliser(mean=(128.0, 3.0), std=(40.0, 7.0)),
        Normaliser(mean=(0.4, 0.5), std=(0.1, 0.3), gain=1 / 65_535, offset=-0.001),
    ):
        gain, offset = normaliser.gain_and_offset()
        assert gain.dtype == offset.dtype == np.float32
        came = raw.astype(np.float32) * gain[:, None, None] + offset[:, None, None]
        np.testing.assert_allclose(came, normaliser(raw), rtol=1e-6, atol=1e-5)


# What goes in and comes out.


def test_raw_batches_are_checked(fake_artifact: Any) -> None:
    card = fake_artifact(depth=2).card
    engine = CheckedEngine(FakeEngine(card.network, takes_bytes=True), card).open()
    form = ByteForm(dtype="uint8", kinds=("labels",))
    assert engine.open_bytes(form)
    one = np.ones(1, np.float32)

    def stream(*batches: RawBatch) -> list[Any]:
        return list(engine.stream(iter(batches), form, gain=one, offset=one))

    good = np.zeros((2, 1, 44, 44), np.uint8)
    assert [result.checksum.shape for result in stream(good, good[:1])] == [(2,), (1,)]
    for wrong in (good.astype(np.uint16), good[..., 1:], np.zeros((1, 2, 44, 44), np.uint8)):
        with pytest.raises(AssertionError):
            stream(wrong)
    engine.close()
    with pytest.raises(AssertionError, match="the engine is not open"):
        engine.open_bytes(form)


def test_no_more_logits_are_held_than_those_made_and_those_labelled(fake_artifact: Any) -> None:
    held: list[int] = []

    class Watching(FakeEngine):
        def infer(self, batch: Batch) -> Batch:
            logits = super().infer(batch)
            made.append(weakref.ref(logits))
            held.append(sum(one() is not None for one in made))
            return logits

    made: list[weakref.ref[Any]] = []

    card = fake_artifact(depth=2).card
    fake = Watching(card.network)
    engine = CheckedEngine(fake, card).open()
    side = engine.geometry.output_side(44)
    works = [
        TileWork(
            z=0,
            raw=np.zeros((1, 44, 44), np.uint8),
            crop=(slice(side), slice(side)),
            labels=np.empty((side, side), np.uint8),
            probabilities=None,
        )
        for _ in range(9)
    ]
    assert [*HostRunner(engine, Normaliser(mean=(0.0,), std=(1.0,))).run([work] for work in works)] == []
    assert len(held) == 9
    assert max(held) <= 3  # these, the last ones, and what a thread has not let go of yet
    assert not any(one() is not None for one in made)
