"""Engine plans of a checkpoint's artifacts: built, and proved as near to the plan as this machine allows.

1. fp32 and fp16 are built from the artifact itself. int8 is built from a graph of its own, from the same calibration,
   in the form that TensorRT reads rightly (`exporters.int8`, `runtime.engines.tensorrt_graph`).
2. Profiles go from the smallest tile to the largest that a run would choose, fastest at that.
3. The graph is proved through onnxruntime against fp32. Where there is a GPU the plan itself is run too, and must pass;
   where there is none, the product says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from unet_deploy.card import ModelCard, Precision
from unet_deploy.errors import DeviceError, MissingDependencyError
from unet_deploy.exporters.calibration import CORE, Tiles
from unet_deploy.exporters.graph import stamp_card
from unet_deploy.exporters.int8 import quantise
from unet_deploy.exporters.products import (
    ENGINE,
    Product,
    Progress,
    Proof,
    bare_graph,
    derived_card,
    prove,
    prove_on_tiles,
    record,
)
from unet_deploy.exporters.targets import PlanOptions
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import DEFAULT_BUDGET_BYTES
from unet_deploy.runtime.engine_plan import EnginePlan, Flavour, PlanManifest, Profile
from unet_deploy.runtime.engines import CheckedEngine, open_engine
from unet_deploy.runtime.engines.base import Engine, EngineOptions
from unet_deploy.runtime.engines.device_facts import DeviceFacts
from unet_deploy.runtime.engines.tensorrt_build import build_plan, complete_flags
from unet_deploy.runtime.plan import largest_core

PlanEngine = Callable[[Artifact, EnginePlan], Engine]
"""What makes an engine that runs a plan; tests hand in their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanProduct:
    """A plan that was built and whose graph was proved, not yet written; `note` says what was not shown."""

    plan: EnginePlan
    artifact: Artifact
    proofs: tuple[Proof, ...]
    seconds: float
    note: str


def default_profile(card: ModelCard, *, batch: int = 1) -> Profile:
    """Return the batches a plan takes unless told: the largest tile that an engine unknown may hold, and smaller ones.

    The largest also holds the tiles that parity is shown on.
    """
    geometry, channels = card.geometry, card.network.in_channels
    best = geometry.tile_side(largest_core(card.network, batch=batch, memory_bytes=DEFAULT_BUDGET_BYTES))
    largest = max(best, geometry.tile_side(geometry.round_up(CORE)))
    smallest = geometry.smallest_tile
    return Profile(
        minimum=(1, channels, smallest, smallest),
        optimum=(batch, channels, best, best),
        maximum=(batch, channels, largest, largest),
    )


def make_int8_graph(parent: Artifact, tiles: Tiles, *, progress: Progress) -> Product:
    """Make and prove the int8 graph that TensorRT can read. It is no artifact: only a plan is made of it.

    Raises
    ------
    ParityError
        If it is too far from fp32.
    """
    progress(f"calibrating int8 for TensorRT on {len(tiles.calibration)} tiles")
    graph = quantise(bare_graph(parent), tiles.calibration, form="tensorrt")
    card = derived_card(parent, graph, "int8")
    unproved = _as_artifact(stamp_card(graph, card), card, parent, n_nodes=len(graph.graph.node))
    proofs = prove(parent, unproved, tiles, progress=progress)
    card = replace(card, parity=record(proofs, tiles))
    return Product(
        artifact=_as_artifact(stamp_card(graph, card), card, parent, n_nodes=len(graph.graph.node)), proofs=proofs
    )


def _as_artifact(data: bytes, card: ModelCard, parent: Artifact, *, n_nodes: int) -> Artifact:
    return Artifact(
        data=data,
        card=card,
        source=f"{parent.source} in int8 for TensorRT",
        sha256=hashlib.sha256(data).hexdigest(),
        n_nodes=n_nodes,
    )


def make_plan(
    flavour: Flavour,
    product: Product,
    parent: Artifact,
    tiles: Tiles,
    *,
    options: PlanOptions,
    progress: Progress,
    device: DeviceFacts | str,
    plan_engine: PlanEngine | None = None,
) -> PlanProduct:
    """Build a plan of a proved graph, and run it where there is a GPU for it.

    Parameters
    ----------
    flavour
        Which TensorRT builds it.
    product
        The artifact, or what `make_int8_graph` gave.
    parent
        The fp32 artifact.
    tiles
        What to run the plan on.
    options
        Flags, batch and key.
    progress
        Told each step, in words.
    device
        The GPU of this machine, or why there is none to be used.
    plan_engine
        What makes an engine that runs a plan; by default the engine of the flavour.

    Raises
    ------
    MissingDependencyError, DeviceError, NotAnArtifactError, UsageError
        As of `runtime.engines.tensorrt_build.build_plan`.
    ParityError, TestTensorError
        If the plan ran, and does not compute what fp32 computes.
    """
    artifact = product.artifact
    precision: Precision = artifact.card.precision
    progress(f"building the {flavour} plan in {precision}")
    profile = default_profile(artifact.card, batch=options.batch)
    built = build_plan(artifact.data, flavour=flavour, profiles=[profile], flags=options.flags)
    # A plan of TensorRT-RTX is of no one GPU.
    gpu = None if flavour == "tensorrt-rtx" or isinstance(device, str) else device
    own = () if gpu is None else (gpu.compute_capability,)
    manifest = PlanManifest(
        flavour=flavour,
        version=built.version,
        plan_sha256=hashlib.sha256(built.data).hexdigest(),
        plan_bytes=len(built.data),
        onnx_sha256=artifact.sha256,
        precision=precision,
        compute_capabilities=built.compute_capabilities or own,
        gpu=None if gpu is None else gpu.name,
        driver=None if gpu is None else gpu.driver,
        profiles=(profile,),
        flags=complete_flags(flavour, options.flags),
    )
    plan = EnginePlan(
        data=built.data, manifest=manifest, card=artifact.card, source=f"{flavour} plan of {parent.source}"
    )
    proofs = product.proofs[:1]  # the artifact's other engines say nothing of a plan
    if not isinstance(device, str):
        progress(f"running the plan on {device.name}")
    outcome = device if isinstance(device, str) else run_plan(plan, artifact, parent, tiles, plan_engine or _open)
    if isinstance(outcome, Proof):
        proofs, note = (*proofs, outcome), f"the plan itself ran on {outcome.engine.device}"
        plan = replace(plan, card=replace(plan.card, parity=record([outcome], tiles)))
    else:
        note = f"built, and not run ({outcome}); what it was built from ran through {ENGINE}"
    return PlanProduct(plan=plan, artifact=artifact, proofs=proofs, seconds=built.seconds, note=note)


def run_plan(plan: EnginePlan, artifact: Artifact, parent: Artifact, tiles: Tiles, make: PlanEngine) -> Proof | str:
    """Return how near the plan itself comes to fp32, or why this machine cannot run it."""
    engine = CheckedEngine(make(artifact, plan), artifact.card)
    try:
        engine.open()  # replays the test tensor
    except (DeviceError, MissingDependencyError) as error:
        return error.headline
    try:
        expected = open_engine(parent, device="cpu", engine=ENGINE)
        try:
            return prove_on_tiles(expected, engine, tiles)
        finally:
            expected.close()
    finally:
        engine.close()


def _open(artifact: Artifact, plan: EnginePlan) -> Engine:
    from unet_deploy.runtime.engines.tensorrt import TensorrtEngine

    def get_plan(*_: object, **__: object) -> EnginePlan:
        return plan

    return TensorrtEngine(artifact, EngineOptions(), flavour=plan.manifest.flavour, get_plan=get_plan)


def find_device(flavour: Flavour) -> DeviceFacts | str:
    """Return the first GPU of this machine, or why there is none to be used."""
    from unet_deploy.runtime.engines.tensorrt_cudart import import_cudart, read_device_facts

    try:
        return read_device_facts(import_cudart(extra=flavour), 0)
    except (DeviceError, MissingDependencyError) as error:
        return error.headline
