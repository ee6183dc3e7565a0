"""The network through TensorRT or TensorRT-RTX, on cuda-bindings and numpy alone.

1. The GPU is asked for first: without one, or with one that TensorRT-RTX has no code for, nothing is built.
2. The plan comes from the cache, or is built and put there. It takes batches up to the one that was said to come, the
   same turned, and the card's test tensor.
3. There are two networks: from normalised tiles to logits, and, when asked for, from raw pixels to bytes. One of them
   is loaded at a time, since each takes the memory of its weights and of a batch's activations.
4. Batches go through slots (`tensorrt_slots`), so that copies hide behind the computation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from unet_deploy.errors import DeviceError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_plan import EnginePlan, Flavour, Profile, Shape
from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult, EngineDescription, EngineOptions, RawBatch
from unet_deploy.runtime.engines.device_facts import DeviceFacts
from unet_deploy.runtime.engines.tensorrt_build import MODULES, import_tensorrt, require_version
from unet_deploy.runtime.engines.tensorrt_cache import get_plan as get_cached_plan
from unet_deploy.runtime.engines.tensorrt_cudart import Cuda, import_cudart, read_device_facts
from unet_deploy.runtime.engines.tensorrt_network import LoadedNetwork
from unet_deploy.runtime.engines.tensorrt_slots import Pipeline
from unet_deploy.runtime.planned import has_form

N_SLOTS = 3
"""One batch on its way in, one computed, one on its way out."""
DEFAULT_BATCH, DEFAULT_SIDE = 4, 572
"""What a plan is built for when nobody says what will come; the side is the paper's."""
RAW_DTYPES = ("uint8", "float32")
"""TensorRT has no uint16, whose values float32 holds."""
RTX_WITHOUT = range(9, 12)
"""Major compute capabilities of data centres (H100, H200, B200) that TensorRT-RTX has no code for."""
RTX_OLDEST = (7, 5)


class TensorrtEngine:
    """Runs an artifact on an NVIDIA GPU.

    Parameters
    ----------
    artifact
        A checked artifact; int8 only in TensorRT's own form.
    options
        Which GPU, and the shape of the batches that will come.
    flavour
        tensorrt or tensorrt-rtx.
    get_plan
        What gives the plan, with the keywords of `tensorrt_cache.get_plan`.
    modules
        TensorRT's module and cuda-bindings' runtime; None imports them.
    n_slots
        How many batches may be on their way at once.
    use_graphs
        Launch a batch's kernels as one CUDA graph; worth it for small tiles only.

    Raises
    ------
    MissingDependencyError, DeviceError
        On `open`: a package is not installed; there is no GPU, none that this flavour runs on, or the plan cannot be
        built or loaded.
    DeviceMemoryError
        On `open` and for a batch: the GPU has no room for it. The engine stays usable for smaller ones.
    ConfigurationError
        For a batch: the plan was not built for that shape.
    """

    def __init__(
        self,
        artifact: Artifact,
        options: EngineOptions,
        *,
        flavour: Flavour,
        get_plan: Callable[..., EnginePlan] = get_cached_plan,
        modules: tuple[Any, Any] | None = None,
        n_slots: int = N_SLOTS,
        use_graphs: bool = False,
    ) -> None:
        self._artifact = artifact
        self._options = options
        self._flavour = flavour
        self._get_plan = get_plan
        self._modules = modules
        self._n_slots = n_slots
        self._use_graphs = use_graphs
        self._trt: Any = None
        self._cuda: Cuda | None = None
        self._version = ""
        self._form: ByteForm | None = None
        self._loaded: tuple[ByteForm | None, Pipeline] | None = None
        self._unload: Callable[[], object] = lambda: None

    def open(self) -> None:
        """Get the plan and load it."""
        self._trt, cudart = self._modules or (import_tensorrt(self._flavour), import_cudart(extra=self._flavour))
        facts = read_device_facts(cudart, self._options.device_index)
        require_supported(self._flavour, facts)
        self._version = require_version(self._trt, self._flavour)
        self._cuda = Cuda(cudart, facts)
        self._pipeline(None)

    def infer(self, batch: Batch) -> Batch:
        """Return the logits of a batch."""
        pipeline = self._pipeline(None)
        (image,) = (tensor.name for tensor in pipeline.network.tensors if tensor.is_input)
        (logits,) = pipeline.infer({image: batch}).values()
        return logits

    def open_bytes(self, form: ByteForm) -> bool:
        """Load the network that begins at raw pixels; False if they are none of `RAW_DTYPES`, or a plan has no such."""
        if form.dtype not in RAW_DTYPES or not has_form(self._artifact, form):
            return False
        self._form = form
        self._pipeline(form)
        return True

    def stream(self, batches: Iterable[RawBatch], *, gain: Batch, offset: Batch) -> Iterator[ByteResult]:
        """Yield the result of each raw batch, in order, while later ones are on their way.

        If the stream is left before its end, or `batches` raises, what is on its way is waited for, and the engine can
        be used again; this stream cannot.
        """
        assert self._form is not None, "open_bytes was not called"
        pipeline = self._pipeline(self._form)
        constants = {"gain": gain.reshape(-1, 1, 1), "offset": offset.reshape(-1, 1, 1)}
        with closing(pipeline.stream({"raw": batch, **constants} for batch in batches)) as results:
            for result in results:
                yield ByteResult(
                    labels=result.get("labels"),
                    probabilities=result.get("probabilities"),
                    checksum=result["checksum"],
                )

    def close(self) -> None:
        """Wait for what is on its way, and free everything; may be called twice."""
        self._loaded = None
        self._unload()
        self._cuda = None

    def describe(self) -> EngineDescription:
        """Say what this is."""
        assert self._cuda is not None, "the engine is not open"
        facts = self._cuda.facts
        return EngineDescription(
            engine=self._flavour,
            device=facts.device,
            precision=self._artifact.card.precision,
            provider=f"{facts.name}, compute capability {facts.compute_capability}",
            versions={MODULES[self._flavour]: self._version, "driver": f"for CUDA {facts.driver}"},
        )

    def _pipeline(self, form: ByteForm | None) -> Pipeline:
        """Return the loaded network of a form, loading it in the place of the other."""
        assert self._cuda is not None, "the engine is not open"
        if self._loaded is not None and self._loaded[0] == form:
            return self._loaded[1]
        self._loaded = None
        self._unload()  # before the plan is asked for: a build needs memory, too
        self._cuda.enter()
        plan = self._get_plan(
            self._artifact,
            flavour=self._flavour,
            profiles=profiles_of(self._artifact, self._options.batch_shape),
            form=form,
            device=self._cuda.facts,
        )
        network = LoadedNetwork(self._trt, self._cuda, plan, use_graphs=self._use_graphs)
        pipeline = Pipeline(self._cuda, network, n_slots=self._n_slots, use_graphs=self._use_graphs)
        self._unload = weakref.finalize(self, pipeline.close)  # who lets go of an engine gets the memory back, too
        self._loaded = form, pipeline
        return pipeline


def profiles_of(artifact: Artifact, batch_shape: Shape | None) -> tuple[Profile, ...]:
    """Return the profiles that a plan is built with.

    The first takes every batch up to `batch_shape`, or up to one of `DEFAULT_BATCH` tiles; another the same turned,
    where a tile is not square, and another the card's test tensor, where that is no smaller: none is larger than what
    will come, since TensorRT chooses its kernels for the best shape, and keeps room for the largest.
    """
    geometry, channels = artifact.card.geometry, artifact.card.network.in_channels
    side = geometry.tile_side(geometry.round_up(DEFAULT_SIDE - 2 * geometry.context))
    n, _, y, x = batch_shape or (DEFAULT_BATCH, channels, side, side)
    smallest = geometry.smallest_tile
    tensor = artifact.card.test_tensor
    wanted: list[Any] = [(n, channels, y, x), (n, channels, x, y)]
    wanted += [] if tensor is None else [tensor.image.shape]
    profiles: list[Profile] = []
    for shape in wanted:
        if not any(profile.holds(shape) for profile in profiles):
            minimum = (1, channels, min(smallest, shape[2]), min(smallest, shape[3]))
            profiles.append(Profile(minimum=minimum, optimum=shape, maximum=shape))
    return tuple(profiles)


def require_supported(flavour: Flavour, facts: DeviceFacts) -> None:
    """Refuse a GPU that TensorRT-RTX has no code for.

    Raises
    ------
    DeviceError
        If so. Source: the support matrix of TensorRT-RTX 1.7.
    """
    capability = tuple(int(part) for part in facts.compute_capability.split("."))
    if flavour == "tensorrt-rtx" and (capability[0] in RTX_WITHOUT or capability < RTX_OLDEST):
        raise DeviceError(
            f"tensorrt-rtx does not run on {facts.name} (compute capability {facts.compute_capability})",
            "it is for the GPUs of desktops and notebooks: 7.5, 8.0, 8.6, 8.9, and from 12.0 on",
            fix="--engine tensorrt, or --engine onnxruntime-cuda",
        )
