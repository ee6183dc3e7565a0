"""The few calls of the CUDA runtime that an engine needs, each checked.

1. `import_cudart` finds cuda-bindings, which carry their own runtime and import on a machine without a GPU.
2. `read_device_facts` asks the driver, and says in words what is missing: a GPU, a driver, a newer driver.
3. `Cuda` is one GPU. A call that fails raises `DeviceError`, or `DeviceMemoryError` if it was for want of memory.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import DeviceError, DeviceMemoryError, MissingDependencyError
from unet_deploy.runtime.engines.device_facts import DeviceFacts

Bytes = npt.NDArray[np.uint8]

_NO_DRIVER = 0  # what the driver's version is where there is none
_OTHER_DEVICE = "--device cpu runs anywhere"


def import_cudart(*, extra: str) -> Any:
    """Return cuda-bindings' runtime module.

    Raises
    ------
    MissingDependencyError
        If cuda-bindings are not installed; `extra` is the one of ours that brings them.
    """
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        if error.name not in ("cuda", "cuda.bindings"):
            raise
        raise MissingDependencyError.of_extra("cuda.bindings", extra=extra, purpose=f"the engine {extra}") from error
    return runtime


def read_device_facts(cudart: Any, index: int) -> DeviceFacts:
    """Return what the driver says of a GPU.

    Parameters
    ----------
    cudart
        What `import_cudart` gives.
    index
        Which GPU, from 0.

    Raises
    ------
    DeviceError
        If there is no driver, the driver is too old, there is no GPU, or none of that index.
    """
    error, count = cudart.cudaGetDeviceCount()
    driver = int(cudart.cudaDriverGetVersion()[1])
    name = _name_of(cudart, error)
    runtime = _version(int(cudart.cudaRuntimeGetVersion()[1]))
    asked = f"device cuda:{index} was asked for"
    if name == "cudaErrorInsufficientDriver" and driver == _NO_DRIVER:
        raise DeviceError(
            f"{asked}, and this machine has no NVIDIA driver",
            f"cuda-bindings bring CUDA {runtime}; the driver comes with the system ({name})",
            fix=f"install the driver of the GPU and see that nvidia-smi lists it; {_OTHER_DEVICE}",
        )
    if name == "cudaErrorInsufficientDriver":
        raise DeviceError(
            f"{asked}, and the NVIDIA driver is too old",
            f"the driver knows CUDA {_version(driver)}, CUDA {runtime} is installed ({name})",
            fix=f"update the driver, or pip install 'cuda-bindings=={driver // 1000}.*'; {_OTHER_DEVICE}",
        )
    if name not in {"cudaSuccess", "cudaErrorNoDevice"}:
        raise DeviceError(
            f"{asked}, and CUDA does not start: {_said(cudart, error)}",
            f"driver: CUDA {_version(driver)}, runtime: CUDA {runtime}",
            fix=f"see what nvidia-smi says; {_OTHER_DEVICE}",
        )
    if not count or index >= count:
        raise DeviceError(
            f"{asked}, and "
            + (f"the last GPU of this machine is cuda:{count - 1}" if count else "this machine has no NVIDIA GPU"),
            "those that CUDA_VISIBLE_DEVICES hides do not count",
            fix=f"--device cuda:{count - 1}" if count else _OTHER_DEVICE,
        )
    error, properties = cudart.cudaGetDeviceProperties(index)
    if int(error):
        raise DeviceError(
            f"{asked}, and the driver does not describe it: {_said(cudart, error)}",
            f"driver: CUDA {_version(driver)}, runtime: CUDA {runtime}",
            fix=f"see what nvidia-smi says; {_OTHER_DEVICE}",
        )
    return DeviceFacts(
        index=index,
        name=bytes(properties.name).split(b"\0", maxsplit=1)[0].decode("utf-8", "replace"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=_version(driver),
        memory_bytes=int(properties.totalGlobalMem),
    )


class Cuda:
    """The checked calls on one GPU. Streams, events and graphs are handles of cuda-bindings, addresses are numbers.

    Parameters
    ----------
    cudart
        What `import_cudart` gives.
    facts
        The GPU.
    """

    def __init__(self, cudart: Any, facts: DeviceFacts) -> None:
        self._rt = cudart
        self.facts = facts

    def enter(self) -> None:
        """Make this GPU the one of the calling thread; each thread has its own."""
        self._check(self._rt.cudaSetDevice(self.facts.index), "cannot be used")

    # Memory.

    def free_bytes(self) -> int:
        """Return how much memory no one uses."""
        free, _ = self._check(self._rt.cudaMemGetInfo(), "cannot say how much memory is free")
        return int(free)

    def allocate(self, n_bytes: int, *, purpose: str) -> int:
        """Return the address of memory of the GPU."""
        what = f"{n_bytes / 2**20:.2f} MiB for {purpose} were asked for"
        (address,) = self._check(self._rt.cudaMalloc(n_bytes), what)
        return int(address)

    def free(self, address: int) -> None:
        """Give it back."""
        self._check(self._rt.cudaFree(address), "cannot free memory")

    def allocate_pinned(self, n_bytes: int) -> tuple[int, Bytes]:
        """Return the address of host memory that the GPU can copy from by itself, and the same as an array.

        It is not write-combined: results are read from it.
        """
        what = f"{n_bytes / 2**20:.2f} MiB of page-locked host memory were asked for"
        (address,) = self._check(self._rt.cudaHostAlloc(n_bytes, self._rt.cudaHostAllocPortable), what)
        array = np.frombuffer(memoryview((ctypes.c_ubyte * n_bytes).from_address(int(address))), np.uint8)
        return int(address), array

    def free_pinned(self, address: int) -> None:
        """Give it back; its array must not be used any more."""
        self._check(self._rt.cudaFreeHost(address), "cannot free page-locked memory")

    # Streams and events.

    def new_stream(self) -> Any:
        """Return a stream that does not wait for the default one."""
        return self._check(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking), "no new stream")[0]

    def destroy_stream(self, stream: Any) -> None:
        """Give it back."""
        self._check(self._rt.cudaStreamDestroy(stream), "cannot destroy a stream")

    def synchronize(self, stream: Any) -> None:
        """Wait until everything in the stream is done."""
        self._check(self._rt.cudaStreamSynchronize(stream), "a batch failed")

    def new_event(self) -> Any:
        """Return an event; waiting for it leaves the core to other threads, which read and write."""
        flags = self._rt.cudaEventDisableTiming | self._rt.cudaEventBlockingSync
        return self._check(self._rt.cudaEventCreateWithFlags(flags), "no new event")[0]

    def destroy_event(self, event: Any) -> None:
        """Give it back."""
        self._check(self._rt.cudaEventDestroy(event), "cannot destroy an event")

    def record(self, event: Any, stream: Any) -> None:
        """Let the event happen when everything now in the stream is done."""
        self._check(self._rt.cudaEventRecord(event, stream), "cannot record an event")

    def wait(self, stream: Any, event: Any) -> None:
        """Let the stream go on only when the event has happened."""
        self._check(self._rt.cudaStreamWaitEvent(stream, event, 0), "cannot wait for an event")

    def wait_here(self, event: Any) -> None:
        """Wait until the event has happened."""
        self._check(self._rt.cudaEventSynchronize(event), "a batch failed")

    # Copies, which come back before they are done.

    def copy_in(self, device: int, host: int, n_bytes: int, stream: Any) -> None:
        """Copy from page-locked memory to the GPU."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._rt.cudaMemcpyAsync(device, host, n_bytes, kind, stream), "cannot copy to the GPU")

    def copy_out(self, host: int, device: int, n_bytes: int, stream: Any) -> None:
        """Copy from the GPU to page-locked memory."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._rt.cudaMemcpyAsync(host, device, n_bytes, kind, stream), "cannot copy from the GPU")

    # Graphs.

    def begin_capture(self, stream: Any) -> None:
        """Collect what this thread puts into the stream, instead of doing it."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._rt.cudaStreamBeginCapture(stream, mode), "cannot capture a graph")

    def end_capture(self, stream: Any) -> Any:
        """Return what was collected, ready to be launched."""
        (graph,) = self._check(self._rt.cudaStreamEndCapture(stream), "cannot capture a graph")
        answer = self._rt.cudaGraphInstantiate(graph, 0)
        self._rt.cudaGraphDestroy(graph)  # was it ready or not; what came of that is the answer
        return self._check(answer, "cannot make a graph ready")[0]

    def launch(self, graph: Any, stream: Any) -> None:
        """Do what was collected."""
        self._check(self._rt.cudaGraphLaunch(graph, stream), "cannot launch a graph")

    def destroy_graph(self, graph: Any) -> None:
        """Give it back."""
        self._check(self._rt.cudaGraphExecDestroy(graph), "cannot destroy a graph")

    def _check(self, answer: tuple[Any, ...], what: str) -> tuple[Any, ...]:
        """Return what a call gives beside its status, which must be success."""
        status, *values = answer
        if not int(status):
            return tuple(values)
        where = f"{self.facts.device} is {self.facts.name}, driver: CUDA {self.facts.driver}"
        said = _said(self._rt, status)
        if _name_of(self._rt, status) == "cudaErrorMemoryAllocation":
            raise out_of_memory(self.facts, what, said)
        raise DeviceError(
            f"{self.facts.device}: {what}: {said}", where, fix=f"run it again; if it comes back, {_OTHER_DEVICE}"
        )


def out_of_memory(facts: DeviceFacts, what: str, *details: str) -> DeviceMemoryError:
    """Return the error that says there is no room, with what was asked for."""
    return DeviceMemoryError(
        f"{facts.device} is out of memory: {what}",
        *details,
        f"{facts.name} has {facts.memory_bytes / 2**30:.1f} GiB, which other programs may use too",
        fix=f"a smaller --batch or --tile, or close other programs on this GPU; {_OTHER_DEVICE}",
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _name_of(cudart: Any, status: Any) -> str:
    return bytes(cudart.cudaGetErrorName(status)[1]).decode()


def _said(cudart: Any, status: Any) -> str:
    return f"{bytes(cudart.cudaGetErrorString(status)[1]).decode()} ({_name_of(cudart, status)})"
