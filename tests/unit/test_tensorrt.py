"""The TensorRT engines on a GPU that is made up: order, overlap, memory, and every way to fail."""

# ruff: noqa: N802  the calls of CUDA have names of their own

from __future__ import annotations

import gc
import logging
import re
import sys
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.conftest import ArtifactFactory
from tests.cuda_fake import FakeCudart, Status
from tests.tensorrt_runtime_fake import FakeTensorrt, network_of, plan_maker
from unet_deploy.card import TestTensor
from unet_deploy.errors import (
    ConfigurationError,
    DeviceError,
    DeviceMemoryError,
    MissingDependencyError,
    UnetDeployError,
)
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_plan import Flavour, Profile
from unet_deploy.runtime.engines.base import ByteForm, ByteResult, EngineOptions
from unet_deploy.runtime.engines.device_facts import DeviceFacts
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.tensorrt import TensorrtEngine, profiles_of
from unet_deploy.runtime.engines.tensorrt_cudart import import_cudart, read_device_facts
from unet_deploy.runtime.engines.tensorrt_slots import Pipeline

FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
LARGEST = (3, 2, 60, 76)
GAIN, OFFSET = np.array([2, 3], np.float32), np.array([-5, 7], np.float32)
FORM = ByteForm(dtype="uint8", kinds=("labels", "probabilities"))


@dataclass
class Bench:
    """An engine, the TensorRT and the GPU under it."""

    engine: TensorrtEngine
    trt: FakeTensorrt
    rt: FakeCudart
    artifact: Artifact


def bench(
    artifact: Artifact,
    *,
    flavour: Flavour = "tensorrt",
    rt: FakeCudart | None = None,
    batch_shape: tuple[int, int, int, int] | None = LARGEST,
    folder: Any = None,
    n_slots: int = 3,
    use_graphs: bool = False,
    device_index: int = 0,
    **of_trt: Any,
) -> Bench:
    rt = rt or FakeCudart()
    trt = FakeTensorrt(rt, is_rtx=flavour == "tensorrt-rtx", **of_trt)
    engine = TensorrtEngine(
        artifact,
        EngineOptions(batch_shape=batch_shape, device_index=device_index),
        flavour=flavour,
        get_plan=plan_maker(trt, folder=folder),
        modules=(trt, rt),
        n_slots=n_slots,
        use_graphs=use_graphs,
    )
    return Bench(engine, trt, rt, artifact)


@pytest.fixture
def artifact(fake_artifact: ArtifactFactory) -> Artifact:
    return fake_artifact(depth=2, classes=3, in_channels=2)


@pytest.fixture(params=FLAVOURS)
def made(request: pytest.FixtureRequest, artifact: Artifact) -> Bench:
    return bench(artifact, flavour=request.param)


def raw_batches(count: int = 9, *, seed: int = 0) -> list[Any]:
    """Return batches of several sizes and shapes, each shape several times on end."""
    rng = np.random.default_rng(seed)
    shapes = [(1 + i // 2 % 3, 2, 44 + 16 * (i // 3 % 2), 44 + 16 * (i // 4 % 3)) for i in range(count)]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def logits_of(artifact: Artifact, raw: Any) -> Any:
    image = raw.astype(np.float32) * GAIN[:, None, None] + OFFSET[:, None, None]
    return FakeEngine(artifact.card.network).infer(image)


def same(artifact: Artifact, raw: Any, result: ByteResult) -> bool:
    logits = logits_of(artifact, raw)
    compute = network_of(artifact, profiles_of(artifact, LARGEST), FORM).compute
    expected = compute({"raw": raw, "gain": GAIN[:, None, None], "offset": OFFSET[:, None, None]})
    return (
        np.array_equal(result.labels, logits.argmax(axis=1))
        and np.array_equal(result.probabilities, expected["probabilities"])
        and np.array_equal(result.checksum, expected["checksum"])
    )


def stream(engine: TensorrtEngine, batches: Any) -> Iterator[ByteResult]:
    return engine.stream(batches, gain=GAIN, offset=OFFSET)


def is_right(made: Bench, batches: Sequence[Any]) -> bool:
    """Stream them; tell whether every result is right, and its neighbours' are not in its place."""
    pairs = zip(batches, stream(made.engine, batches), strict=True)
    return [same(made.artifact, raw, result) for raw, result in pairs] == [True] * len(batches)


# What comes out, and in which order.


@pytest.mark.parametrize("n_slots", [1, 2, 3, 4])
@pytest.mark.parametrize(("flavour", "use_graphs"), [("tensorrt", False), ("tensorrt", True), ("tensorrt-rtx", True)])
def test_every_order_of_the_streams_gives_the_same(
    artifact: Artifact, flavour: Flavour, n_slots: int, use_graphs: bool
) -> None:
    for seed in range(8):
        made = bench(artifact, flavour=flavour, rt=FakeCudart(seed=seed), n_slots=n_slots, use_graphs=use_graphs)
        made.engine.open()
        batches = raw_batches(seed=seed)
        for raw in batches[:3]:
            image = raw.astype(np.float32) - 99
            np.testing.assert_array_equal(
                made.engine.infer(image), FakeEngine(artifact.card.network).infer(image), strict=True
            )
        assert made.engine.open_bytes(FORM)
        assert is_right(made, batches), seed
        assert made.rt.in_flight == 0
        made.engine.close()
        assert made.rt.leaks() == {}


def test_the_artifacts_own_graph_gives_what_onnxruntime_gives(tiny_artifact: Artifact) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    profiles = profiles_of(tiny_artifact, (2, 1, 60, 60))
    form = ByteForm(dtype="uint8", kinds=("labels",))
    compute = network_of(tiny_artifact, profiles, form).compute
    gain, offset = np.full(1, 0.025, np.float32), np.full(1, -3.2, np.float32)
    batches = [np.random.default_rng(i).integers(0, 256, (2, 1, 44, 60), dtype=np.uint8) for i in range(5)]
    for flavour in FLAVOURS:
        made = bench(tiny_artifact, flavour=flavour, batch_shape=(2, 1, 60, 60), use_graphs=True)
        made.engine.open()
        made.engine.open_bytes(form)
        for raw, result in zip(batches, made.engine.stream(batches, gain=gain, offset=offset), strict=True):
            expected = compute({"raw": raw, "gain": gain.reshape(1, 1, 1), "offset": offset.reshape(1, 1, 1)})
            np.testing.assert_array_equal(result.labels, expected["labels"], strict=True)
            np.testing.assert_array_equal(result.checksum, expected["checksum"], strict=True)
            assert result.probabilities is None
        made.engine.close()


@pytest.mark.parametrize("n_slots", [1, 2, 3, 4])
def test_reading_and_computing_overlap_and_slots_are_the_bound(artifact: Artifact, n_slots: int) -> None:
    made = bench(artifact, n_slots=n_slots)
    made.engine.open()
    made.engine.open_bytes(FORM)
    taken, given, leads, busy = 0, 0, [], []

    def batches() -> Iterator[Any]:
        nonlocal taken
        for raw in raw_batches(12):
            busy.append(made.rt.in_flight > 0)
            taken += 1
            yield raw
            raw[...] = 0  # it was read, so it may be used again

    for _ in stream(made.engine, batches()):
        leads.append(taken - given)
        given += 1
    assert given == 12
    assert max(leads) == n_slots + 1  # as many as there are slots are on their way, one more waits for a slot
    assert any(busy)
    made.engine.close()


def test_a_result_is_valid_until_the_next_is_asked_for(artifact: Artifact) -> None:
    made = bench(artifact, n_slots=2)
    made.engine.open()
    made.engine.open_bytes(FORM)
    batches = raw_batches(6)
    for raw, result in zip(batches, stream(made.engine, batches), strict=True):
        while made.rt._step():
            """Let the GPU do all that it can before the result is looked at."""
        assert same(artifact, raw, result)
    made.engine.close()


def test_the_context_waits_for_no_one_but_its_own_batch(artifact: Artifact) -> None:
    made = bench(artifact)
    made.engine.open()
    made.engine.open_bytes(FORM)
    batches = [raw_batches(1)[0]] * 8
    list(stream(made.engine, batches))
    before = made.rt.called.copy()
    list(stream(made.engine, batches))
    # Before a stream and after it, and never between its batches.
    assert made.rt.called["cudaStreamSynchronize"] - before["cudaStreamSynchronize"] == 6
    assert made.rt.called["cudaMalloc"] == before["cudaMalloc"] == 1 + 3 * 6  # what there is, is used again
    made.engine.close()


def test_it_infers_in_any_thread(made: Bench) -> None:
    made.engine.open()
    image = raw_batches(1)[0].astype(np.float32)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(made.engine.infer, image).result()
        pool.submit(made.engine.close).result()
    np.testing.assert_array_equal(there, FakeEngine(made.artifact.card.network).infer(image))
    assert made.rt.leaks() == {}


def test_logits_and_bytes_take_turns_in_the_memory(made: Bench) -> None:
    made.engine.open()
    image = raw_batches(1)[0].astype(np.float32)
    expected = made.engine.infer(image)
    assert made.engine.open_bytes(FORM)
    assert made.rt.leaks()["contexts"] == 1
    list(stream(made.engine, raw_batches(2)))
    np.testing.assert_array_equal(made.engine.infer(image), expected)
    assert is_right(made, raw_batches(2))
    assert made.rt.leaks()["contexts"] == 1
    made.engine.close()


def test_what_tensorrt_has_no_type_for_is_not_taken_raw(made: Bench) -> None:
    made.engine.open()
    assert not made.engine.open_bytes(ByteForm(dtype="uint16", kinds=("labels",)))
    with pytest.raises(AssertionError, match=r"^open_bytes was not called$"):
        next(stream(made.engine, []))
    made.engine.close()


# The test can fail: an engine that leaves out one of its waits is found out.


class NoWait(FakeCudart):
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> Any:
        return (Status.cudaSuccess,)


class NoRecord(FakeCudart):
    def cudaEventRecord(self, event: Any, stream: Any) -> Any:
        return (Status.cudaSuccess,)


class NoWaitHere(FakeCudart):
    def cudaEventSynchronize(self, event: Any) -> Any:
        return (Status.cudaSuccess,)


class NoSynchronize(FakeCudart):
    def cudaStreamSynchronize(self, stream: Any) -> Any:
        return (Status.cudaSuccess,)


class CopiesHalf(FakeCudart):
    def cudaMemcpyAsync(self, target: int, source: int, n_bytes: int, kind: int, stream: Any) -> Any:
        return super().cudaMemcpyAsync(target, source, n_bytes // 2, kind, stream)


class OneStream(FakeCudart):
    """Not wrong, only slow: it must pass."""

    def cudaMemcpyAsync(self, target: int, source: int, n_bytes: int, kind: int, stream: Any) -> Any:
        return super().cudaMemcpyAsync(target, source, n_bytes, kind, next(iter(self.streams)))

    def push(self, stream: Any, operation: Any) -> None:
        super().push(next(iter(self.streams)), operation)

    def cudaStreamSynchronize(self, stream: Any) -> Any:
        return super().cudaStreamSynchronize(next(iter(self.streams)))


@pytest.mark.parametrize(
    ("broken", "is_found"),
    [
        (NoWait, True),
        (NoRecord, True),
        (NoWaitHere, True),
        (NoSynchronize, True),
        (CopiesHalf, True),
        (OneStream, False),
    ],
)
def test_an_engine_without_one_of_its_waits_is_found_out(
    artifact: Artifact, broken: type[FakeCudart], is_found: bool
) -> None:
    found = 0
    for seed in range(10):
        made = bench(artifact, rt=broken(seed=seed))
        batches = raw_batches(seed=seed)
        try:
            made.engine.open()
            made.engine.open_bytes(FORM)
            found += not is_right(made, batches)
        except AssertionError:
            found += 1
            made.rt.break_down()  # so that it can be closed, wrong as it is
        made.engine.close()
    assert found >= 4 if is_found else found == 0, found


# Whoever breaks off leaves nothing behind.


def test_a_reader_that_fails_leaves_nothing_on_its_way(made: Bench) -> None:
    made.engine.open()
    made.engine.open_bytes(FORM)
    for good in range(7):

        def batches(good: int = good) -> Iterator[Any]:
            yield from raw_batches(good)
            raise OSError("the disk is gone")

        results = stream(made.engine, batches())
        with pytest.raises(OSError, match="the disk is gone"):
            list(results)
        assert made.rt.in_flight == 0
        assert is_right(made, raw_batches(2))
    made.engine.close()
    assert made.rt.leaks() == {}


def write_until(made: Bench, wanted: int) -> None:
    for i, _ in enumerate(stream(made.engine, raw_batches())):
        if i + 1 == wanted:
            raise OSError("no room to write")


def test_a_consumer_that_leaves_does_so_too(made: Bench) -> None:
    made.engine.open()
    made.engine.open_bytes(FORM)
    for wanted in range(1, 7):
        with pytest.raises(OSError, match="no room to write"):
            write_until(made, wanted)
        assert is_right(made, raw_batches(2))
    made.engine.close()
    assert made.rt.leaks() == {}


@pytest.mark.parametrize("given", [1, 8])
def test_a_stream_that_is_forgotten_is_of_no_use_any_more(made: Bench, given: int) -> None:
    made.engine.open()
    made.engine.open_bytes(FORM)
    old = stream(made.engine, raw_batches(9))
    for _ in range(given):
        next(old)
    assert is_right(made, raw_batches(4))
    with pytest.raises(AssertionError, match=r"^another batch was begun, or the engine closed, before this stream"):
        next(old)
    made.engine.close()


def test_closing_waits_for_what_is_on_its_way(made: Bench) -> None:
    made.engine.open()
    made.engine.open_bytes(FORM)
    old = stream(made.engine, raw_batches())
    next(old)
    made.engine.close()
    assert made.rt.in_flight == 0
    assert made.rt.leaks() == {}
    with pytest.raises(AssertionError, match=r"before this stream was at its end$"):
        next(old)
    made.engine.close()
    with pytest.raises(AssertionError, match=r"^the engine is not open$"):
        made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))


def test_an_engine_that_is_let_go_of_gives_everything_back(made: Bench) -> None:
    made.engine.open()
    made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))
    assert made.rt.leaks()
    gone = weakref.ref(made.engine)
    del made.engine
    gc.collect()
    assert gone() is None
    assert made.rt.leaks() == {}


def test_a_network_that_another_took_the_place_of_is_let_go_of(made: Bench) -> None:
    made.engine.open()
    for _ in range(3):
        assert made.engine.open_bytes(FORM)
        made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))
    assert sum(type(thing) is Pipeline for thing in gc.get_objects()) == 1
    made.engine.close()
    assert made.rt.leaks() == {}


# Every failure, everywhere.


def work(made: Bench) -> None:
    """Use everything there is."""
    made.engine.open()
    made.engine.infer(raw_batches(1)[0].astype(np.float32))
    made.engine.open_bytes(FORM)
    assert is_right(made, raw_batches(6))


def failure_of(made: Bench) -> DeviceError | None:
    try:
        work(made)
    except DeviceError as error:
        return error
    return None


@pytest.mark.parametrize(("flavour", "use_graphs"), [("tensorrt", True), ("tensorrt-rtx", False)])
@pytest.mark.parametrize("what", ["allocation", "operation", "call"])
def test_a_failure_anywhere_is_told_and_leaves_nothing(
    artifact: Artifact, what: str, flavour: Flavour, use_graphs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    whole = bench(artifact, flavour=flavour, use_graphs=use_graphs)
    work(whole)
    count = getattr(whole.rt, f"n_{what}s")
    assert count > 30
    whole.engine.close()
    told = 0
    caplog.set_level(logging.DEBUG, logger="unet_deploy")
    for k in range(1, count + 1):
        rt = FakeCudart(seed=k, **{f"fail_{what}": k})
        made = bench(artifact, flavour=flavour, rt=rt, use_graphs=use_graphs)
        caplog.clear()
        error = failure_of(made)
        told += error is not None
        if error is None:  # only what was on the way out can fail without an error, and is logged; or was of no use
            assert "on the way out: " in caplog.text or rt.failed == "cudaGraphDestroy"
        else:
            assert isinstance(error, DeviceMemoryError) == isinstance(error, MemoryError) == (what == "allocation")
            expected = {"allocation": "is out of memory", "operation": "an illegal memory access", "call": "unknown"}
            assert expected[what] in str(error)
        made.engine.close()
        made.engine.close()
        assert rt.leaks() == {}, k
        assert rt.in_flight == 0
    assert told >= (count if what == "allocation" else 0.6 * count)


def test_after_a_batch_too_large_a_smaller_one_runs(made: Bench) -> None:
    made.engine.open()
    small = np.zeros((1, 2, 44, 44), np.float32)
    made.engine.infer(small)
    rest = made.rt.memory_bytes
    made.rt.memory_bytes = made.rt.device_bytes + 100
    with pytest.raises(DeviceMemoryError, match=r"^cuda:0 is out of memory: 0\.21 MiB for the network"):
        made.engine.infer(np.zeros(LARGEST, np.float32))
    made.rt.memory_bytes = rest
    made.engine.infer(np.zeros(LARGEST, np.float32))  # there is room again
    made.engine.close()

    made.engine.open()
    made.engine.infer(small)
    made.rt.memory_bytes = made.rt.device_bytes + 100
    with pytest.raises(DeviceMemoryError):
        made.engine.infer(np.zeros(LARGEST, np.float32))
    made.rt.memory_bytes = made.rt.device_bytes + 2 * small.nbytes  # which is what its activations take
    np.testing.assert_array_equal(made.engine.infer(small), FakeEngine(made.artifact.card.network).infer(small))
    made.rt.memory_bytes = rest
    made.engine.infer(np.zeros(LARGEST, np.float32))
    made.engine.close()
    assert made.rt.leaks() == {}


def test_no_room_for_the_activations_says_how_much(artifact: Artifact) -> None:
    made = bench(artifact, rt=FakeCudart(memory_bytes=2**17))
    made.engine.open()  # a plan for more than there is room for does no harm
    with pytest.raises(
        DeviceMemoryError,
        match=r"^cuda:0 is out of memory: 0\.21 MiB for the network's activations were asked for\n"
        r"  out of memory \(cudaErrorMemoryAllocation\)\n"
        r"  NVIDIA Fake 4090 has 0\.0 GiB, which other programs may use too\n",
    ) as caught:
        made.engine.infer(np.zeros(LARGEST, np.float32))
    assert caught.value.fix.startswith("a smaller --batch or --tile, or close other programs on this GPU")
    made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))  # while the error is held
    made.engine.close()
    assert made.rt.leaks() == {}


def test_no_room_for_a_context_is_out_of_memory(artifact: Artifact) -> None:
    made = bench(artifact, rt=FakeCudart(fail_allocation=2))
    with pytest.raises(
        DeviceMemoryError,
        match=r"^cuda:0 is out of memory: no execution context can be made, 1024 MiB are free\n"
        r"  \[defaultAllocator\.cpp::allocate::31\] Error Code 1: \(out of memory\)\n",
    ) as caught:
        made.engine.open()
    assert made.rt.leaks() == {}, caught.value  # while the error is held: a smaller network may be tried next


def test_no_room_for_the_plan_is_out_of_memory_too(artifact: Artifact) -> None:
    made = bench(artifact, rt=FakeCudart(fail_allocation=1))
    with pytest.raises(DeviceMemoryError, match=r"^cuda:0 is out of memory: the plan cannot be loaded\n  Error Code 2"):
        made.engine.open()


@pytest.mark.parametrize(
    ("log", "cls", "says"),
    [
        (
            "Error Code 1: Myelin (no kernel)",
            DeviceError,
            r"^cuda:0: a batch cannot be started\n  IExecutionContext::enq",
        ),
        ("Error Code 2: OutOfMemory", DeviceMemoryError, r"^cuda:0 is out of memory: a batch cannot be started\n"),
    ],
)
def test_what_tensorrt_says_of_a_batch_is_passed_on(artifact: Artifact, log: str, cls: Any, says: str) -> None:
    for enqueue in (1, 2):  # the second is the one that is captured
        made = bench(artifact, use_graphs=True, fail_enqueue=enqueue, log=log)
        made.engine.open()
        with pytest.raises(cls, match=says) as caught:
            made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))
        assert log in str(caught.value)
        assert type(caught.value) is cls
        made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))
        made.engine.close()
        assert made.rt.leaks() == {}


def test_an_error_has_the_words_of_its_own_failure(artifact: Artifact) -> None:
    made = bench(artifact, fail_enqueue=1, log="Error Code 2: OutOfMemory")
    made.engine.open()
    with pytest.raises(DeviceMemoryError):
        made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))
    made.trt.fail_enqueue, made.trt.log = 2, "Error Code 1: Myelin"
    with pytest.raises(DeviceError, match="Error Code 1: Myelin") as caught:
        made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))
    assert "OutOfMemory" not in str(caught.value)
    assert type(caught.value) is DeviceError
    made.engine.close()


# Shapes.


def test_a_shape_that_the_plan_was_not_built_for_is_refused(made: Bench) -> None:
    made.engine.open()
    with pytest.raises(
        ConfigurationError,
        match=r"^a batch of image 4×2×60×76 \(n×c×y×x\) came, which the plan does not take\n"
        r"  it was built for image from 1×2×44×44 to 3×2×60×76\n"
        r"  it was built for image from 1×2×44×44 to 3×2×76×60\n"
        r"  plan: made up, built by tensorrt(-rtx)? [\d.]+; NVIDIA Fake 4090, compute capability 8\.9, ",
    ) as caught:
        made.engine.infer(np.zeros((4, 2, 60, 76), np.float32))
    assert caught.value.fix.startswith("--batch and --tile within these, or have it built for the larger ones")
    made.engine.infer(np.zeros((3, 2, 76, 60), np.float32))
    made.engine.close()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("profile", "profile 1 cannot be used"),
        ("shape", r"shape \(1, 2, 76, 60\) of image cannot be used"),
        ("unknown", "shapes of image are not known"),
    ],
)
def test_a_shape_that_tensorrt_does_not_take_is_an_error(made: Bench, broken: str, says: str) -> None:
    made.engine.open()
    made.trt.broken = broken
    with pytest.raises(DeviceError, match=rf"^cuda:0: {says}\n  plan: made up, ") as caught:
        made.engine.infer(np.zeros((1, 2, 76, 60), np.float32))
    assert caught.value.fix == "have it built again: delete made up; --device cpu runs anywhere"
    made.trt.broken = ""
    made.engine.infer(np.zeros((1, 2, 76, 60), np.float32))
    made.engine.close()
    assert made.rt.leaks() == {}


def test_a_network_that_needs_no_memory_is_given_a_little(made: Bench) -> None:
    made.engine.open()
    for network in made.trt.plans.values():
        network.context_bytes = lambda shapes: 0
    made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))
    made.engine.close()


def test_a_shape_that_changes_drops_the_graphs(artifact: Artifact) -> None:
    made = bench(artifact, use_graphs=True)
    made.engine.open()
    made.engine.open_bytes(FORM)
    small, large = (np.zeros(shape, np.uint8) for shape in ((1, 2, 44, 44), (2, 2, 60, 60)))
    for _ in range(2):
        list(stream(made.engine, [small] * 7))
        assert made.rt.leaks()["executables"] == 3  # one a slot
        launched = made.rt.called["cudaGraphLaunch"]
        list(stream(made.engine, [small] * 3))
        assert made.rt.called["cudaGraphLaunch"] == launched + 3
        list(stream(made.engine, [large]))
        assert made.rt.leaks()["executables"] == 1
    made.engine.close()
    assert made.rt.leaks() == {}


def test_tensorrt_rtx_is_told_how_to_run(artifact: Artifact) -> None:
    for use_graphs, strategy in ((False, "DISABLED"), (True, "WHOLE_GRAPH_CAPTURE")):
        made = bench(artifact, flavour="tensorrt-rtx", use_graphs=use_graphs)
        made.engine.open()
        config = made.trt.contexts[-1]._config
        assert config.cuda_graph_strategy.name == strategy
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        made.engine.infer(np.zeros((1, 2, 44, 44), np.float32))
        assert made.rt.called["cudaGraphLaunch"] == 0
        made.engine.close()


def test_profiles_take_what_will_come(fake_artifact: ArtifactFactory) -> None:
    artifact = fake_artifact(depth=2, in_channels=2)
    smallest = (1, 2, 44, 44)
    assert profiles_of(artifact, (4, 2, 60, 60)) == (
        Profile(minimum=smallest, optimum=(4, 2, 60, 60), maximum=(4, 2, 60, 60)),
    )
    upright, turned = profiles_of(artifact, (4, 2, 60, 92))
    assert (upright.maximum, turned.maximum) == ((4, 2, 60, 92), (4, 2, 92, 60))
    (default,) = profiles_of(artifact, None)
    assert default.maximum == (4, 2, 572, 572)
    assert all(artifact.card.geometry.is_legal(side) for side in default.maximum[2:])
    tensor = TestTensor(image=np.zeros((5, 2, 44, 44), np.uint8), logits=np.zeros((5, 2, 4, 4), np.float32))
    with_tensor = replace(artifact, card=replace(artifact.card, test_tensor=tensor))
    assert [profile.maximum for profile in profiles_of(with_tensor, (1, 2, 60, 60))] == [(1, 2, 60, 60), (5, 2, 44, 44)]
    assert len(profiles_of(with_tensor, (8, 2, 60, 60))) == 1


# What the machine has, and what it lacks.


def test_it_says_what_it_runs_on(made: Bench) -> None:
    with pytest.raises(AssertionError, match=r"^the engine is not open$"):
        made.engine.describe()
    made.engine.open()
    said = made.engine.describe()
    assert (said.device, said.provider) == ("cuda:0", "NVIDIA Fake 4090, compute capability 8.9")
    module = "tensorrt_rtx" if made.trt.is_rtx else "tensorrt"
    assert said.versions == {module: made.trt.__version__, "driver": "for CUDA 13.0"}
    made.engine.close()


def test_the_gpu_that_was_asked_for_is_used(artifact: Artifact) -> None:
    made = bench(artifact, rt=FakeCudart(count=3), device_index=2)
    made.engine.open()
    assert made.engine.describe().device == "cuda:2"
    assert made.rt._device.index == 2
    made.engine.close()


NO_GPU = [
    (
        {"count_status": Status.cudaErrorInsufficientDriver, "driver": 0},
        r"^device cuda:1 was asked for, and this machine has no NVIDIA driver\n"
        r"  cuda-bindings bring CUDA 13\.5; the driver comes with the system \(cudaErrorInsufficientDriver\)\n",
        "install the driver of the GPU and see that nvidia-smi lists it; --device cpu runs anywhere",
    ),
    (
        {"count_status": Status.cudaErrorInsufficientDriver, "driver": 12080},
        r"^device cuda:1 was asked for, and the NVIDIA driver is too old\n"
        r"  the driver knows CUDA 12\.8, CUDA 13\.5 is installed \(cudaErrorInsufficientDriver\)\n",
        "update the driver, or pip install 'cuda-bindings==12.*'; --device cpu runs anywhere",
    ),
    (
        {"count_status": Status.cudaErrorNoDevice},
        r"^device cuda:1 was asked for, and this machine has no NVIDIA GPU\n  those that CUDA_VISIBLE_DEVICES hides",
        "--device cpu runs anywhere",
    ),
    ({"count": 1}, r"^device cuda:1 was asked for, and the last GPU of this machine is cuda:0\n", "--device cuda:0"),
    (
        {"count_status": Status.cudaErrorInitializationError},
        r"^device cuda:1 was asked for, and CUDA does not start: initialization error \(cudaErrorInitial[a-zE]+r\)\n"
        r"  driver: CUDA 13\.0, runtime: CUDA 13\.5\n",
        "see what nvidia-smi says; --device cpu runs anywhere",
    ),
    (
        {"count": 2, "fail_call": 1},
        r"^device cuda:1 was asked for, and the driver does not describe it: unknown error \(cudaErrorUnknown\)\n",
        "see what nvidia-smi says; --device cpu runs anywhere",
    ),
]


@pytest.mark.parametrize(("machine", "says", "fix"), NO_GPU)
def test_what_is_missing_is_said(artifact: Artifact, machine: Any, says: str, fix: str) -> None:
    made = bench(artifact, rt=FakeCudart(**machine), device_index=1)
    with pytest.raises(DeviceError, match=says) as caught:
        made.engine.open()
    assert caught.value.fix == fix
    assert made.rt.leaks() == {}


def test_this_machine_is_asked_as_well() -> None:
    """With the real cuda-bindings, whatever there is."""
    pytest.importorskip("cuda.bindings", reason="the extra 'tensorrt' is not installed")
    cudart = import_cudart(extra="tensorrt")
    if int(cudart.cudaGetDeviceCount()[0]) == 0:
        assert isinstance(read_device_facts(cudart, 0), DeviceFacts)
        return
    with pytest.raises(DeviceError, match=r"^device cuda:0 was asked for, and (this machine has no|the NVIDIA driver)"):
        read_device_facts(cudart, 0)


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (7, 0)])
def test_tensorrt_rtx_has_no_code_for_data_centres(artifact: Artifact, capability: tuple[int, int]) -> None:
    rt = FakeCudart(name="NVIDIA H200", capability=capability)
    with pytest.raises(
        DeviceError,
        match=rf"^tensorrt-rtx does not run on NVIDIA H200 \(compute capability {capability[0]}\.{capability[1]}\)\n"
        r"  it is for the GPUs of desktops and notebooks: 7\.5, 8\.0, ",
    ) as caught:
        bench(artifact, flavour="tensorrt-rtx", rt=rt).engine.open()
    assert caught.value.fix == "--engine tensorrt, or --engine onnxruntime-cuda"
    classic = bench(artifact, rt=rt)
    classic.engine.open()
    classic.engine.close()


@pytest.mark.parametrize("hidden", ["cuda", "cuda.bindings"])
def test_missing_bindings_are_named(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, hidden, None)  # as if it were not installed
    with pytest.raises(
        MissingDependencyError,
        match=r"^the engine tensorrt-rtx needs the package 'cuda\.bindings', which is not installed\n"
        r"  it comes with the extra 'tensorrt-rtx'\n",
    ) as caught:
        import_cudart(extra="tensorrt-rtx")
    assert caught.value.fix == "pip install 'unet-deploy[tensorrt-rtx]'"


def test_a_missing_tensorrt_is_named(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    with pytest.raises(MissingDependencyError, match=r"needs the package 'tensorrt', which is not installed\n"):
        TensorrtEngine(artifact, EngineOptions(), flavour="tensorrt").open()


# A plan that is refused.


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        (1, "another version of TensorRT-RTX built it"),
        (2 | 4, "it was not built for this GPU's compute capability; the driver is too old for it"),
        (32, "it is damaged, or no plan at all"),
        (0, "no reason given"),
    ],
)
def test_tensorrt_rtx_refuses_a_plan_with_reasons(artifact: Artifact, reasons: int, said: str) -> None:
    made = bench(artifact, flavour="tensorrt-rtx")
    made.trt.validity = ("INVALID", reasons)
    with pytest.raises(
        DeviceError,
        match=rf"^TensorRT-RTX refuses the plan on cuda:0: {re.escape(said)}\n  plan: made up, built by tens",
    ) as caught:
        made.engine.open()
    assert caught.value.fix == "have it built again: delete made up"
    assert made.rt.leaks() == {}


def test_a_plan_that_needs_more_than_there_is_is_out_of_memory(artifact: Artifact) -> None:
    made = bench(artifact, flavour="tensorrt-rtx")
    made.trt.validity = ("INVALID", 16)
    with pytest.raises(
        DeviceMemoryError, match=r"^cuda:0 is out of memory: TensorRT-RTX says that the plan needs more\n"
    ):
        made.engine.open()


def test_a_plan_that_is_not_the_best_is_run(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    made = bench(artifact, flavour="tensorrt-rtx")
    made.trt.validity = ("SUBOPTIMAL", 2)
    made.engine.open()
    assert "this plan is not the best for NVIDIA Fake 4090: it was not built for this GPU's" in caplog.text
    made.engine.close()


def test_a_plan_that_cannot_be_loaded_says_what_tensorrt_said(made: Bench) -> None:
    made.engine.open()
    made.trt.plans.clear()
    made.engine.close()
    get_plan = made.engine._get_plan

    def forgotten(*arguments: Any, **keywords: Any) -> Any:
        plan = get_plan(*arguments, **keywords)
        made.trt.plans.clear()
        return plan

    engine = TensorrtEngine(
        made.artifact,
        EngineOptions(batch_shape=LARGEST),
        flavour="tensorrt-rtx" if made.trt.is_rtx else "tensorrt",
        get_plan=forgotten,
        modules=(made.trt, made.rt),
    )
    with pytest.raises(
        DeviceError,
        match=r"^cuda:0: the plan cannot be loaded\n  IRuntime::deserializeCudaEngine: Error Code 1: Serialization\n",
    ) as caught:
        engine.open()
    assert caught.value.fix == "have it built again: delete made up; --device cpu runs anywhere"
    assert isinstance(caught.value, UnetDeployError)
    assert made.rt.leaks() == {}
