"""The network through onnxruntime on an NVIDIA GPU, and on nothing else.

onnxruntime falls back to the CPU where CUDA's libraries are missing, with a line in its log. Four things prevent that:
1. `disable_cpu_ep_fallback`, with the CUDA provider alone in the list: then the session is not made.
2. The session's own list of providers, and the provider of every node.
3. `disable_fallback`: a batch that fails is not run again on the CPU.
4. A tile is run when the engine is opened: cuDNN is loaded by the first convolution, and missed only there.

float32 stays float32 (TensorFloat-32 is off: it rounds 13 bits away). cuDNN chooses its algorithms by heuristics: a
run has several shapes (the test tensor, a block's last batch, smaller ones when memory runs out), and an exhaustive
search would time every layer for each. The arena grows by what is asked for, since tiles are of one size.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from unet_deploy.errors import DeviceError, MissingDependencyError, RequirementError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import EngineDescription, EngineOptions
from unet_deploy.runtime.engines.memory import is_out_of_memory
from unet_deploy.runtime.engines.onnxruntime_session import OnnxruntimeEngine, Provider, import_onnxruntime

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install 'unet-deploy[gpu]'"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


def cuda_provider(index: int, *, prefers_nhwc: bool = False, use_graphs: bool = False) -> Provider:
    """Return the CUDA provider of GPU `index`, with the options that the module gives reasons for.

    With `prefers_nhwc`, convolutions compute channels last; with `use_graphs`, a batch is launched as one CUDA graph.
    """
    return Provider(
        name=PROVIDER,
        memory="cuda",
        index=index,
        reinstall=f"pip uninstall -y {' '.join(_PACKAGES)}, then {INSTALL}",
        options={
            "device_id": str(index),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "cudnn_conv_use_max_workspace": "1",  # or the fastest algorithms are out of the question
            "do_copy_in_default_stream": "1",
            "use_tf32": "0",
            **({"prefer_nhwc": "1"} if prefers_nhwc else {}),
            **({"enable_cuda_graph": "1"} if use_graphs else {}),
        },
        config={"session.disable_cpu_ep_fallback": "1", "session.record_ep_graph_assignment_info": "1"},
        checks_nodes=True,
        captures=use_graphs,
    )


def installed_packages(names: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of onnxruntime's packages, which share one folder and break each other."""
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class OnnxruntimeCudaEngine(OnnxruntimeEngine):
    """Runs an artifact's bytes on onnxruntime's CUDA provider.

    Parameters
    ----------
    artifact
        The artifact.
    options
        Which GPU, and the CPU threads of what little is left to it.
    provider
        Where to compute; `cuda_provider` of the GPU by default. What channels last and graphs gain, benchmarks/gpu.py
        measures.
    packages
        What is installed; for tests on machines without a GPU.

    Raises
    ------
    MissingDependencyError
        On `open`, if onnxruntime-gpu is not installed, or only the package for the CPU is.
    DeviceError
        On `open`, if the provider does not load, or the network does not run on it, from the first to the last node.
    """

    severity = 4  # what fails is told by the error, and would stand on stderr twice

    def __init__(
        self,
        artifact: Artifact,
        options: EngineOptions,
        *,
        provider: Provider | None = None,
        packages: Callable[[], dict[str, str]] = installed_packages,
    ) -> None:
        super().__init__(
            artifact.data,
            provider or cuda_provider(options.device_index),
            threads=options.threads,
            card=artifact.card,
        )
        self._artifact = artifact
        self._packages = packages
        self._cuda = ""

    def open(self) -> None:
        """Load CUDA's libraries, create the session, and run the smallest tile."""
        ort = import_onnxruntime(package="onnxruntime-gpu", extra="gpu", purpose=f"the engine {NAME}")
        self._require_provider(ort)
        said = _preload(ort)
        self._ort, self._version, self._cuda = ort, ort.__version__, _cuda_version(ort)
        try:
            self._session_of(None)
        except RequirementError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            self.close()
            if is_out_of_memory(error):
                raise
            raise DeviceError(
                f"onnxruntime cannot use the GPU {self._device}",
                *said,
                f"{type(error).__name__}: {_first_line(error)}",
                f"onnxruntime {ort.__version__} is built for CUDA {_cuda_version(ort)}",
                fix=self._fix(said),
            ) from error
        try:
            self._warm_up()
        except Exception as error:
            self.close()
            if is_out_of_memory(error):
                raise
            raise DeviceError(
                f"the network does not run on the GPU {self._device}",
                *said,
                f"{type(error).__name__}: {_first_line(error)}",
                "a convolution needs cuDNN 9, which is looked for only when one runs",
                fix=f"{INSTALL}, which brings cuDNN, or --device cpu",
            ) from error

    def describe(self) -> EngineDescription:
        """Say what this is."""
        return EngineDescription(
            engine=NAME,
            device=self._device,
            precision=self._artifact.card.precision,
            provider=self._provider.name,
            versions={"onnxruntime": self._version, "cuda": self._cuda},
        )

    def _fix(self, missing: Sequence[str]) -> str:
        if not missing and self._artifact.card.precision == "int8":  # its integer biases have no kernel there
            return "a model in fp32 or fp16 (unet-deploy export --precision fp16), or --device cpu"
        return f"{INSTALL}, which brings CUDA's libraries; the driver must be as new as they are; or --device cpu"

    @property
    def _device(self) -> str:
        return f"cuda:{self._provider.index}"

    def _require_provider(self, ort: Any) -> None:
        """Refuse a package that cannot have the provider, and two packages in one folder."""
        found = self._packages()
        both = " and ".join(f"{name} {found[name]}" for name in _PACKAGES if name in found)
        if len(found) > 1:
            raise DeviceError(
                f"{both} are both installed, and share one folder: what runs is a mixture of them",
                f"the engine {NAME} needs onnxruntime-gpu alone, which has the CPU as well",
                fix=f"pip uninstall -y {' '.join(_PACKAGES)}, then {INSTALL}",
            )
        if self._provider.name in ort.get_available_providers():
            return
        if "onnxruntime-gpu" not in found:
            raise MissingDependencyError(
                f"the engine {NAME} needs the package 'onnxruntime-gpu', and the one for the CPU is installed",
                f"{both or 'an onnxruntime of unknown origin'} has: {', '.join(ort.get_available_providers())}",
                "the two share one folder: the other must go first",
                fix=f"pip uninstall -y onnxruntime, then {INSTALL}",
            )
        raise DeviceError(
            f"{both} is installed, and has no {self._provider.name}",
            f"it has: {', '.join(ort.get_available_providers())}; another onnxruntime may have been written over it",
            fix=f"reinstall it: {self._provider.reinstall}",
        )

    def _warm_up(self) -> None:
        network, side = self._artifact.card.network, self._artifact.card.geometry.smallest_tile
        self.infer(np.zeros((1, network.in_channels, side, side), np.float32))


def _preload(ort: Any) -> list[str]:
    """Load the libraries that our extra's packages bring; return what it says of those it does not find."""
    ort.set_default_logger_severity(OnnxruntimeCudaEngine.severity)
    if not hasattr(ort, "preload_dlls"):  # before 1.21
        return []
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    return [line.split(": ", maxsplit=1)[0] for line in said.getvalue().splitlines() if line.startswith("Failed")]


def _cuda_version(ort: Any) -> str:
    return str(getattr(ort, "cuda_version", "") or "unknown")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]
