"""The network through onnxruntime on the CPU."""

from __future__ import annotations

from unet_deploy.card import ModelCard
from unet_deploy.errors import DeviceError, NotAnArtifactError
from unet_deploy.runtime.engines.base import Batch, EngineDescription
from unet_deploy.runtime.engines.memory import is_out_of_memory
from unet_deploy.runtime.engines.onnxruntime_session import OnnxruntimeEngine, Provider, import_onnxruntime

NAME = "onnxruntime-cpu"
PROVIDER = "CPUExecutionProvider"


class OnnxruntimeCpuEngine(OnnxruntimeEngine):
    """Runs an artifact's bytes on onnxruntime's CPU provider.

    Parameters
    ----------
    data
        The ONNX file, already checked by `runtime.artifact`.
    precision
        What the card says the graph computes in.
    threads
        Threads within one operator; 0 leaves it to onnxruntime (one a physical core).
    card
        The network's card, to take raw pixels as well: nothing is gained by it on a CPU, but that it is tested.

    Raises
    ------
    MissingDependencyError
        On `open`, if onnxruntime is not installed.
    """

    def __init__(self, data: bytes, *, precision: str, threads: int = 0, card: ModelCard | None = None) -> None:
        provider = Provider(name=PROVIDER, memory="cpu", reinstall="pip install --force-reinstall onnxruntime")
        super().__init__(data, provider, threads=threads, card=card)
        self._precision = precision

    def open(self) -> None:
        """Create the session."""
        ort = import_onnxruntime(package="onnxruntime", extra="cpu", purpose="running a model")
        self._ort, self._version = ort, ort.__version__
        try:
            self._session_of(None)
        except DeviceError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            if is_out_of_memory(error):
                raise
            raise NotAnArtifactError(
                f"onnxruntime {ort.__version__} cannot load the model",
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
                fix="export the model again with this release",
            ) from error

    def infer(self, batch: Batch) -> Batch:
        """Return the logits of a batch."""
        with self._freeing_memory():
            logits: Batch = self._session_of(None).run_unbound({"image": batch})["logits"]
        return logits

    def describe(self) -> EngineDescription:
        """Say what this is."""
        return EngineDescription(
            engine=NAME,
            device="cpu",
            precision=self._precision,
            provider=PROVIDER,
            versions={"onnxruntime": self._version},
        )
