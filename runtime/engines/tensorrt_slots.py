"""Batches on their way through the GPU: copied in, computed, copied out, each in a stream of its own.

1. A slot is what one batch needs: page-locked host memory, memory of the GPU, three events. Slots are used again.
2. A batch waits for its own copy only: while one is computed, the next is copied in and the last is copied out. Batches
   are computed in the order they came in, since there is one execution context.
3. A batch comes into a free slot, or waits for the oldest: no more are on their way than there are slots.
4. A shape that changes waits until the GPU is idle, and drops the captured graphs, which hold shape and addresses.
5. Whatever goes wrong, nothing is left on its way; `close` gives everything back once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from unet_deploy.errors import DeviceError
from unet_deploy.runtime.engines.tensorrt_buffers import Array, Buffer, Slot, n_bytes_of
from unet_deploy.runtime.engines.tensorrt_cudart import Cuda
from unet_deploy.runtime.engines.tensorrt_network import LoadedNetwork, Shape

logger = logging.getLogger(__name__)

Arrays = Mapping[str, Array]


class Pipeline:
    """A loaded network with its streams and slots.

    Parameters
    ----------
    cuda
        The GPU.
    network
        What computes; closed with the pipeline.
    n_slots
        So many batches may be on their way at once.
    use_graphs
        Capture the computation of a slot's batch once, and launch it as a whole from then on.
    """

    def __init__(self, cuda: Cuda, network: LoadedNetwork, *, n_slots: int, use_graphs: bool) -> None:
        assert n_slots >= 1, n_slots
        self._cuda = cuda
        self.network = network
        self._use_graphs = use_graphs and not network.is_rtx  # which captures by itself
        self._run = 0
        self._input_shapes: dict[str, Shape] = {}
        self._shapes: dict[str, Shape] = {}
        self._streams: list[Any] = []
        self._slots: list[Slot] = []
        self._releases: list[Callable[[], None]] = []
        self._is_open = True
        try:
            self._streams += [self._owned(cuda.new_stream, cuda.destroy_stream) for _ in range(3)]
            self._slots += [self._new_slot() for _ in range(n_slots)]
        except BaseException:
            self.close()
            raise

    def infer(self, arrays: Arrays) -> dict[str, Array]:
        """Return copies of the outputs of one batch."""
        (outputs,) = self.stream([arrays], copies=True)
        return outputs

    def stream(self, batches: Iterable[Arrays], *, copies: bool = False) -> Generator[dict[str, Array], None, None]:
        """Yield the outputs of each batch, in order; they are views, valid until the next are asked for.

        A batch of arrays by input is read before the next one is asked for.
        """
        run = self._begin()
        free, busy = deque(self._slots), deque[Slot]()
        try:
            for arrays in batches:
                if not free:
                    yield self._outputs(busy[0], copies=copies)
                    free.append(busy.popleft())
                self._require_current(run)
                busy.append(free.popleft())
                self._submit(busy[-1], arrays)
            while busy:
                yield self._outputs(busy[0], copies=copies)
                self._require_current(run)
                busy.popleft()
        finally:
            if run == self._run:
                self._drain()

    def close(self) -> None:
        """Wait for what is on its way, and give everything back; may be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        self._run += 1
        self._drain()
        steps: list[Callable[[], object]] = [partial(self._drop_graph, slot) for slot in self._slots]
        steps += [self.network.close, *reversed(self._releases)]
        if failed := [step for step in steps if not self._quietly(step)]:
            logger.warning("%d of %d steps of closing a TensorRT engine failed", len(failed), len(steps))
        self._releases.clear()
        self._slots.clear()

    def _begin(self) -> int:
        """Wait for what an earlier caller left on its way, whose stream is of no use from now on."""
        assert self._is_open, "the engine is not open"
        self._run += 1
        self._drain()
        return self._run

    def _require_current(self, run: int) -> None:
        assert run == self._run, "another batch was begun, or the engine closed, before this stream was at its end"

    def _submit(self, slot: Slot, arrays: Arrays) -> None:
        """Put a batch on its way."""
        cuda, network = self._cuda, self.network
        cuda.enter()
        copy_in, compute, copy_out = self._streams
        self._set_shapes({name: array.shape for name, array in arrays.items()})
        self._reserve(slot)
        for tensor in network.tensors:
            if tensor.is_input:
                array, buffer = arrays[tensor.name], slot.buffers[tensor.name]
                assert array.dtype == tensor.dtype, (tensor.name, array.dtype, tensor.dtype)
                np.copyto(buffer.view(array.shape, tensor.dtype), array)
                cuda.copy_in(buffer.device, buffer.host, array.nbytes, copy_in)
        cuda.record(slot.copied_in, copy_in)
        cuda.wait(compute, slot.copied_in)
        self._compute(slot)
        cuda.record(slot.computed, compute)
        cuda.wait(copy_out, slot.computed)
        for tensor in network.tensors:
            if not tensor.is_input:
                buffer = slot.buffers[tensor.name]
                cuda.copy_out(buffer.host, buffer.device, n_bytes_of(slot.shapes[tensor.name], tensor.dtype), copy_out)
        cuda.record(slot.copied_out, copy_out)

    def _outputs(self, slot: Slot, *, copies: bool) -> dict[str, Array]:
        """Wait for a batch, and return its outputs."""
        self._cuda.enter()
        self._cuda.wait_here(slot.copied_out)
        views = {
            tensor.name: slot.buffers[tensor.name].view(slot.shapes[tensor.name], tensor.dtype)
            for tensor in self.network.tensors
            if not tensor.is_input
        }
        return {name: view.copy() for name, view in views.items()} if copies else views

    def _set_shapes(self, shapes: dict[str, Shape]) -> None:
        if shapes == self._input_shapes:
            return
        compute = self._streams[1]
        self._input_shapes = {}  # whatever fails on the way, the next batch sets them
        self._cuda.synchronize(compute)
        self._drop_graphs()
        self._shapes = self.network.prepare(shapes, compute)
        self._input_shapes = shapes

    def _reserve(self, slot: Slot) -> None:
        """Make room in a slot that no batch is in."""
        slot.shapes = self._shapes
        for tensor in self.network.tensors:  # for a shape that it had before, the addresses stay
            slot.buffers[tensor.name].reserve(n_bytes_of(slot.shapes[tensor.name], tensor.dtype))

    def _compute(self, slot: Slot) -> None:
        compute = self._streams[1]
        addresses = {name: buffer.device for name, buffer in slot.buffers.items()}
        if slot.graph is not None:
            self._cuda.launch(slot.graph, compute)
            return
        self.network.enqueue(addresses, compute)
        if self._use_graphs:  # for the next one: TensorRT gets ready for a shape in the first batch, uncaptured
            slot.graph = self._capture(addresses)

    def _capture(self, addresses: Mapping[str, int]) -> Any:
        compute = self._streams[1]
        self._cuda.begin_capture(compute)
        try:
            self.network.enqueue(addresses, compute)
        except BaseException:
            self._quietly(partial(self._abandon_capture, compute))
            raise
        return self._cuda.end_capture(compute)

    def _abandon_capture(self, stream: Any) -> None:
        self._cuda.destroy_graph(self._cuda.end_capture(stream))

    def _drop_graph(self, slot: Slot) -> None:
        graph, slot.graph = slot.graph, None
        if graph is not None:
            self._cuda.destroy_graph(graph)

    def _drop_graphs(self) -> None:
        for slot in self._slots:
            self._drop_graph(slot)

    def _drain(self) -> None:
        """Wait until nothing is on its way, whatever came of it: who waits for a result is told."""
        self._quietly(self._cuda.enter)
        for stream in self._streams:
            self._quietly(partial(self._cuda.synchronize, stream))

    def _new_slot(self) -> Slot:
        slot = Slot(buffers={tensor.name: Buffer(self._cuda) for tensor in self.network.tensors})
        self._releases += [buffer.free for buffer in slot.buffers.values()]
        slot.copied_in, slot.computed, slot.copied_out = (
            self._owned(self._cuda.new_event, self._cuda.destroy_event) for _ in range(3)
        )
        return slot

    def _owned(self, make: Callable[[], Any], destroy: Callable[[Any], None]) -> Any:
        """Make something that `close` destroys."""
        made = make()
        self._releases.append(partial(destroy, made))
        return made

    def _quietly(self, do: Callable[[], object]) -> bool:
        """Do something on the way out, and tell whether it worked: the next step must follow, whatever came of it.

        An asynchronous error comes back from every call after it; who waits for a result was told, or will be.
        """
        try:
            do()
        except DeviceError as error:
            logger.debug("on the way out: %s", error.headline)
            return False
        return True
