"""The network through onnxruntime on the CPU."""

from __future__ import annotations

from typing import Any

from unet_deploy.errors import DeviceError, MissingDependencyError, NotAnArtifactError
from unet_deploy.runtime.engines.base import Batch, EngineDescription

NAME = "onnxruntime-cpu"
PROVIDER = "CPUExecutionProvider"


class OnnxruntimeCpuEngine:
    """Runs an artifact's bytes on onnxruntime's CPU provider.

    Parameters
    ----------
    data
        The ONNX file, already checked by `runtime.artifact`.
    precision
        What the card says the graph computes in.
    threads
        Threads within one operator; 0 leaves it to onnxruntime (one a physical core).

    Raises
    ------
    MissingDependencyError
        On `open`, if onnxruntime is not installed.
    """

    def __init__(self, data: bytes, *, precision: str, threads: int = 0) -> None:
        self._data = data
        self._precision = precision
        self._threads = threads
        self._session: Any = None
        self._version = ""

    def open(self) -> None:
        """Create the session."""
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            if error.name != "onnxruntime":
                raise
            raise MissingDependencyError.of_extra("onnxruntime", extra="cpu", purpose="running a model") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # Other threads read and write while this one computes: a spinning pool would take their cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(self._data, options, providers=[PROVIDER])
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            raise NotAnArtifactError(
                f"onnxruntime {onnxruntime.__version__} cannot load the model",
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
                fix="export the model again with this release",
            ) from error
        if session.get_providers() != [PROVIDER]:
            raise DeviceError(
                f"onnxruntime chose {session.get_providers()}, {PROVIDER} was asked for",
                f"onnxruntime {onnxruntime.__version__}",
                fix="reinstall it: pip install --force-reinstall onnxruntime",
            )
        self._session = session
        self._version = onnxruntime.__version__

    def infer(self, batch: Batch) -> Batch:
        """Return the logits of a batch."""
        logits: Batch = self._session.run(None, {"image": batch})[0]
        return logits

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def describe(self) -> EngineDescription:
        """Say what this is."""
        return EngineDescription(
            engine=NAME,
            device="cpu",
            precision=self._precision,
            provider=PROVIDER,
            versions={"onnxruntime": self._version},
        )
