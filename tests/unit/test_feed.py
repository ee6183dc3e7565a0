"""Raw batches of several threads follow each other through one stream, and each thread gets its own results."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.cuda_fake import FakeCudart
from tests.tensorrt_runtime_fake import FakeTensorrt, plan_maker
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult, EngineOptions, RawBatch
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.feed import Feed, Load
from unet_deploy.runtime.engines.tensorrt import TensorrtEngine

FORM = ByteForm(dtype="uint8", kinds=("labels", "probabilities"))
ONE, NOTHING = np.ones(1, np.float32), np.zeros(1, np.float32)
AHEAD = 3


class Device:
    """A stream whose result is its batch's sum; it asks for `AHEAD` batches before it gives the first result."""

    def __init__(self, *, fails_at: int = 0) -> None:
        self.events: list[str] = []
        self.streams = 0
        self.seen = 0
        self.fails_at = fails_at

    def start(self, _: Load, batches: Iterator[RawBatch]) -> Generator[ByteResult, None, None]:
        self.streams += 1
        return self._stream(batches)

    def _stream(self, batches: Iterator[RawBatch]) -> Generator[ByteResult, None, None]:
        waiting: deque[int] = deque()
        for batch in batches:
            self.seen += 1
            if self.seen == self.fails_at:
                raise RuntimeError(f"batch {self.seen} failed")
            self.events.append(f"in {batch[0]}")
            waiting.append(int(batch.sum()))
            if len(waiting) == AHEAD:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _result(value: int) -> ByteResult:
    return ByteResult(labels=None, probabilities=None, checksum=np.array([value], np.float32))


class Line:
    """Loads in the order given, of a thread each, which all come into line before the first has the engine."""

    def __init__(self, device: Device) -> None:
        self.device, self.feed, self.engine = device, Feed(), threading.RLock()
        self.taken: dict[str, list[int]] = {}
        self._threads: list[threading.Thread] = []
        self.errors: dict[str, BaseException] = {}

    def load(self, name: str, batches: Iterable[int], *, gain: Batch = ONE, n_batches: int | None = None) -> Load:
        values = [*batches]
        taken = self.taken.setdefault(name, [])

        def take(number: int, result: ByteResult) -> None:
            assert number == len(taken)
            if result.checksum[0] == 666:
                raise ValueError(f"{name} cannot be written")
            self.device.events.append(f"out {result.checksum[0]:g}")
            taken.append(int(result.checksum[0]))

        def make() -> Iterator[RawBatch]:
            buffer = np.zeros(1, np.int64)
            for value in values:
                if value < 0:
                    raise OSError(f"{name} cannot be read")
                buffer[0] = value  # the same memory again, as a block's
                yield buffer

        n = len(values) if n_batches is None else n_batches
        return Load(form=FORM, gain=gain, offset=NOTHING, batches=make(), n_batches=n, take=take)

    def run(self, **loads: Load) -> None:
        with self.engine:
            for name, load in loads.items():
                before = len(self.feed._line)
                thread = threading.Thread(target=self._run, args=(name, load))
                thread.start()
                while len(self.feed._line) == before:
                    pass
                self._threads.append(thread)
        for thread in self._threads:
            thread.join(timeout=20)
            assert not thread.is_alive()
        assert not self.feed._line
        assert not self.feed._sent
        assert self.feed._stream is None

    def _run(self, name: str, load: Load) -> None:
        try:
            self.feed.run(load, self.engine, self.device.start)
        except BaseException as error:  # whatever it is, the test looks at it
            self.errors[name] = error


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_next_loads_batches_are_on_their_way_before_the_last_result(n: int) -> None:
    line = Line(Device())
    first, second = range(10, 10 + n), range(20, 20 + n)
    line.run(a=line.load("a", first), b=line.load("b", second), c=line.load("c", [30]))
    assert line.taken == {"a": [*first], "b": [*second], "c": [30]}
    assert line.device.streams == 1  # one for all: the device never waits for a thread to wake up
    events = line.device.events
    assert events.index("in 20") < events.index(f"out {first[-1]}")
    assert not line.errors


def test_a_load_alone_ends_its_stream() -> None:
    line = Line(Device())
    line.run(a=line.load("a", [1, 2]))
    line.run(b=line.load("b", []))
    line.run(c=line.load("c", [3]))
    assert line.taken == {"a": [1, 2], "b": [], "c": [3]}
    assert line.device.streams == 2


def test_loads_that_are_not_alike_have_streams_of_their_own() -> None:
    line = Line(Device())
    other = replace(FORM, kinds=("labels",))
    c = line.load("c", [4])
    d = Load(form=other, gain=ONE, offset=NOTHING, batches=c.batches, n_batches=1, take=c.take)
    line.run(a=line.load("a", [1, 2]), b=line.load("b", [3], gain=2 * ONE), d=d)
    assert line.taken == {"a": [1, 2], "b": [3], "c": [4]}
    assert line.device.streams == 3


def test_an_error_of_the_engine_ends_what_was_on_its_way() -> None:
    line = Line(Device(fails_at=4))
    line.run(a=line.load("a", [1, 2, 3]), b=line.load("b", [4, 5]), c=line.load("c", [6, 7]))
    assert {name: str(error) for name, error in line.errors.items()} == dict.fromkeys("ab", "batch 4 failed")
    assert line.taken["c"] == [6, 7]  # in a stream of its own
    assert line.device.streams == 2


def test_a_stream_that_cannot_begin_is_the_error_of_its_load() -> None:
    line = Line(Device())
    line.device.start = _refuse  # type: ignore[method-assign]
    line.run(a=line.load("a", [1]), b=line.load("b", [2]))
    assert {name: str(error) for name, error in line.errors.items()} == dict.fromkeys("ab", "no stream")


def _refuse(*_: Any) -> Any:
    raise RuntimeError("no stream")


def test_a_stream_that_ends_before_its_first_batch_is_an_error_too() -> None:
    """As one whose session is made anew, after memory ran out, and does not fit any more."""
    line, begun = Line(Device()), 0

    def start(*_: Any) -> Iterator[ByteResult]:
        nonlocal begun
        begun += 1
        assert begun < 10, "it begins again and again"
        yield from _refuse()

    line.device.start = start  # type: ignore[assignment,method-assign]
    line.run(a=line.load("a", [1]), b=line.load("b", [2]))
    assert {name: str(error) for name, error in line.errors.items()} == dict.fromkeys("ab", "no stream")
    assert begun == 2


@pytest.mark.parametrize(("value", "error"), [(-1, "a cannot be read"), (666, "a cannot be written")])
def test_an_error_of_a_load_is_its_own(value: int, error: str) -> None:
    line = Line(Device())
    line.run(a=line.load("a", [1, value, 3]), b=line.load("b", [4, 5]))
    assert {name: str(came) for name, came in line.errors.items()} == {"a": error}
    assert line.taken["a"] in ([], [1])  # what is on its way when it fails is of no use
    assert line.taken["b"] == [4, 5]


def test_a_pause_leaves_what_has_not_begun_to_a_new_stream() -> None:
    line = Line(Device())
    load = line.load("a", range(8))
    take = load.take

    def take_and_pause(number: int, result: ByteResult) -> None:
        take(number, result)
        if number == 2:
            line.feed._is_pausing = True  # as another thread would find it

    load.take = take_and_pause
    with line.engine:
        line.feed._line.append(load)
        while not line.feed._is_pausing:
            line.feed._move(line.device.start)
        line.feed.pause()
    assert line.taken["a"] == [0, 1, 2, 3, 4][: len(line.taken["a"])]
    assert 3 <= len(line.taken["a"]) <= 5
    line.feed._line.remove(load)
    line.run(a=load)
    assert line.taken["a"] == [*range(8)]
    assert line.device.streams == 2


# The whole engine.


def _expected(card: Any, tiles: Iterable[RawBatch]) -> list[list[float]]:
    plain = FakeEngine(card.network)
    return [plain.infer(tile.astype(np.float32)).sum(axis=(1, 2, 3), dtype=np.float32).tolist() for tile in tiles]


def _run_in_threads(engine: CheckedEngine, card: Any, *, seed: int, between: Callable[[], object]) -> None:
    random_numbers = np.random.default_rng(seed)
    sides = [card.geometry.smallest_tile, card.geometry.tile_side(2 * card.geometry.divisor)]
    blocks = [
        [
            random_numbers.integers(0, 256, (random_numbers.integers(1, 3), 1, *[sides[i % 2]] * 2), np.uint8)
            for _ in range(random_numbers.integers(1, 6))
        ]
        for i in range(8)
    ]

    def run(tiles: list[RawBatch]) -> list[list[float]]:
        came: list[list[float]] = []
        assert engine.open_bytes(FORM)

        def take(number: int, result: ByteResult) -> None:
            assert number == len(came)
            came.append(result.checksum.tolist())

        engine.feed(lambda: iter(tiles), FORM, n_batches=len(tiles), take=take, gain=ONE, offset=NOTHING)
        between()
        return came

    with ThreadPoolExecutor(4) as pool:
        for tiles, came in zip(blocks, pool.map(run, blocks), strict=True):
            assert came == _expected(card, tiles)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_several_threads_get_what_is_theirs(fake_artifact: Any, seed: int) -> None:
    card = fake_artifact(depth=2).card
    engine = CheckedEngine(FakeEngine(card.network, takes_bytes=True), card).open()
    tile = np.zeros((1, 1, *[card.geometry.smallest_tile] * 2), np.float32)
    order = random.Random(seed)
    _run_in_threads(engine, card, seed=seed, between=lambda: order.random() < 0.5 and engine.infer(tile))
    engine.close()


class Poisoned(FakeEngine):
    """Fails at a batch of a certain value, when it is already on its way with others."""

    def stream(self, batches: Iterable[RawBatch], *, gain: Batch, offset: Batch) -> Iterator[ByteResult]:
        def looked_at() -> Iterator[RawBatch]:
            for batch in batches:
                if (batch == 255).all():
                    raise RuntimeError("this batch is poison")
                yield batch

        return super().stream(looked_at(), gain=gain, offset=offset)


def test_a_block_does_not_fail_with_its_neighbour(fake_artifact: Any) -> None:
    card = fake_artifact(depth=2).card
    engine = CheckedEngine(Poisoned(card.network, takes_bytes=True), card).open()
    assert engine.open_bytes(FORM)
    side = card.geometry.smallest_tile
    good = [np.full((1, 1, side, side), value, np.uint8) for value in range(5)]
    blocks = {"good": good, "bad": [good[0], np.full_like(good[0], 255)], "late": good[:3]}
    came: dict[str, list[list[float]]] = {name: [] for name in blocks}
    errors: dict[str, str] = {}

    def run(name: str) -> None:
        def take(number: int, result: ByteResult) -> None:
            del came[name][number:]  # it may be the second time
            came[name].append(result.checksum.tolist())

        tiles = blocks[name]
        try:
            engine.feed(lambda: iter(tiles), FORM, n_batches=len(tiles), take=take, gain=ONE, offset=NOTHING)
        except RuntimeError as error:
            errors[name] = str(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in blocks]
    with engine.reserved():
        for i, thread in enumerate(threads):
            thread.start()
            while len(engine._feed._line) <= i:
                pass
    for thread in threads:
        thread.join(timeout=20)
    assert errors == {"bad": "this batch is poison"}
    assert (came["good"], came["late"]) == (_expected(card, good), _expected(card, good[:3]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("use_graphs", [False, True])
def test_on_the_gpu_that_is_made_up_too(fake_artifact: Any, seed: int, use_graphs: bool) -> None:
    artifact: Artifact = fake_artifact(depth=2)
    rt = FakeCudart(seed=seed)
    trt = FakeTensorrt(rt, is_rtx=False)
    side = artifact.card.geometry.tile_side(2 * artifact.card.geometry.divisor)
    made = TensorrtEngine(
        artifact,
        EngineOptions(batch_shape=(3, 1, side, side)),
        flavour="tensorrt",
        get_plan=plan_maker(trt),
        modules=(trt, rt),
        use_graphs=use_graphs,
    )
    engine = CheckedEngine(made, artifact.card).open()
    tile = np.zeros((1, 1, side, side), np.float32)
    order = random.Random(seed)
    _run_in_threads(engine, artifact.card, seed=seed, between=lambda: order.random() < 0.3 and engine.infer(tile))
    engine.close()
    assert rt.in_flight == 0
    assert rt.leaks() == {}
