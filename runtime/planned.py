"""A model that is an engine plan: what ``--model NAME.engine`` gives to a run.

1. `load_model` reads an ONNX artifact or, by its suffix, an engine plan (`runtime.engine_plan`, with all its checks).
2. A plan runs on the engine that built it and on no other, in its version, on its GPU, with batches it was built for;
   all of that is asked before the first tile, and the message says what would do.
3. It takes the place of the cache: nothing is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unet_deploy.errors import ConfigurationError, DeviceError, UsageError
from unet_deploy.runtime.artifact import Artifact, load_artifact
from unet_deploy.runtime.engine_plan import SUFFIX, EnginePlan, Flavour, Shape, load_engine_plan
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.engines.device_facts import DeviceFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedArtifact(Artifact):
    """A plan with its card, where an artifact is expected; `data` is the plan, `sha256` its hash."""

    plan: EnginePlan = field(repr=False)


def load_model(path: str | Path, *, is_trusted: bool = False, key_folder: Path | None = None) -> Artifact:
    """Read and check a model: an ONNX artifact, a bundled network's name, or an engine plan.

    Parameters
    ----------
    path
        A file, or the name of a bundled network; ``NAME.engine`` is a plan.
    is_trusted, key_folder
        Of a plan: see `runtime.engine_plan.load_engine_plan`.

    Raises
    ------
    ModelError
        If it is missing, damaged, or not ours; see `load_artifact` and `load_engine_plan`.
    """
    if Path(path).suffix != SUFFIX:
        return load_artifact(path)
    plan = load_engine_plan(path, is_trusted=is_trusted, key_folder=key_folder)
    return PlannedArtifact(
        data=plan.data,
        card=plan.card,
        source=plan.source,
        sha256=plan.manifest.plan_sha256,
        n_nodes=0,
        plan=plan,
    )


def settle_engine_name(artifact: Artifact, engine: str | None, batch_shape: Shape | None) -> str | None:
    """Return the engine to insist on: that of a plan, else the one asked for.

    Raises
    ------
    UsageError
        If another engine was asked for than the plan is for.
    ConfigurationError
        If the plan does not take the batches that will come, or begins at raw pixels, as some in the cache do.
    """
    if not isinstance(artifact, PlannedArtifact):
        return engine
    manifest = artifact.plan.manifest
    if engine not in (None, manifest.flavour):
        raise UsageError(
            f"engine {engine} was asked for, and {artifact.source} is a plan of {manifest.flavour}",
            "a plan runs on the engine that built it",
            fix=f"leave --engine out, or give --model the ONNX file that {engine} runs",
        )
    if manifest.form is not None:
        raise ConfigurationError(
            f"{artifact.source} begins at raw pixels, and gives no logits",
            "the model's test tensor is replayed on its logits; a plan that gives them is expected",
            fix=f"unet-deploy export model.pt --target {manifest.flavour}, or give --model the ONNX file",
        )
    if batch_shape is not None and not any(profile.holds(batch_shape) for profile in manifest.profiles):
        raise ConfigurationError(
            f"batches of {_words(batch_shape)} will come, and {artifact.source} was not built for them",
            *(f"it takes {_words(p.minimum)} to {_words(p.maximum)}" for p in manifest.profiles),
            fix="--tile or --batch within that, or build a plan for larger batches: unet-deploy export --batch",
        )
    return manifest.flavour


def take_plan(
    artifact: PlannedArtifact, *, flavour: Flavour, version: str, form: ByteForm | None, device: DeviceFacts | None
) -> EnginePlan:
    """Return an artifact's plan, if it is for this engine and device.

    Raises
    ------
    DeviceError
        If another version of TensorRT, or another GPU, is here than the plan was built for.
    """
    manifest = artifact.plan.manifest
    assert manifest.flavour == flavour, manifest
    assert manifest.form == form, manifest
    fix = f"build it here: unet-deploy export model.pt --target {flavour}"
    if manifest.version != version:
        raise DeviceError(
            f"{artifact.source} was built by {flavour} {manifest.version}, here is {version}",
            "a plan runs on the version that built it",
            fix=fix,
        )
    is_bound = manifest.flags.get("hardware_compatibility", "none") == "none"
    if manifest.gpu is not None and device is not None and is_bound and manifest.gpu != device.name:
        raise DeviceError(
            f"{artifact.source} was built for {manifest.gpu}, here is {device.name}",
            "a plan of TensorRT is for one model of GPU, unless it was built with --hardware-compatibility",
            fix=fix,
        )
    return artifact.plan


def has_form(artifact: Artifact, form: ByteForm) -> bool:
    """Tell whether a graph that begins at raw pixels can be made of an artifact: not of a plan without one."""
    return not isinstance(artifact, PlannedArtifact) or artifact.plan.manifest.form == form


def _words(shape: Shape) -> str:
    return " × ".join(map(str, shape))
