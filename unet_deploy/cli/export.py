"""``unet-deploy export``: a checkpoint in, one checked ONNX artifact out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import format_bytes, show_json, show_rows


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="MODEL.PT", help="Checkpoint written by `unet-deploy train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The ONNX file to write.")] = Path(
        "model.onnx"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Export a trained network as ONNX, proved equal to the checkpoint before it is written."""
    from unet_deploy.errors import MissingDependencyError

    try:
        from unet_deploy.exporters.export import export_checkpoint
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError.of_extra("torch", extra="train", purpose="exporting a checkpoint") from error

    report = export_checkpoint(
        checkpoint, output, overwrite=overwrite, progress=lambda step: typer.echo(f"export: {step}", err=True)
    )
    network = report.card.network
    if as_json:
        show_json(
            {
                "output": str(report.path),
                "bytes": report.n_bytes,
                "nodes": report.n_nodes,
                "weights": report.n_weights,
                "sha256": report.sha256,
                "max_difference": report.max_difference,
                "engine": report.engine.to_object(),
                "parity": [
                    {"shape": row.shape, "max_difference": row.max_difference, "limit": row.limit}
                    for row in report.parity
                ],
            }
        )
        return
    rows = [
        ("output", f"{report.path}, {format_bytes(report.n_bytes)}, sha256 {report.sha256[:16]}…"),
        (
            "network",
            f"{report.card.name}: depth {network.depth}, width {network.base_width}, {network.in_channels} channel(s), "
            f"{network.classes} classes, {report.n_weights:,} weights",
        ),
        ("graph", f"{report.n_nodes} nodes, opset 18, {report.card.precision}, any legal size"),
        *(
            (
                "parity",
                f"{' × '.join(map(str, row.shape)):<19} max difference {row.max_difference:.2g} "
                f"(at most {row.limit:.2g}), labels equal {row.labels_equal:.3%}",
            )
            for row in report.parity
        ),
        ("checked", f"against torch through {report.engine.engine} {report.engine.versions.get('onnxruntime', '')}"),
        ("next", f"unet-deploy segment VOLUME.zarr --model {report.path}"),
    ]
    show_rows(rows)
