"""One plan on one GPU: what TensorRT and TensorRT-RTX ask for, in the same words.

1. The plan's bytes become an engine; TensorRT-RTX is asked first whether it takes them. Host code in it is not run.
2. There is one execution context, so one batch at a time is computed. Its memory is ours, and as large as the batches
   that came: a plan may be built for more than there is room for.
3. TensorRT-RTX compiles kernels on the machine: all it needs for a shape at once (EAGER), kept in a file between runs.
4. TensorRT says why something failed in its log only: the lines are kept, and become part of the error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unet_deploy.errors import ConfigurationError, DeviceError
from unet_deploy.runtime.engine_plan import EnginePlan
from unet_deploy.runtime.engines.tensorrt_build import open_log
from unet_deploy.runtime.engines.tensorrt_cudart import Cuda, out_of_memory
from unet_deploy.runtime.engines.tensorrt_kernels import KernelFile

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
_NO_MEMORY = re.compile(r"out of memory|OutOfMemory", re.IGNORECASE)
SMALLEST_SCRATCH = 256
_KEPT_LINES, _LONGEST_LINE = 3, 300
_REASONS = {
    "VERSION_MISMATCH": "another version of TensorRT-RTX built it",
    "UNSUPPORTED_CC": "it was not built for this GPU's compute capability",
    "OLD_CUDA_DRIVER": "the driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "MALFORMED_ENGINE": "it is damaged, or no plan at all",
    "CUDA_ERROR": "CUDA failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One input or output of a plan; a side of -1 is known when a batch comes."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    is_input: bool

    @property
    def is_dynamic(self) -> bool:
        """Tell whether its shape is to be set."""
        return -1 in self.shape


class LoadedNetwork:
    """A plan that is ready to run.

    Parameters
    ----------
    trt
        The module tensorrt or tensorrt_rtx.
    cuda
        The GPU, entered.
    plan
        A plan that may be trusted: it is native code.
    use_graphs
        Let TensorRT-RTX launch a batch as one CUDA graph; the classic one leaves that to its caller.

    Raises
    ------
    DeviceError
        If the plan cannot be run here.
    DeviceMemoryError
        If there is no room for it.
    """

    def __init__(self, trt: Any, cuda: Cuda, plan: EnginePlan, *, use_graphs: bool) -> None:
        self._trt = trt
        self._cuda = cuda
        self._plan = plan
        self.is_rtx = plan.manifest.flavour == "tensorrt-rtx"
        self._log = open_log(trt)
        self._runtime: Any = trt.Runtime(self._log)
        self._runtime.engine_host_code_allowed = False
        self._kernels: Any = None
        self._file: KernelFile | None = None
        self.tensors: tuple[TensorInfo, ...] = ()
        self.profiles: tuple[dict[str, tuple[Shape, Shape]], ...] = ()
        self._engine: Any = None
        self._context: Any = None
        self._profile_index = 0
        self._scratch = self._scratch_bytes = 0
        try:
            self._load(use_graphs=use_graphs)
            self._plan = replace(plan, data=b"")  # the GPU has it now
        except BaseException:
            self._file = None
            self.close()  # now: the error holds on to this object, and a smaller batch may be tried next
            raise

    def prepare(self, shapes: Mapping[str, Shape], stream: Any) -> dict[str, Shape]:
        """Set the shapes of a batch's inputs, and return those of all tensors. The stream must be idle.

        Raises
        ------
        ConfigurationError
            If the plan was not built for them.
        """
        dynamic = {tensor.name: shapes[tensor.name] for tensor in self.tensors if tensor.is_input and tensor.is_dynamic}
        index = self._fitting(dynamic)
        if index != self._profile_index:
            if not self._context.set_optimization_profile_async(index, int(stream)):
                raise self._failure(f"profile {index} cannot be used")
            self._profile_index = index
        for name, shape in dynamic.items():
            if not self._context.set_input_shape(name, shape):
                raise self._failure(f"shape {shape} of {name} cannot be used")
        if unknown := self._context.infer_shapes():
            raise self._failure(f"shapes of {', '.join(unknown)} are not known")
        self._reserve()
        return {tensor.name: tuple(self._context.get_tensor_shape(tensor.name)) for tensor in self.tensors}

    def enqueue(self, addresses: Mapping[str, int], stream: Any) -> None:
        """Put the computation of a batch into the stream.

        Raises
        ------
        DeviceError
            If TensorRT does not take it.
        """
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)
        if not self._context.execute_async_v3(int(stream)):
            raise self._failure("a batch cannot be started")

    def close(self) -> None:
        """Keep the compiled kernels, and free everything. The GPU must be idle; may be called twice."""
        kernels = None if self._file is None else self._kernels.serialize()
        if self._file is not None and kernels is not None:
            self._file.write(bytes(kernels))
        # In this order: a context needs its memory and its engine, an engine its runtime.
        self._file = self._kernels = None
        self._context = None
        self._engine = None
        self._runtime = None
        self._free()

    def _load(self, *, use_graphs: bool) -> None:
        if self.is_rtx:
            self._require_valid()
        self._engine = self._runtime.deserialize_cuda_engine(self._plan.data)
        if self._engine is None:
            raise self._failure("the plan cannot be loaded")
        self.tensors = tuple(self._tensor(i) for i in range(self._engine.num_io_tensors))
        self.profiles = tuple(self._profile(i) for i in range(self._engine.num_optimization_profiles))
        ours = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = self._runtime_config(ours, use_graphs=use_graphs) if self.is_rtx else ours
        self._context = self._engine.create_execution_context(how)
        if self._context is None:  # TensorRT gives no reason but memory
            what = f"no execution context can be made, {self._cuda.free_bytes() / 2**20:.0f} MiB are free"
            raise out_of_memory(self._cuda.facts, what, *self._last_lines())

    def _reserve(self) -> None:
        """Give the context the memory that the activations of its shapes need."""
        # Of a context without any memory no batch is taken, not even one that needs none.
        n_bytes = max(int(self._context.update_device_memory_size_for_shapes()), SMALLEST_SCRATCH)
        if n_bytes > self._scratch_bytes:
            self._free()
            self._scratch = self._cuda.allocate(n_bytes, purpose="the network's activations")
            self._scratch_bytes = n_bytes
        self._context.set_device_memory(self._scratch, self._scratch_bytes)

    def _free(self) -> None:
        scratch, self._scratch, self._scratch_bytes = self._scratch, 0, 0
        if scratch:
            self._cuda.free(scratch)

    def _runtime_config(self, ours: Any, *, use_graphs: bool) -> Any:
        """Return how TensorRT-RTX is to run the plan."""
        trt, config = self._trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(ours)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        graphs = trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if use_graphs else graphs.DISABLED
        self._kernels = config.create_runtime_cache()
        self._file = KernelFile.of_plan(self._plan, self._cuda.facts)
        known = None if self._file is None else self._file.read()
        if self._file is not None and known is not None and not self._kernels.deserialize(known):
            self._file.refuse("TensorRT-RTX does not take it")
        config.set_runtime_cache(self._kernels)
        return config

    def _require_valid(self) -> None:
        header = self._plan.data[: self._runtime.engine_header_size]
        validity, reasons = self._runtime.get_engine_validity(header)
        kinds = self._trt.EngineValidity
        if validity == kinds.VALID:
            return
        bits = self._trt.EngineInvalidityDiagnostics.__members__
        names = [name for name, bit in bits.items() if int(bit) & int(reasons)]
        said = "; ".join(_REASONS.get(name, name) for name in names) or "no reason given"
        if validity == kinds.SUBOPTIMAL:
            logger.warning("%s: this plan is not the best for %s: %s", self._plan.source, self._cuda.facts.name, said)
            return
        if "INSUFFICIENT_GPU_MEMORY" in names:
            raise out_of_memory(self._cuda.facts, "TensorRT-RTX says that the plan needs more", self._where())
        raise DeviceError(
            f"TensorRT-RTX refuses the plan on {self._cuda.facts.device}: {said}",
            *self._last_lines(),
            self._where(),
            fix=self._fix(),
        )

    def _tensor(self, index: int) -> TensorInfo:
        name = self._engine.get_tensor_name(index)
        return TensorInfo(
            name=name,
            dtype=np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))),
            shape=tuple(self._engine.get_tensor_shape(name)),
            is_input=self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT,
        )

    def _profile(self, index: int) -> dict[str, tuple[Shape, Shape]]:
        """Return the smallest and the largest shape of each dynamic input."""
        found = {}
        for tensor in self.tensors:
            if tensor.is_input and tensor.is_dynamic:
                smallest, _, largest = self._engine.get_tensor_profile_shape(tensor.name, index)
                found[tensor.name] = tuple(smallest), tuple(largest)
        return found

    def _fitting(self, shapes: Mapping[str, Shape]) -> int:
        """Return the first profile that takes the shapes; the current one, if it does."""
        order = sorted(range(len(self.profiles)), key=lambda index: index != self._profile_index)
        for index in order:
            if all(_lies_in(shapes[name], *limits) for name, limits in self.profiles[index].items()):
                return index
        limits = [
            f"it was built for {name} from {_text(smallest)} to {_text(largest)}"
            for profile in self.profiles
            for name, (smallest, largest) in profile.items()
        ]
        came = ", ".join(f"{name} {_text(shape)}" for name, shape in shapes.items())
        raise ConfigurationError(
            f"a batch of {came} (n×c×y×x) came, which the plan does not take",
            *limits,
            self._where(),
            fix="--batch and --tile within these, or have it built for the larger ones: "
            "open the engine with their batch_shape, or export the plan again",
        )

    def _failure(self, what: str) -> DeviceError:
        """Return the error that TensorRT's log explains."""
        lines = self._last_lines()
        if any(_NO_MEMORY.search(line) for line in lines):
            return out_of_memory(self._cuda.facts, what, *lines)
        return DeviceError(
            f"{self._cuda.facts.device}: {what}",
            *lines,
            self._where(),
            fix=f"{self._fix()}; --device cpu runs anywhere",
        )

    def _last_lines(self) -> tuple[str, ...]:
        lines = tuple(" ".join(line.split())[:_LONGEST_LINE] for line in self._log.problems[-_KEPT_LINES:])
        self._log.problems.clear()  # the next error has others
        return lines

    def _where(self) -> str:
        manifest, facts = self._plan.manifest, self._cuda.facts
        return (
            f"plan: {self._plan.source}, built by {manifest.flavour} {manifest.version}; "
            f"{facts.name}, compute capability {facts.compute_capability}, driver: CUDA {facts.driver}"
        )

    def _fix(self) -> str:
        return f"have it built again: delete {self._plan.source}"


def _lies_in(shape: Shape, smallest: Shape, largest: Shape) -> bool:
    return len(shape) == len(smallest) and all(
        low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True)
    )


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape))
