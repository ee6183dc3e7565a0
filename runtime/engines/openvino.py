"""The network through OpenVINO's CPU plugin.

1. The graph is read from the artifact's bytes, never from a path.
2. OpenVINO is fastest on fixed shapes: each batch shape that comes is compiled, and the last two are kept. That of most
   batches, where it is known, is compiled in a thread from the beginning, while the test tensor's is compiled and run.
3. Up-convolutions are folded into the convolutions after them (`engines.openvino_graph`), where they are in float32: 6
   to 15 % faster (benchmarks/folding.py), and less memory.
4. On a CPU with bfloat16 its own default is to compute in that (0.05 off on logits of 6, measured): float32 is asked
   for, and the setting is read back.
"""

from __future__ import annotations

import io
import sys
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from unet_deploy.errors import DeviceError, MissingDependencyError, NotAnArtifactError
from unet_deploy.runtime.engines.base import Batch, EngineDescription
from unet_deploy.runtime.engines.openvino_graph import fold_up_convolutions
from unet_deploy.runtime.timeline import carried

NAME = "openvino"
PLUGIN = "CPU"
MAX_SHAPES = 2  # a batch and a block's last, smaller one, or upright and turned; each holds its activations


class OpenvinoEngine:
    """Runs an artifact's bytes on OpenVINO's CPU plugin.

    Parameters
    ----------
    data
        The ONNX file, already checked by `runtime.artifact`.
    precision
        What the card says of the graph; fp16 is stored so and computed in float32, int8 is computed in int8.
    threads
        Threads of one batch; 0 leaves it to OpenVINO (one a physical core). Never more than there are cores.
    batch_shape
        The (n, c, y, x) that most batches will have, where that is known.

    Raises
    ------
    MissingDependencyError, DeviceError
        On `open`: OpenVINO is not installed; it cannot be loaded, or will not compute in float32.
    """

    def __init__(
        self, data: bytes, *, precision: str, threads: int = 0, batch_shape: tuple[int, ...] | None = None
    ) -> None:
        self._data = data
        self._precision = precision
        self._threads = threads
        self._batch_shape = batch_shape
        self._version = ""
        self._core: Any = None
        self._model: Any = None
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._early: Future[Any] | None = None

    def open(self) -> None:
        """Read the graph; the first batch of a shape compiles it, where it is not the one that was foretold."""
        openvino = import_openvino()
        version = str(openvino.__version__).split("-", maxsplit=1)[0]
        core = openvino.Core()
        core.set_property(PLUGIN, self._settings())
        precision = core.get_property(PLUGIN, "INFERENCE_PRECISION_HINT")
        if precision != openvino.Type.f32:
            came = f"OpenVINO computes in {precision.get_type_name()}, float32 was asked for"
            raise DeviceError(came, f"openvino {version}, plugin {PLUGIN}", fix="--engine onnxruntime-cpu")
        try:
            model = core.read_model(io.BytesIO(self._data))
            fold_up_convolutions(model)
        except MemoryError:
            raise
        except Exception as error:  # its exceptions have no class of their own
            raise NotAnArtifactError(
                f"OpenVINO {version} cannot load the model",
                f"{type(error).__name__}: {_last_line(error)}",
                fix="export the model again with this release",
            ) from error
        self._core, self._model, self._version = core, model, version
        if self._batch_shape is not None:
            beside = ThreadPoolExecutor(1, "compile")
            self._early = beside.submit(carried(_compile, "compile"), core, model.clone(), self._batch_shape)
            beside.shutdown(wait=False)  # what was submitted is done all the same

    def infer(self, batch: Batch) -> Batch:
        """Return the logits of a batch."""
        # The input is read in place; the output is copied out, since the request's own memory is used again.
        logits: Batch = self._request(batch.shape).infer({0: batch}, share_inputs=True)[0]
        return logits

    def close(self) -> None:
        """Free the compiled graphs."""
        self._take_early()
        self._requests.clear()
        self._model = self._core = None

    def describe(self) -> EngineDescription:
        """Say what this is."""
        return EngineDescription(
            engine=NAME, device="cpu", precision=self._precision, provider=PLUGIN, versions={"openvino": self._version}
        )

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The batch shapes it is compiled for, the last used last."""
        return tuple(self._requests)

    def _settings(self) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,  # one batch runs at a time
            "ENABLE_CPU_PINNING": False,  # two workers would pin their threads to the same cores and leave others idle
            **({"INFERENCE_NUM_THREADS": self._threads} if self._threads else {}),
        }

    def _request(self, shape: tuple[int, ...]) -> Any:
        """Return what runs batches of that shape, compiled if it is new."""
        request = self._requests.pop(shape, None)
        if request is None:
            while len(self._requests) >= MAX_SHAPES:
                self._requests.popitem(last=False)
            request = self._take_early() if shape == self._batch_shape else None
            if request is None:
                request = _compile(self._core, self._model, shape)
        self._requests[shape] = request
        return request

    def _take_early(self) -> Any:
        """Return what was compiled in a thread from the beginning; None if it was taken before, or there is none."""
        early, self._early = self._early, None
        if early is not None:
            with suppress(Exception):  # it will be said by the batch that cannot be run
                return early.result()
        return None


def _compile(core: Any, model: Any, shape: tuple[int, ...]) -> Any:
    """Return what runs batches of a shape; the model is left with that shape."""
    model.reshape(list(shape))
    return core.compile_model(model, PLUGIN).create_infer_request()


def import_openvino() -> Any:
    """Return the package.

    Raises
    ------
    MissingDependencyError, DeviceError
        If it is not installed; if it is, and cannot be loaded.
    """
    try:
        with _without_telemetry():
            import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise MissingDependencyError.of_extra("openvino", extra="openvino", purpose="the engine openvino") from error
    except ImportError as error:  # a library of the system is missing
        raise DeviceError(
            "OpenVINO is installed and cannot be loaded",
            f"{type(error).__name__}: {_last_line(error)}",
            fix="reinstall it: pip install --force-reinstall openvino",
        ) from error
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the package that reports each import of openvino to its makers; without it openvino uses a stub."""
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)


def _last_line(error: Exception) -> str:
    """Return what is wrong: the lines before it name OpenVINO's source files."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
