"""The made-up GPU has no call that CUDA and TensorRT do not have, and finds what it is there to find."""

from __future__ import annotations

import ctypes
import inspect
from functools import partial
from typing import Any

import pytest

from tests import tensorrt_runtime_fake
from tests.cuda_fake import FakeCudart, Operation, Status
from tests.tensorrt_fake import read_api
from tests.tensorrt_runtime_fake import FakeTensorrt

IN, OUT = FakeCudart.cudaMemcpyKind.cudaMemcpyHostToDevice, FakeCudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
RTX_ONLY = {
    *("IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache", "IRuntimeConfig.cuda_graph_strategy"),
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    *("IRuntimeCache", "Runtime.get_engine_validity", "Runtime.engine_header_size"),
}


@pytest.fixture
def rt() -> FakeCudart:
    made = FakeCudart()
    made.pace = 1  # it does nothing until it is waited for
    made.cudaSetDevice(0)
    return made


def public(thing: Any) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_every_name_is_one_of_cudas() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="the extra 'tensorrt' is not installed")
    names = {name for name in public(FakeCudart) if name.startswith("cuda")}
    assert len(names) >= 25
    assert [name for name in sorted(names) if not hasattr(real, name)] == []
    for name in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        for kind, value in vars(getattr(FakeCudart, name)).items():
            assert int(getattr(getattr(real, name), kind)) == value
    for name in ("cudaHostAllocPortable", "cudaStreamNonBlocking", "cudaEventDisableTiming", "cudaEventBlockingSync"):
        assert getattr(real, name) == getattr(FakeCudart, name)
    for status in Status:
        assert int(getattr(real.cudaError_t, status.name)) == status
        assert (
            real.cudaGetErrorString(getattr(real.cudaError_t, status.name))[1]
            == FakeCudart().cudaGetErrorString(status)[1]
        )


def test_a_call_takes_as_many_arguments_as_cudas() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="the extra 'tensorrt' is not installed")
    for name, call in vars(FakeCudart).items():
        if name.startswith("cuda") and inspect.isfunction(call):
            came = len(inspect.signature(call).parameters) - 1
            assert came == len(inspect.signature(getattr(real, name)).parameters), name


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_every_name_is_one_of_tensorrts(flavour: str) -> None:
    api = read_api(flavour)
    known, is_rtx = set(api["names"]) | set(api["classes"]), flavour == "tensorrt-rtx"
    rt = FakeCudart()
    module = FakeTensorrt(rt, is_rtx=is_rtx)
    ours = {"rt", "is_rtx", "fail_enqueue", "log", "n_enqueued", "plans", "validity", "contexts", "kernels", "broken"}
    assert {name for name in public(module) | public(FakeTensorrt) if name not in ours} - known == set()
    checked = 0
    for name in ("Runtime", "ICudaEngine", "IRuntimeConfig", "IRuntimeCache", "IExecutionContext"):
        members = public(getattr(tensorrt_runtime_fake, name))
        if name == "IRuntimeCache" and not is_rtx:
            assert name not in known
            continue
        missing = {f"{name}.{member}" for member in members if member not in api["classes"][name]}
        assert missing <= (set() if is_rtx else RTX_ONLY)
        checked += len(members)
    assert checked >= 15


# What it finds.


def test_memory_is_garbage_until_a_copy_has_come(rt: FakeCudart) -> None:
    (_, device), (_, host), (_, stream) = rt.cudaMalloc(8), rt.cudaHostAlloc(8, 1), rt.cudaStreamCreateWithFlags(1)
    assert rt.take(device, 8) == b"\xcd" * 8
    ctypes.memmove(host, b"12345678", 8)
    rt.cudaMemcpyAsync(device, host, 8, IN, stream)
    assert rt.take(device, 8) == b"\xcd" * 8
    rt.cudaStreamSynchronize(stream)
    assert rt.take(device, 8) == b"12345678"
    rt.cudaMemcpyAsync(host, device, 8, OUT, stream)
    assert ctypes.string_at(host, 8) == b"\xa5" * 8
    rt.cudaStreamSynchronize(stream)
    assert ctypes.string_at(host, 8) == b"12345678"


@pytest.mark.parametrize(
    ("kind", "says"), [(IN, "the source was changed before it was copied"), (OUT, "the target was changed before")]
)
def test_page_locked_memory_must_be_left_alone(rt: FakeCudart, kind: int, says: str) -> None:
    (_, device), (_, host), (_, stream) = rt.cudaMalloc(8), rt.cudaHostAlloc(8, 1), rt.cudaStreamCreateWithFlags(1)
    rt.cudaMemcpyAsync(*((device, host) if kind == IN else (host, device)), 8, kind, stream)
    ctypes.memset(host, 1, 1)
    with pytest.raises(AssertionError, match=says):
        rt.cudaStreamSynchronize(stream)


def test_bounds_and_life_are_checked(rt: FakeCudart) -> None:
    (_, device), (_, host), (_, stream) = rt.cudaMalloc(8), rt.cudaHostAlloc(8, 1), rt.cudaStreamCreateWithFlags(1)
    with pytest.raises(AssertionError, match="9 bytes of 8 were used"):
        rt.cudaMemcpyAsync(device, host, 9, IN, stream)
    with pytest.raises(AssertionError, match="device memory came, host memory was expected"):
        rt.cudaMemcpyAsync(device, device, 8, IN, stream)
    rt.cudaMemcpyAsync(device, host, 8, IN, stream)
    with pytest.raises(AssertionError, match="that a batch on its way still uses"):
        rt.cudaFree(device)
    with pytest.raises(AssertionError, match="a stream was destroyed before it was done"):
        rt.cudaStreamDestroy(stream)
    (_, other) = rt.cudaMalloc(4)
    rt.cudaFree(other)
    with pytest.raises(AssertionError, match="freed twice"):
        rt.cudaFree(other)
    (_, again) = rt.cudaStreamCreateWithFlags(1)
    with pytest.raises(AssertionError, match="memory was used after it was freed"):
        rt.cudaMemcpyAsync(other, host, 4, IN, again)


def test_a_wait_that_cannot_end_is_a_deadlock(rt: FakeCudart) -> None:
    (_, one), (_, two) = rt.cudaStreamCreateWithFlags(1), rt.cudaStreamCreateWithFlags(1)
    events = [rt.cudaEventCreateWithFlags(3)[1] for _ in range(2)]
    rt.events[events[0]], rt.events[events[1]] = -1, -2  # as if recorded behind the waits
    rt.cudaStreamWaitEvent(one, events[0], 0)
    rt.cudaStreamWaitEvent(two, events[1], 0)
    with pytest.raises(AssertionError, match="deadlock"):
        rt.cudaStreamSynchronize(one)


def test_a_thread_must_choose_its_gpu() -> None:
    with pytest.raises(AssertionError, match="cudaMalloc in a thread that chose no GPU"):
        FakeCudart().cudaMalloc(1)


def test_streams_take_turns_at_random() -> None:
    orders = set()
    for seed in range(20):
        rt = FakeCudart(seed=seed)
        rt.cudaSetDevice(0)
        done: list[int] = []
        streams = [rt.cudaStreamCreateWithFlags(1)[1] for _ in range(3)]
        for i, stream in enumerate(streams):
            rt.push(stream, Operation(do=partial(done.append, i)))
        for stream in streams:
            rt.cudaStreamSynchronize(stream)
        orders.add(tuple(done))
    assert len(orders) >= 4
