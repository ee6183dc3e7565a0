"""A GPU made up in Python, so that streams, events and page-locked memory are tested where there is none.

1. `FakeCudart` offers the calls of cuda-bindings that we make, under their names. What is asynchronous is put into the
   stream's queue, and is done later: the queues take turns at random, by a seed, whenever anything is called.
2. Memory that is not ready is garbage: fresh, freed, and page-locked memory that a copy is still to write. A copy
   beyond an allocation, a use after free, a double free, a source that changes while a copy from it waits, a wait that
   can never end: each fails at once with an AssertionError.
3. A failure can be had at will: no memory at the k-th allocation, an asynchronous error at the k-th operation, any
   other at the k-th call. As in CUDA an asynchronous error stays, and every call from then on returns it.

`tests.tensorrt_runtime_fake` computes on it.
"""

# ruff: noqa: N802, N815  the names are those of CUDA

from __future__ import annotations

import ctypes
import enum
import random
import threading
import types
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FRESH, PENDING, FREED = 0xCD, 0xA5, 0xDD


class Status(enum.IntEnum):
    """The values of cudaError_t that we meet."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInitializationError = 3
    cudaErrorIllegalAddress = 700
    cudaErrorUnknown = 999


TEXTS = {
    Status.cudaSuccess: "no error",
    Status.cudaErrorMemoryAllocation: "out of memory",
    Status.cudaErrorInsufficientDriver: "CUDA driver version is insufficient for CUDA runtime version",
    Status.cudaErrorNoDevice: "no CUDA-capable device is detected",
    Status.cudaErrorInitializationError: "initialization error",
    Status.cudaErrorIllegalAddress: "an illegal memory access was encountered",
    Status.cudaErrorUnknown: "unknown error",
}
_OK = (Status.cudaSuccess,)


class Handle:
    """A stream, an event or a graph: no number, but it can be made one, as those of cuda-bindings."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number


@dataclass(eq=False)
class Block:
    """One allocation."""

    kind: str
    n_bytes: int
    memory: Any
    is_freed: bool = False
    pending: int = 0

    @property
    def address(self) -> int:
        return ctypes.addressof(self.memory)

    def fill(self, value: int, offset: int = 0, n_bytes: int | None = None) -> None:
        ctypes.memset(self.address + offset, value, self.n_bytes if n_bytes is None else n_bytes)


@dataclass(eq=False)
class Operation:
    """Something in a stream: done in its turn, or, with `token`, a wait until that event has happened."""

    do: Callable[[], None] | None = None
    token: int | None = None
    blocks: tuple[Block, ...] = ()
    is_work: bool = True
    graph: Handle | None = None


class FakeCudart:
    """See the module.

    Parameters
    ----------
    seed
        Of the turns that the streams take.
    count, name, capability, memory_bytes, driver, count_status
        What the driver says of the GPUs; all are alike.
    fail_allocation, fail_operation, fail_call
        Which one is to fail, from 1.
    """

    cudaHostAllocPortable = 1
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaEventBlockingSync = 1
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(
        self,
        *,
        seed: int = 0,
        count: int = 1,
        name: str = "NVIDIA Fake 4090",
        capability: tuple[int, int] = (8, 9),
        memory_bytes: int = 2**30,
        driver: int = 13000,
        count_status: Status = Status.cudaSuccess,
        fail_allocation: int = 0,
        fail_operation: int = 0,
        fail_call: int = 0,
    ) -> None:
        self.random = random.Random(seed)
        self.pace = self.random.choice((1, 1, 1, 2, 5))  # at 1 the GPU does nothing until it is waited for
        self.count, self.name, self.capability = count, name, capability
        self.memory_bytes, self.driver, self.count_status = memory_bytes, driver, count_status
        self.fail_allocation, self.fail_operation, self.fail_call = fail_allocation, fail_operation, fail_call
        self.n_allocations = self.n_operations = self.n_calls = 0
        self.most_in_flight = 0
        self.called: Counter[str] = Counter()
        self.failed = ""  # the call that was made to fail
        self.blocks: dict[int, Block] = {}
        self.graveyard: list[Block] = []  # so that an address is never another's, and can be looked at after its end
        self.streams: dict[Handle, deque[Operation]] = {}
        self.events: dict[Handle, int | None] = {}
        self.happened: set[int] = set()
        self.graphs: dict[Handle, list[Operation]] = {}
        self.executables: dict[Handle, list[Operation]] = {}
        self.capture: tuple[Handle, list[Operation]] | None = None
        self.objects: Counter[str] = Counter()  # what TensorRT holds
        self.sticky: Status | None = None
        self._numbers = 1000
        self._device = threading.local()

    # What a test asks.

    def leaks(self) -> dict[str, int]:
        """Return how many there are of everything that was not given back."""
        counts = Counter(block.kind for block in self.blocks.values())
        counts += Counter(streams=len(self.streams), events=len(self.events), graphs=len(self.graphs))
        counts += Counter(executables=len(self.executables))
        return dict(counts + self.objects)

    @property
    def device_bytes(self) -> int:
        return sum(block.n_bytes for block in self.blocks.values() if block.kind != "host")

    @property
    def in_flight(self) -> int:
        """How many operations are still to be done."""
        return sum(operation.is_work for queue in self.streams.values() for operation in queue)

    # Devices.

    def cudaGetDeviceCount(self) -> Any:
        return self.count_status, self.count if self.count_status == Status.cudaSuccess else None

    def cudaDriverGetVersion(self) -> Any:
        return Status.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> Any:
        return Status.cudaSuccess, 13050

    def cudaGetDeviceProperties(self, index: int) -> Any:
        if (status := self._status("cudaGetDeviceProperties", needs_device=False)) is not None:
            return status, None
        major, minor = self.capability
        name = self.name.encode() + bytes(8)
        return Status.cudaSuccess, types.SimpleNamespace(
            name=name, major=major, minor=minor, totalGlobalMem=self.memory_bytes
        )

    def cudaGetErrorName(self, status: Status) -> Any:
        return Status.cudaSuccess, Status(status).name.encode()

    def cudaGetErrorString(self, status: Status) -> Any:
        return Status.cudaSuccess, TEXTS[Status(status)].encode()

    def cudaSetDevice(self, index: int) -> Any:
        if (status := self._status("cudaSetDevice", needs_device=False)) is not None:
            return (status,)
        assert 0 <= index < self.count
        self._device.index = index
        return _OK

    def cudaMemGetInfo(self) -> Any:
        if (status := self._status("cudaMemGetInfo")) is not None:
            return status, None, None
        return Status.cudaSuccess, self.memory_bytes - self.device_bytes, self.memory_bytes

    # Memory.

    def cudaMalloc(self, n_bytes: int) -> Any:
        return self._allocate("device", n_bytes, "cudaMalloc")

    def cudaHostAlloc(self, n_bytes: int, flags: int) -> Any:
        assert flags == self.cudaHostAllocPortable
        return self._allocate("host", n_bytes, "cudaHostAlloc")

    def cudaFree(self, address: int) -> Any:
        return self._free("device", address, "cudaFree")

    def cudaFreeHost(self, address: int) -> Any:
        return self._free("host", address, "cudaFreeHost")

    def cudaMemcpyAsync(self, target: int, source: int, n_bytes: int, kind: int, stream: Handle) -> Any:
        if (status := self._status("cudaMemcpyAsync")) is not None:
            return (status,)
        is_in = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        kinds = ("device", "host") if is_in else ("host", "device")
        to, at = self._find(target, n_bytes, kinds[0])
        of, _ = self._find(source, n_bytes, kinds[1])
        expected = ctypes.string_at(source, n_bytes) if is_in else b""
        if not is_in:
            to.fill(PENDING, at, n_bytes)

        def do() -> None:
            self._find(target, n_bytes, kinds[0])
            self._find(source, n_bytes, kinds[1])
            if is_in:
                assert ctypes.string_at(source, n_bytes) == expected, "the source was changed before it was copied"
            else:
                untouched = bytes([PENDING]) * n_bytes
                assert ctypes.string_at(target, n_bytes) == untouched, "the target was changed before the copy came"
            ctypes.memmove(target, source, n_bytes)

        self.push(stream, Operation(do=do, blocks=(to, of)))
        return _OK

    # Streams and events.

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        if (status := self._status("cudaStreamCreateWithFlags")) is not None:
            return status, None
        assert flags == self.cudaStreamNonBlocking
        stream = self._new_handle()
        self.streams[stream] = deque()
        return Status.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Handle) -> Any:
        status = self._status("cudaStreamDestroy", is_release=True)
        assert not self.streams.pop(stream), "a stream was destroyed before it was done"
        return (status or Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Handle) -> Any:
        status = self._status("cudaStreamSynchronize")
        assert self.capture is None or self.capture[0] is not stream, "a stream was waited for while it was captured"
        while self.streams[stream]:
            self._step_or_fail()
        return (self.sticky or status or Status.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        if (status := self._status("cudaEventCreateWithFlags")) is not None:
            return status, None
        event = self._new_handle()
        self.events[event] = None
        return Status.cudaSuccess, event

    def cudaEventDestroy(self, event: Handle) -> Any:
        status = self._status("cudaEventDestroy", is_release=True)
        self.events.pop(event)
        return (status or Status.cudaSuccess,)

    def cudaEventRecord(self, event: Handle, stream: Handle) -> Any:
        if (status := self._status("cudaEventRecord")) is not None:
            return (status,)
        assert event in self.events
        self._numbers += 1
        token = self._numbers
        self.events[event] = token
        self.push(stream, Operation(do=lambda: self.happened.add(token), is_work=False))
        return _OK

    def cudaStreamWaitEvent(self, stream: Handle, event: Handle, flags: int) -> Any:
        if (status := self._status("cudaStreamWaitEvent")) is not None:
            return (status,)
        token = self.events[event]
        if token is not None:  # CUDA does not wait for what was never recorded
            self.push(stream, Operation(token=token, is_work=False))
        return _OK

    def cudaEventSynchronize(self, event: Handle) -> Any:
        status = self._status("cudaEventSynchronize")
        token = self.events[event]
        while token is not None and token not in self.happened and self.sticky is None:
            self._step_or_fail()
        return (self.sticky or status or Status.cudaSuccess,)

    # Graphs.

    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> Any:
        if (status := self._status("cudaStreamBeginCapture")) is not None:
            return (status,)
        assert self.capture is None, "two captures at once"
        self.capture = stream, []
        return _OK

    def cudaStreamEndCapture(self, stream: Handle) -> Any:
        status = self._status("cudaStreamEndCapture", is_release=True)
        assert self.capture is not None
        assert self.capture[0] is stream
        operations, self.capture = self.capture[1], None
        if status is not None:
            return status, None
        graph = self._new_handle()
        self.graphs[graph] = operations
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> Any:
        if (status := self._status("cudaGraphInstantiate")) is not None:
            return status, None
        executable = self._new_handle()
        self.executables[executable] = self.graphs[graph]
        return Status.cudaSuccess, executable

    def cudaGraphDestroy(self, graph: Handle) -> Any:
        status = self._status("cudaGraphDestroy", is_release=True)
        self.graphs.pop(graph)
        return (status or Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, executable: Handle) -> Any:
        status = self._status("cudaGraphExecDestroy", is_release=True)
        pending = any(operation.graph is executable for queue in self.streams.values() for operation in queue)
        assert not pending, "a graph was destroyed before it had run"
        self.executables.pop(executable)
        return (status or Status.cudaSuccess,)

    def cudaGraphLaunch(self, executable: Handle, stream: Handle) -> Any:
        if (status := self._status("cudaGraphLaunch")) is not None:
            return (status,)
        operations = self.executables[executable]

        def do() -> None:
            for operation in operations:
                assert operation.do is not None
                operation.do()

        blocks = tuple(block for operation in operations for block in operation.blocks)
        self.push(stream, Operation(do=do, blocks=blocks, graph=executable))
        return _OK

    # The machinery.

    def push(self, stream: Handle, operation: Operation) -> None:
        """Put an operation into a stream, or into the graph that is captured from it."""
        assert stream in self.streams, "no such stream"
        if self.capture is not None and self.capture[0] is stream:
            assert operation.is_work, "an event in a graph"
            self.capture[1].append(operation)
            return
        for block in operation.blocks:
            block.pending += 1
        self.streams[stream].append(operation)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def take(self, address: int, n_bytes: int) -> bytes:
        """Return what memory of the GPU holds; for kernels."""
        self._find(address, n_bytes, "device")
        return ctypes.string_at(address, n_bytes)

    def put(self, address: int, data: bytes) -> None:
        """Write memory of the GPU; for kernels."""
        self._find(address, len(data), "device")
        ctypes.memmove(address, data, len(data))

    def block_at(self, address: int) -> Block:
        return self._find(address, 1, "device")[0]

    def allocate_for_tensorrt(self, n_bytes: int) -> int | None:
        """Return memory for TensorRT's own use, None if there is none left."""
        status, address = self._allocate("tensorrt", n_bytes, "tensorrt", is_call=False)
        return None if status else address

    def free_for_tensorrt(self, address: int) -> None:
        self._bury(address)

    def _allocate(self, kind: str, n_bytes: int, call: str, *, is_call: bool = True) -> Any:
        if is_call and (status := self._status(call)) is not None:
            return status, None
        assert n_bytes > 0
        assert self.capture is None, "an allocation in a capture"
        self.n_allocations += 1
        is_full = kind != "host" and self.device_bytes + n_bytes > self.memory_bytes
        if is_full or self.n_allocations == self.fail_allocation:
            return Status.cudaErrorMemoryAllocation, None
        block = Block(kind=kind, n_bytes=n_bytes, memory=(ctypes.c_ubyte * n_bytes)())
        block.fill(FRESH)
        self.blocks[block.address] = block
        return Status.cudaSuccess, block.address

    def _free(self, kind: str, address: int, call: str) -> Any:
        status = self._status(call, is_release=True)
        assert self.capture is None, "memory was freed in a capture"
        assert address in self.blocks, "memory was freed twice, or was never allocated"
        assert self.blocks[address].kind == kind
        assert self.blocks[address].pending == 0, "memory was freed that a batch on its way still uses"
        self._bury(address)
        return (status or Status.cudaSuccess,)

    def _bury(self, address: int) -> None:
        block = self.blocks.pop(address)
        block.is_freed = True
        block.fill(FREED)
        self.graveyard.append(block)

    def _find(self, address: int, n_bytes: int, kind: str) -> tuple[Block, int]:
        for block in self.blocks.values():
            offset = address - block.address
            if 0 <= offset < block.n_bytes:
                assert block.kind == kind, f"{block.kind} memory came, {kind} memory was expected"
                assert offset + n_bytes <= block.n_bytes, f"{offset + n_bytes} bytes of {block.n_bytes} were used"
                return block, offset
        was_freed = any(0 <= address - block.address < block.n_bytes for block in self.graveyard)
        raise AssertionError("memory was used after it was freed" if was_freed else "no such memory")

    def _status(self, call: str, *, needs_device: bool = True, is_release: bool = False) -> Status | None:
        """Count a call, let the GPU go on for a while, and return what the call is to return if it fails."""
        self.called[call] += 1
        self.n_calls += 1
        if needs_device:
            assert getattr(self._device, "index", None) is not None, f"{call} in a thread that chose no GPU"
        for _ in range(self.random.randrange(self.pace)):
            self._step()
        if self.sticky is not None:
            return self.sticky
        if self.n_calls != self.fail_call:
            return None
        self.failed = call
        return Status.cudaErrorUnknown

    def _step(self) -> bool:
        """Do the next operation of one stream; return False if every stream is done or waits."""
        ready = [
            queue
            for queue in self.streams.values()
            if queue and (queue[0].token is None or queue[0].token in self.happened)
        ]
        if not ready:
            return False
        operation = self.random.choice(ready).popleft()
        for block in operation.blocks:
            block.pending -= 1
        if operation.do is None:
            return True
        self.n_operations += operation.is_work
        if operation.is_work and self.n_operations == self.fail_operation:
            self.break_down()
        elif self.sticky is None:
            operation.do()
        return True

    def break_down(self) -> None:
        """As CUDA after an asynchronous error: nothing that waits is done any more, and every call returns it."""
        self.sticky = Status.cudaErrorIllegalAddress
        for queue in self.streams.values():
            for operation in queue:
                for block in operation.blocks:
                    block.pending -= 1
            queue.clear()

    def _step_or_fail(self) -> None:
        assert self._step() or self.sticky is not None, "deadlock: every stream waits for another"

    def _new_handle(self) -> Handle:
        self._numbers += 1
        return Handle(self._numbers)
