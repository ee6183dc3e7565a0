"""Checkpoint in, checked products out.

1. Load the checkpoint; make and prove the fp32 artifact, the *parent* (`exporters.products`).
2. Draw tiles of the user's data, or of the procedural sample; make and prove fp16 and int8 on them.
3. Build engine plans of what was proved (`exporters.tensorrt`).
4. Only when all that was asked for is proved, write the files, each in one move. Whatever fails before leaves nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from unet_deploy.card import ModelCard, Precision
from unet_deploy.exporters.bioimageio import require_packageable, write_package
from unet_deploy.exporters.calibration import CalibrationSource, Tiles, draw_sample, read_tiles
from unet_deploy.exporters.parity import ParityRow
from unet_deploy.exporters.products import ENGINE, Product, Progress, Proof, derive, make_parent
from unet_deploy.exporters.targets import (
    FLAVOURS,
    PlanOptions,
    Target,
    Wanted,
    require_calibration,
    require_place,
    write_whole,
)
from unet_deploy.exporters.tensorrt import PlanProduct, find_device, make_int8_graph, make_plan
from unet_deploy.runtime.disk_space import full_disk_named
from unet_deploy.runtime.engine_plan import PlanManifest, write_engine_plan
from unet_deploy.runtime.engines.base import EngineDescription
from unet_deploy.runtime.engines.onnxruntime_session import import_onnxruntime
from unet_deploy.runtime.engines.openvino import import_openvino
from unet_deploy.runtime.engines.tensorrt_build import require_flags
from unet_deploy.training.checkpoint import load_checkpoint
from unet_deploy.training.network import UNet


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written and how it was checked.

    `engine`, `parity` and `compared_with` are of the engine nearest to the target; `proofs` are all there are. Of an
    engine plan, `manifest` says what it is for, `seconds` how long it took to build, and `note` what was not shown.
    """

    path: Path
    n_bytes: int
    n_nodes: int
    n_weights: int
    sha256: str
    card: ModelCard
    engine: EngineDescription
    parity: tuple[ParityRow, ...]
    compared_with: str = "torch"
    target: Target = "onnx"
    proofs: tuple[Proof, ...] = ()
    manifest: PlanManifest | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def max_difference(self) -> float:
        """Largest difference to the parent at any size."""
        return max(row.max_difference for row in self.parity)


@dataclass(slots=True, kw_only=True)
class _Products:
    """What was made and proved so far: artifacts by precision, TensorRT's int8 graph, plans."""

    artifacts: dict[Precision, Product] = field(default_factory=dict)
    tensorrt_int8: Product | None = None
    plans: dict[Wanted, PlanProduct] = field(default_factory=dict)


def export_checkpoint(
    checkpoint: str | Path, output: str | Path, *, overwrite: bool = False, progress: Progress = lambda _: None
) -> ExportReport:
    """Export a training checkpoint as one checked ONNX artifact (fp32).

    Parameters, and exceptions, as of `export_targets`.
    """
    (report,) = export_precisions(checkpoint, {"fp32": output}, overwrite=overwrite, progress=progress)
    return report


def export_precisions(
    checkpoint: str | Path,
    outputs: Mapping[Precision, str | Path],
    *,
    calibrate: CalibrationSource | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> tuple[ExportReport, ...]:
    """Export a training checkpoint as checked ONNX artifacts, one for each precision; see `export_targets`."""
    wanted: dict[Wanted, str | Path] = {("onnx", precision): output for precision, output in outputs.items()}
    return export_targets(checkpoint, wanted, calibrate=calibrate, overwrite=overwrite, progress=progress)


def export_targets(
    checkpoint: str | Path,
    outputs: Mapping[Wanted, str | Path],
    *,
    calibrate: CalibrationSource | None = None,
    plans: PlanOptions | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> tuple[ExportReport, ...]:
    """Export a training checkpoint as checked products, one for each target and precision.

    Parameters
    ----------
    checkpoint
        A file written by ``unet-deploy train``.
    outputs
        Where to write each product: see `exporters.targets.choose_outputs`.
    calibrate
        Data like those that will be segmented. int8 needs it; for fp16 it takes the place of the procedural sample.
    plans
        How engine plans are built.
    overwrite
        Replace existing files.
    progress
        Told each step, in words.

    Returns
    -------
    tuple of ExportReport
        One for each product, in the order given.

    Raises
    ------
    UsageError
        If int8 is asked for without data to calibrate on, or data are given that nothing needs; if a product cannot
        hold what the network is.
    OutputExistsError, OutputPathError
        If an output exists, its folder does not or cannot be written to, or it is the checkpoint itself.
    NoSpaceError
        If the disk is full; what was written before is whole.
    UnsafeModelError
        If a plan is to be written where others could replace it.
    CheckpointError, ModelNotFoundError
        If the checkpoint cannot be loaded.
    MissingDependencyError
        If onnxruntime, which proves parity, or what builds a target is not installed.
    DeviceError
        If a plan cannot be built on this machine.
    InputDataError
        If the calibration data cannot be read or used; see `exporters.calibration.read_tiles`.
    ParityError, TestTensorError
        If a file would not compute what the checkpoint computes.
    """
    wanted = {key: Path(output) for key, output in outputs.items()}
    options = plans or PlanOptions()
    precisions = tuple(dict.fromkeys(precision for _, precision in wanted))
    require_calibration(precisions, None if calibrate is None else calibrate.path)
    for (target, _), path in wanted.items():
        require_place(target, path, source=Path(checkpoint), overwrite=overwrite)
        if target in FLAVOURS:  # before minutes of work, not after
            require_flags(FLAVOURS[target], options.flags)
        if target == "openvino":
            import_openvino()
    import_onnxruntime(package="onnxruntime", extra="cpu", purpose="proving what is exported")
    progress("loading the checkpoint")
    model, card = load_checkpoint(Path(checkpoint))
    for target, precision in wanted:
        if target == "bioimageio":
            require_packageable(replace(card, precision=precision))
    products = _make(
        wanted,
        model,
        card,
        source=str(wanted.get(("onnx", "fp32"), checkpoint)),
        calibrate=calibrate,
        options=options,
        progress=progress,
    )
    _write(wanted, products, options, overwrite=overwrite)
    n_weights = sum(p.numel() for p in model.parameters())
    return tuple(_report(key, path, products, n_weights) for key, path in wanted.items())


def _make(
    wanted: Mapping[Wanted, Path],
    model: UNet,
    card: ModelCard,
    *,
    source: str,
    calibrate: CalibrationSource | None,
    options: PlanOptions,
    progress: Progress,
) -> _Products:
    """Make and prove everything that is asked for, in memory."""

    def engines_of(precision: Precision) -> tuple[str, ...]:
        return (ENGINE, "openvino") if ("openvino", precision) in wanted else (ENGINE,)

    made = _Products()
    parent = make_parent(model, card, source=source, progress=progress, engines=engines_of("fp32"))
    made.artifacts["fp32"] = parent
    tiles: Tiles | None = None
    plan_targets = [key for key in wanted if key[0] in FLAVOURS]
    if plan_targets or any(precision != "fp32" for _, precision in wanted):
        progress("drawing tiles" if calibrate is None else f"drawing tiles of {calibrate.path}")
        tiles = draw_sample(card) if calibrate is None else read_tiles(calibrate, parent.artifact)
    for target, precision in wanted:
        if precision == "int8" and target in FLAVOURS:
            if made.tensorrt_int8 is None:
                assert tiles is not None
                made.tensorrt_int8 = make_int8_graph(parent.artifact, tiles, progress=progress)
        elif precision not in made.artifacts:
            assert tiles is not None
            made.artifacts[precision] = derive(
                precision, parent.artifact, model, tiles, progress=progress, engines=engines_of(precision)
            )
    for key in plan_targets:
        target, precision = key
        product = made.tensorrt_int8 if precision == "int8" else made.artifacts[precision]
        assert product is not None
        assert tiles is not None
        flavour = FLAVOURS[target]
        made.plans[key] = make_plan(
            flavour,
            product,
            parent.artifact,
            tiles,
            options=options,
            progress=progress,
            device=find_device(flavour),
        )
    return made


def _write(wanted: Mapping[Wanted, Path], products: _Products, options: PlanOptions, *, overwrite: bool) -> None:
    for (target, precision), path in wanted.items():
        if target in FLAVOURS:
            plan = products.plans[target, precision].plan
            with full_disk_named(f"while writing {path}"):
                write_engine_plan(path, plan, overwrite=overwrite, key_folder=options.key_folder)
        elif target == "bioimageio":
            write_package(products.artifacts[precision].artifact, path, overwrite=overwrite)
        else:
            write_whole(path, products.artifacts[precision].artifact.data)


def _report(key: Wanted, path: Path, products: _Products, n_weights: int) -> ExportReport:
    target, precision = key
    planned = products.plans.get(key)
    product = planned or products.artifacts[precision]
    proofs = product.proofs if target in ("openvino", *FLAVOURS) else product.proofs[:1]
    nearest = proofs[-1]
    report = ExportReport(
        path=path,
        n_bytes=len(product.artifact.data),
        n_nodes=product.artifact.n_nodes,
        n_weights=n_weights,
        sha256=product.artifact.sha256,
        card=product.artifact.card,
        engine=nearest.engine,
        parity=nearest.rows,
        compared_with=nearest.compared_with,
        target=target,
        proofs=proofs,
    )
    if planned is not None:
        manifest = planned.plan.manifest
        return replace(
            report,
            n_bytes=manifest.plan_bytes,
            sha256=manifest.plan_sha256,
            manifest=manifest,
            seconds=planned.seconds,
            note=planned.note,
        )
    if target == "bioimageio":
        data = path.read_bytes()
        return replace(report, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return report
