"""``unet-deploy export``: a checkpoint in, one checked product out for each target and precision asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import describe_plan, format_bytes, show_json, show_rows
from unet_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from unet_deploy.exporters.export import ExportReport
    from unet_deploy.exporters.products import Proof
    from unet_deploy.runtime.engine_plan import Flag

DEFAULT_OUTPUT = Path("model.onnx")
PLANS = "Engine plans (--target tensorrt, tensorrt-rtx)"


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="MODEL.PT", help="Checkpoint written by `unet-deploy train`.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write; of several, fp32 has this name, and precision and target stand in the others'. "
            "Default: model.onnx, model.fp16.onnx, model.int8.onnx, model.tensorrt-rtx.engine, model.bioimageio.zip.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="fp32|fp16|int8", help="What to compute in; repeat for several files."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="onnx|tensorrt|tensorrt-rtx|openvino|bioimageio",
            help="What will run it; repeat for several. onnx, the default, is the file that most engines run; "
            "openvino is the same file, proved through that engine too.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="PATH",
            help="Data like those that will be segmented, which int8 needs: a Zarr volume, or a folder of PNG or TIFF "
            "images. Parity of fp16 and int8 is then shown on them.",
        ),
    ] = None,
    channel: flags.ChannelOption = None,
    axes: flags.AxesOption = None,
    level: Annotated[int, typer.Option("--level", min=0, help="Pyramid level of the data to calibrate on.")] = 0,
    input_range: flags.InputRangeOption = None,
    batch: Annotated[
        int,
        typer.Option("--batch", min=1, help="Most tiles per forward pass of an engine plan.", rich_help_panel=PLANS),
    ] = 1,
    gpu_arch: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu-arch",
            metavar="8.9",
            help="Compute capability that a tensorrt-rtx plan is for; repeat for several. "
            "Default: 8.0, 8.6, 8.9, 12.0.",
            rich_help_panel=PLANS,
        ),
    ] = None,
    hardware_compatibility: Annotated[
        str,
        typer.Option(
            "--hardware-compatibility",
            metavar="none|ampere_plus|same_compute_capability",
            help="Which other GPUs a tensorrt plan also runs on, slower.",
            rich_help_panel=PLANS,
        ),
    ] = "none",
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let a plan compute fp32 with 10 bit mantissas.", rich_help_panel=PLANS)
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Export a trained network, proved equal to the checkpoint before it is written."""
    from unet_deploy.exporters.targets import PRECISIONS, TARGETS, PlanOptions, choose_outputs, parse_names

    targets = parse_names("target", target or ["onnx"], TARGETS)
    precisions = parse_names("precision", precision or ["fp32"], PRECISIONS)
    outputs = choose_outputs(targets, precisions, output or DEFAULT_OUTPUT)
    grey_range = flags.parse_input_range(input_range)
    asked: dict[str, Flag] = {
        "tf32": tf32,
        "hardware_compatibility": hardware_compatibility,
        "compute_capabilities": ",".join(gpu_arch or ()),
    }
    try:
        from unet_deploy.exporters.calibration import CalibrationSource
        from unet_deploy.exporters.export import export_targets
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError.of_extra("torch", extra="train", purpose="exporting a checkpoint") from error

    source = None
    if calibrate is not None:
        source = CalibrationSource(
            path=calibrate, channels=tuple(channel or ()), axes=axes, level=level, input_range=grey_range
        )
    reports = export_targets(
        checkpoint,
        outputs,
        calibrate=source,
        plans=PlanOptions(flags=asked, batch=batch),
        overwrite=overwrite,
        progress=lambda step: typer.echo(f"export: {step}", err=True),
    )
    if as_json:
        facts = [_facts(report) for report in reports]
        show_json(facts[0] if len(facts) == 1 else {"products": facts})
        return
    for index, report in enumerate(reports):
        if index:
            typer.echo()
        show_rows(_rows(report))


def _facts(report: ExportReport) -> dict[str, Any]:
    facts = {
        "output": str(report.path),
        "target": report.target,
        "bytes": report.n_bytes,
        "nodes": report.n_nodes,
        "weights": report.n_weights,
        "sha256": report.sha256,
        "precision": report.card.precision,
        "parent_sha256": report.card.parent_sha256,
        "compared_with": report.compared_with,
        "max_difference": report.max_difference,
        "engine": report.engine.to_object(),
        "parity": [
            {
                "engine": proof.engine.engine,
                "shape": row.shape,
                "max_difference": row.max_difference,
                "limit": row.limit,
                "mean_difference": row.mean_difference,
                "labels_equal": row.labels_equal,
            }
            for proof in report.proofs
            for row in proof.rows
        ],
    }
    if report.manifest is not None:
        facts |= {"plan": report.manifest.to_object(), "build_seconds": report.seconds, "note": report.note}
    return facts


def _rows(report: ExportReport) -> list[tuple[str, str]]:
    network = report.card.network
    is_model = report.target != "bioimageio"
    return [
        ("output", f"{report.path}, {format_bytes(report.n_bytes)}, sha256 {report.sha256[:16]}…"),
        (
            "network",
            f"{report.card.name}: {network.words}, {network.in_channels} channel(s), "
            f"{network.classes} classes, {report.n_weights:,} weights",
        ),
        ("graph", f"{report.n_nodes} nodes, opset 18, {report.card.precision}, any legal size"),
        *_plan_rows(report),
        *(row for proof in report.proofs for row in _proof_rows(proof)),
        *([("next", f"unet-deploy segment VOLUME.zarr --model {report.path}")] if is_model else []),
    ]


def _proof_rows(proof: Proof) -> list[tuple[str, str]]:
    through = f"{proof.engine.engine} {next(iter(proof.engine.versions.values()), '')}".rstrip()
    return [
        *(
            (
                "parity",
                f"{' × '.join(map(str, row.shape)):<19} max difference {row.max_difference:.2g} "
                f"(at most {row.limit:.2g}), mean {row.mean_difference:.2g}, labels equal {row.labels_equal:.3%}",
            )
            for row in proof.rows
        ),
        ("checked", f"against {proof.compared_with} through {through}"),
    ]


def _plan_rows(report: ExportReport) -> list[tuple[str, str]]:
    if report.manifest is None:
        return []
    (name, plan), *batches = describe_plan(report.manifest)
    return [(name, f"{plan}, built in {report.seconds:.1f} s"), *batches, ("note", report.note)]
