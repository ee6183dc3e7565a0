"""``unet-deploy export``: a checkpoint in, one checked ONNX artifact out for each precision asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import format_bytes, show_json, show_rows
from unet_deploy.errors import MissingDependencyError, UnknownNameError

if TYPE_CHECKING:
    from unet_deploy.card import Precision
    from unet_deploy.exporters.export import ExportReport

DEFAULT_OUTPUT = Path("model.onnx")


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="MODEL.PT", help="Checkpoint written by `unet-deploy train`.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The ONNX file to write; of several, fp32 has this name and the others .fp16 or .int8 in it. "
            "Default: model.onnx, model.fp16.onnx, model.int8.onnx.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="fp32|fp16|int8", help="What to compute in; repeat for several files."),
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Export a trained network as ONNX, proved equal to the checkpoint before it is written."""
    outputs = choose_outputs(parse_precisions(precision or ["fp32"]), output)
    grey_range = flags.parse_input_range(input_range)
    try:
        from unet_deploy.exporters.calibration import CalibrationSource
        from unet_deploy.exporters.export import export_precisions
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError.of_extra("torch", extra="train", purpose="exporting a checkpoint") from error

    source = None
    if calibrate is not None:
        source = CalibrationSource(
            path=calibrate, channels=tuple(channel or ()), axes=axes, level=level, input_range=grey_range
        )
    reports = export_precisions(
        checkpoint,
        outputs,
        calibrate=source,
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


def parse_precisions(names: Sequence[str]) -> tuple[Precision, ...]:
    """Return each precision once, in the order given.

    Raises
    ------
    UnknownNameError
        If one is no precision.
    """
    from unet_deploy.card import Precision

    known: dict[str, Precision] = {name: name for name in get_args(Precision)}
    for name in names:
        if name not in known:
            raise UnknownNameError.of_unknown_name("precision", name, known)
    return tuple(dict.fromkeys(known[name] for name in names))


def choose_outputs(precisions: Sequence[Precision], output: Path | None) -> dict[Precision, Path]:
    """Return the file of each precision: of one, just the output that was named.

    >>> [path.name for path in choose_outputs(("fp32", "int8"), Path("a.onnx")).values()]
    ['a.onnx', 'a.int8.onnx']
    """
    if output is not None and len(precisions) == 1:
        return {precisions[0]: output}
    base = output or DEFAULT_OUTPUT
    stem = base.name.removesuffix(".onnx")
    return {p: base if p == "fp32" else base.with_name(f"{stem}.{p}.onnx") for p in precisions}


def _facts(report: ExportReport) -> dict[str, Any]:
    return {
        "output": str(report.path),
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
                "shape": row.shape,
                "max_difference": row.max_difference,
                "limit": row.limit,
                "mean_difference": row.mean_difference,
                "labels_equal": row.labels_equal,
            }
            for row in report.parity
        ],
    }


def _rows(report: ExportReport) -> list[tuple[str, str]]:
    network = report.card.network
    return [
        ("output", f"{report.path}, {format_bytes(report.n_bytes)}, sha256 {report.sha256[:16]}…"),
        (
            "network",
            f"{report.card.name}: {network.words}, {network.in_channels} channel(s), "
            f"{network.classes} classes, {report.n_weights:,} weights",
        ),
        ("graph", f"{report.n_nodes} nodes, opset 18, {report.card.precision}, any legal size"),
        *(
            (
                "parity",
                f"{' × '.join(map(str, row.shape)):<19} max difference {row.max_difference:.2g} "
                f"(at most {row.limit:.2g}), mean {row.mean_difference:.2g}, labels equal {row.labels_equal:.3%}",
            )
            for row in report.parity
        ),
        (
            "checked",
            f"against {report.compared_with} through {report.engine.engine} "
            f"{report.engine.versions.get('onnxruntime', '')}",
        ),
        ("next", f"unet-deploy segment VOLUME.zarr --model {report.path}"),
    ]
