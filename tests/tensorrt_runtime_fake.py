"""A TensorRT made up in Python that runs plans, both flavours, on the GPU of `tests.cuda_fake`.

1. `FakeTensorrt` offers what we use of the module tensorrt or tensorrt_rtx. Its plans are Python functions on arrays.
2. A context computes on the addresses that it was given, when its turn in the stream has come, and takes memory of the
   GPU as a real one does. Two batches in two streams, a shape that changes under a batch on its way, a capture before
   the shape was ever run: each fails.
3. `plan_maker` is what the engine takes for the cache of plans: it runs the artifact's own graph in onnxruntime, or the
   integer fake where there is none.

What builds plans has a fake of its own, in `tests.tensorrt_fake`.
"""

# ruff: noqa: N802  the names are those of TensorRT

from __future__ import annotations

import enum
import hashlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.cuda_fake import FakeCudart, Operation
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_plan import EnginePlan, PlanManifest, Profile
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.engines.fake import FakeEngine

Shapes = dict[str, tuple[int, ...]]
Arrays = dict[str, Any]


@dataclass(eq=False)
class FakeNetwork:
    """What a plan stands for.

    `inputs` and `outputs` are dtype and shape, -1 where a batch says it; `profiles` are, by dynamic input, smallest,
    best and largest shape; `output_shapes` and `compute` are of a batch.
    """

    inputs: dict[str, tuple[Any, tuple[int, ...]]]
    outputs: dict[str, tuple[Any, tuple[int, ...]]]
    profiles: Sequence[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]]
    output_shapes: Callable[[Shapes], Shapes]
    compute: Callable[[Arrays], Arrays]
    context_bytes: Callable[[Shapes], int] = lambda shapes: 8 * max(int(np.prod(shape)) for shape in shapes.values())
    batches: list[Shapes] = field(default_factory=list)


class _Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Logger:
    """What a log is derived from."""

    Severity = _Severity


class FakeTensorrt:
    """See the module.

    Parameters
    ----------
    rt
        The GPU.
    is_rtx
        Which of the two it is.
    fail_enqueue
        Which batch it does not take, from 1, and what it logs then.
    """

    ILogger = Logger
    ExecutionContextAllocationStrategy = enum.Enum(
        "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
    )
    TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])

    def __init__(
        self, rt: FakeCudart, *, is_rtx: bool, fail_enqueue: int = 0, log: str = "it does not want to"
    ) -> None:
        self.rt = rt
        self.is_rtx = is_rtx
        self.__version__ = "1.7.1.116" if is_rtx else "11.4.0.106"
        self.fail_enqueue, self.log = fail_enqueue, log
        self.n_enqueued = 0
        self.plans: dict[bytes, FakeNetwork] = {}
        self.validity = ("VALID", 0)
        self.contexts: list[Any] = []
        self.broken = ""  # what goes wrong when a shape is set: profile, shape or unknown
        self.kernels = b""  # what the runtime cache was last given
        if is_rtx:
            self.EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
            self.EngineInvalidityDiagnostics = enum.IntFlag(
                "EngineInvalidityDiagnostics",
                {
                    "VERSION_MISMATCH": 1,
                    "UNSUPPORTED_CC": 2,
                    "OLD_CUDA_DRIVER": 4,
                    "OLD_CUDA_RUNTIME": 8,
                    "INSUFFICIENT_GPU_MEMORY": 16,
                    "MALFORMED_ENGINE": 32,
                    "CUDA_ERROR": 64,
                },
            )
            self.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
            self.DynamicShapesKernelSpecializationStrategy = enum.Enum(
                "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"]
            )

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def Runtime(self, log: Any) -> Runtime:
        assert isinstance(log, Logger)
        return Runtime(self, log)


def _held(rt: FakeCudart, kind: str, thing: Any, free: Callable[[], object] | None = None) -> None:
    """Count something that is freed when Python lets go of it."""
    rt.objects[kind] += 1

    def let_go() -> None:
        rt.objects[kind] -= 1
        if free is not None:
            free()

    weakref.finalize(thing, let_go)


class Runtime:
    """trt.Runtime."""

    engine_header_size = 64

    def __init__(self, trt: FakeTensorrt, log: Any) -> None:
        self._trt, self._log = trt, log
        self.engine_host_code_allowed: bool | None = None
        _held(trt.rt, "runtimes", self)

    def _say(self, line: str) -> None:
        self._log.log(_Severity.ERROR, line)

    def get_engine_validity(self, header: bytes) -> Any:
        assert self._trt.is_rtx, "TensorRT has no such call"
        assert len(header) <= self.engine_header_size
        name, reasons = self._trt.validity
        return self._trt.EngineValidity[name], reasons

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        assert self.engine_host_code_allowed is False
        if data not in self._trt.plans:
            self._say("IRuntime::deserializeCudaEngine: Error Code 1:\n Serialization")
            return None
        address = self._trt.rt.allocate_for_tensorrt(max(len(data), 1))
        if address is None:
            self._say("Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
            return None
        return ICudaEngine(self, self._trt.plans[data], address)


class ICudaEngine:
    """trt.ICudaEngine."""

    def __init__(self, runtime: Runtime, network: FakeNetwork, address: int) -> None:
        self._runtime, self._network = runtime, network
        self._trt, self._say = runtime._trt, runtime._say
        self.num_io_tensors = len(network.inputs) + len(network.outputs)
        self.num_optimization_profiles = len(network.profiles)
        rt = self._trt.rt
        _held(rt, "engines", self, lambda: rt.free_for_tensorrt(address))

    def get_tensor_name(self, index: int) -> str:
        return [*self._network.inputs, *self._network.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._trt.TensorIOMode
        return modes.INPUT if name in self._network.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return (self._network.inputs | self._network.outputs)[name][0]

    def get_tensor_shape(self, name: str) -> Any:
        return (self._network.inputs | self._network.outputs)[name][1]

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return list(self._network.profiles[index][name])

    def create_runtime_config(self) -> Any:
        assert self._trt.is_rtx, "TensorRT has no such call"
        return IRuntimeConfig(self._trt)

    def create_execution_context(self, config: Any = None) -> Any:
        strategy = config._strategy if self._trt.is_rtx else config
        assert strategy is self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        address = self._trt.rt.allocate_for_tensorrt(64)
        if address is None:
            self._say("[defaultAllocator.cpp::allocate::31] Error Code 1: (out of memory)")
            return None
        context = IExecutionContext(self, self._network, config if self._trt.is_rtx else None, address)
        self._trt.contexts.append(weakref.proxy(context))
        return context


class IRuntimeConfig:
    """trt.IRuntimeConfig."""

    def __init__(self, trt: FakeTensorrt) -> None:
        self._trt = trt
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.cuda_graph_strategy: Any = None
        self._cache: IRuntimeCache | None = None
        self._strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._trt)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class IRuntimeCache:
    """trt.IRuntimeCache."""

    def __init__(self, trt: FakeTensorrt) -> None:
        self._trt = trt
        self._compiled: list[str] = []

    def deserialize(self, data: bytes) -> bool:
        self._trt.kernels = data
        if not data.startswith(b"kernels:"):
            return False
        self._compiled = data.decode().removeprefix("kernels:").split(";")
        return True

    def serialize(self) -> Any:
        return memoryview(f"kernels:{';'.join(self._compiled)}".encode()) if self._compiled else None

    def _compile(self, what: str) -> None:
        if what not in self._compiled:
            self._compiled.append(what)


class IExecutionContext:
    """trt.IExecutionContext."""

    def __init__(self, engine: ICudaEngine, network: FakeNetwork, config: Any, address: int) -> None:
        self._engine, self._network, self._config = engine, network, config
        self._rt = engine._trt.rt
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] = 0, 0
        self._shapes: Shapes = {name: shape for name, (_, shape) in network.inputs.items() if -1 not in shape}
        self._profile = 0
        self._version = 0
        self._ready_for = -1
        self._stream: int | None = None
        self._pending: set[int] = set()
        rt = self._rt
        _held(rt, "contexts", self, lambda: rt.free_for_tensorrt(address))

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._change()
        self._profile = index
        return self._engine._trt.broken != "profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._network.profiles[self._profile][name]
        if not all(low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True)):
            self._engine._say(f"{name}: {shape} is outside profile {self._profile}")
            return False
        self._change()
        self._shapes[name] = tuple(shape)
        return self._engine._trt.broken != "shape"

    def infer_shapes(self) -> list[str]:
        is_broken = self._engine._trt.broken == "unknown"
        return [name for name in self._network.inputs if is_broken or name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._shapes | self._network.output_shapes(self._shapes))[name]

    def update_device_memory_size_for_shapes(self) -> int:
        return self._network.context_bytes(self._shapes)

    def set_device_memory(self, address: int, size: int) -> None:
        self._change()
        self._rt.take(address, size)
        self._scratch = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self._engine._trt
        (handle,) = (known for known in self._rt.streams if int(known) == stream)
        assert self._stream in (None, stream), "one context, two streams"
        self._stream = stream
        is_captured = self._rt.capture is not None and self._rt.capture[0] is handle
        trt.n_enqueued += 1
        if trt.n_enqueued == trt.fail_enqueue or (is_captured and self._ready_for != self._version):
            self._engine._say(f"IExecutionContext::enqueueV3: {trt.log}")
            return False
        self._ready_for = self._version
        if self._config is not None:
            self._config._cache._compile(str(self._shapes))
        addresses, shapes, version = dict(self._addresses), dict(self._shapes), self._version
        scratch, size = self._scratch
        assert scratch
        assert size >= self._network.context_bytes(shapes), "the context has no memory for this shape"
        key = trt.n_enqueued

        def do() -> None:
            assert version == self._version, "a graph of another shape was launched, or the shape changed in flight"
            arrays = {
                name: np.frombuffer(
                    self._rt.take(addresses[name], int(np.prod(shapes[name])) * np.dtype(dtype).itemsize), dtype
                ).reshape(shapes[name])
                for name, (dtype, _) in self._network.inputs.items()
            }
            self._network.batches.append(shapes)
            results = self._network.compute(arrays)
            expected = self._network.output_shapes(shapes)
            for name, (dtype, _) in self._network.outputs.items():
                assert (results[name].shape, results[name].dtype) == (expected[name], np.dtype(dtype)), name
                self._rt.put(addresses[name], np.ascontiguousarray(results[name]).tobytes())
            self._pending.discard(key)

        used = [scratch, *(addresses[name] for name in [*self._network.inputs, *self._network.outputs])]
        blocks = tuple(self._rt.block_at(address) for address in used)
        if not is_captured:
            self._pending.add(key)
        self._rt.push(handle, Operation(do=do, blocks=blocks))
        return True

    def _change(self) -> None:
        assert not self._pending or self._rt.sticky is not None, "the shape was changed with a batch on its way"
        self._version += 1


# What a plan of an artifact computes.


def plan_maker(trt: FakeTensorrt, *, folder: Path | None = None) -> Callable[..., EnginePlan]:
    """Return what takes the place of `tensorrt_cache.get_plan`; `folder` is where plans lie, if they are in files."""

    def get_plan(
        artifact: Artifact, *, flavour: Any, profiles: Sequence[Profile], form: ByteForm | None = None, device: Any
    ) -> EnginePlan:
        data = f"plan of {artifact.sha256} {form} {profiles}".encode()
        trt.plans[data] = network_of(artifact, profiles, form)
        sha256 = hashlib.sha256(data).hexdigest()
        path = None if folder is None else folder / f"{sha256[:8]}.engine"
        if path is not None:
            path.write_bytes(data)
        manifest = PlanManifest(
            flavour=flavour,
            version=trt.__version__,
            plan_sha256=sha256,
            plan_bytes=len(data),
            onnx_sha256=artifact.sha256,
            precision=artifact.card.precision,
            compute_capabilities=(device.compute_capability,),
            gpu=device.name,
            driver=device.driver,
            profiles=tuple(profiles),
            flags={},
            form=form,
        )
        return EnginePlan(data=data, manifest=manifest, card=artifact.card, source=str(path or "made up"))

    return get_plan


def network_of(artifact: Artifact, profiles: Sequence[Profile], form: ByteForm | None) -> FakeNetwork:
    """Return what the plan of an artifact computes."""
    geometry, network = artifact.card.geometry, artifact.card.network
    channels, classes = network.in_channels, network.classes
    image = "image" if form is None else "raw"
    inputs: dict[str, Any] = {image: (np.dtype("float32" if form is None else form.dtype), (-1, channels, -1, -1))}
    outputs: dict[str, Any] = {}
    if form is None:
        outputs["logits"] = (np.float32, (-1, classes, -1, -1))
    else:
        inputs |= {"gain": (np.float32, (channels, 1, 1)), "offset": (np.float32, (channels, 1, 1))}
        shapes = {"labels": (-1, -1, -1), "probabilities": (-1, classes, -1, -1)}
        outputs |= {kind: (np.uint8, shapes[kind]) for kind in form.kinds}
        outputs["checksum"] = (np.float32, (-1,))

    def output_shapes(shapes: Shapes) -> Shapes:
        n, _, y, x = shapes[image]
        y, x = geometry.output_side(y), geometry.output_side(x)
        known = {"logits": (n, classes, y, x), "labels": (n, y, x), "probabilities": (n, classes, y, x)}
        return {name: (known | {"checksum": (n,)})[name] for name in outputs}

    return FakeNetwork(
        inputs=inputs,
        outputs=outputs,
        profiles=[{image: (profile.minimum, profile.optimum, profile.maximum)} for profile in profiles],
        output_shapes=output_shapes,
        compute=_session(artifact, form, list(outputs)) if artifact.data else _integers(artifact),
    )


def _session(artifact: Artifact, form: ByteForm | None, outputs: list[str]) -> Callable[[Arrays], Arrays]:
    import onnxruntime

    from unet_deploy.runtime.composition import compose_bytes

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    data = artifact.data if form is None else compose_bytes(artifact.data, artifact.card, form)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda arrays: dict(zip(outputs, session.run(outputs, arrays), strict=True))


def _integers(artifact: Artifact) -> Callable[[Arrays], Arrays]:
    engine = FakeEngine(artifact.card.network)

    def compute(arrays: Arrays) -> Arrays:
        image = arrays["image"] if "image" in arrays else arrays["raw"] * arrays["gain"] + arrays["offset"]
        logits = engine.infer(image.astype(np.float32))
        shifted = np.exp((logits - logits.max(axis=1, keepdims=True)) / 2**12)
        return {
            "logits": logits,
            "labels": logits.argmax(axis=1).astype(np.uint8),
            "probabilities": np.rint(255 * shifted / shifted.sum(axis=1, keepdims=True)).astype(np.uint8),
            "checksum": logits.sum(axis=(1, 2, 3), dtype=np.float32),
        }

    return compute
