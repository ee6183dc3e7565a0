"""``unet-deploy adopt``: another program's ONNX network in, an artifact that streams like ours out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import format_bytes, show_json, show_rows
from unet_deploy.errors import ConfigurationError

if TYPE_CHECKING:
    from unet_deploy.exporters.adopt import AdoptionReport

DEFAULT_OUTPUT = Path("adopted.onnx")


def adopt(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="OTHER.ONNX",
            help="A fully convolutional 2-D network, output as large as input; or a bioimage.io package of one "
            "(zip, folder or rdf.yaml), which says the rest itself.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The artifact to write.")
    ] = DEFAULT_OUTPUT,
    mean: Annotated[
        list[str] | None,
        typer.Option(
            "--mean", metavar="V[,V...]", help="(value - mean) / std, in grey values: one for all channels, or each."
        ),
    ] = None,
    std: Annotated[list[str] | None, typer.Option("--std", metavar="V[,V...]", help="See --mean.")] = None,
    percentiles: Annotated[
        str | None,
        typer.Option(
            "--percentiles",
            metavar="LOW,HIGH",
            help="Scale each channel of a volume so that these become 0 and 1; then --mean and --std, if given.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="uint8|uint16|int16|float32", help="Of the images it was trained on. Default: uint8."
        ),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--value-range", metavar="LOW:HIGH", help="Black and white of them. Default: all of an integer type."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call it. Default: the file's name.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--classes", metavar="NAME,NAME", help="Class names, in order of the output.")
    ] = None,
    channels: Annotated[
        list[str] | None, typer.Option("--channels", metavar="NAME,NAME", help="Channel names, in order of the input.")
    ] = None,
    logits: Annotated[
        str | None, typer.Option("--logits", metavar="NAME", help="Which output to take, if the file has several.")
    ] = None,
    pixel_size: Annotated[
        str | None, typer.Option("--pixel-size-nm", metavar="Y[,X]", help="Pixel size it was trained at.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Of the weights.")] = "unknown",
    citation: Annotated[str, typer.Option("--citation", help="Whom to cite for them.")] = "unknown",
    threads: flags.ThreadsOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Make another program's ONNX network one that streams like ours: measured, proved, with a model card."""
    from unet_deploy.exporters.adopt import adopt_model
    from unet_deploy.exporters.adopt_settings import AdoptionSettings

    settings = AdoptionSettings(
        dtype=dtype,
        value_range=_pair(value_range, "--value-range", "0:255"),
        mean=parse_numbers(mean, "--mean", "128"),
        std=parse_numbers(std, "--std", "40"),
        percentiles=_pair(percentiles, "--percentiles", "1,99.8"),
        name=name,
        classes=split_names(classes),
        channels=split_names(channels),
        pixel_size_nm=_size(pixel_size),
        licence=licence,
        citation=citation,
    )
    report = adopt_model(
        source,
        output,
        settings,
        logits=logits,
        threads=threads,
        overwrite=overwrite,
        progress=lambda step: typer.echo(f"adopt: {step}", err=True),
    )
    if as_json:
        show_json(_facts(report))
    else:
        show_rows(_rows(report))


def split_names(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return names that were given by commas, by repetition, or both.

    >>> split_names(["background,cell", "border"])
    ('background', 'cell', 'border')
    """
    return tuple(name.strip() for text in given or () for name in text.split(","))


def parse_numbers(given: Sequence[str] | None, flag: str, example: str) -> tuple[float, ...]:
    """Return numbers that were given by commas, by repetition, or both.

    >>> parse_numbers(["0.5,1", "2e3"], "--mean", "128")
    (0.5, 1.0, 2000.0)

    Raises
    ------
    ConfigurationError
        If they are none.
    """
    try:
        return tuple(float(text) for text in split_names(given))
    except ValueError as error:
        raise ConfigurationError(
            f"{flag} {' '.join(given or ())} came, numbers were expected",
            "one for all channels, or one for each, separated by commas",
            fix=f"{flag} {example}",
        ) from error


def _pair(
    text: str | None, flag: str, example: str, order: str = "low first, high after it"
) -> tuple[float, float] | None:
    if text is None:
        return None
    numbers = parse_numbers(re.split(r"[:,]", text), flag, example)
    if len(numbers) != 2:
        raise ConfigurationError(f"{flag} {text} came, two numbers were expected", order, fix=f"{flag} {example}")
    return numbers[0], numbers[1]


def _size(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    numbers = parse_numbers([text], "--pixel-size-nm", "4")
    pair = text if len(numbers) > 1 else f"{text},{text}"
    return _pair(pair, "--pixel-size-nm", "4,4", "one, or that of y and that of x")


def _facts(report: AdoptionReport) -> dict[str, Any]:
    artifact, network = report.artifact, report.artifact.card.network
    return {
        "output": str(report.path),
        "bytes": len(artifact.data),
        "nodes": artifact.n_nodes,
        "sha256": artifact.sha256,
        "parent_sha256": artifact.card.parent_sha256,
        "in_channels": network.in_channels,
        "classes": network.classes,
        "divisor": report.reach.divisor,
        "reach": {"before": report.reach.before, "after": report.reach.after},
        "context": report.reach.context,
        "test_difference": report.test_difference,
        "engine": report.engine.to_object(),
        "changed": list(report.notes),
        "proof": report.proof.to_object(),
    }


def _rows(report: AdoptionReport) -> list[tuple[str, str]]:
    artifact, reach, proof = report.artifact, report.reach, report.proof
    card, geometry = artifact.card, artifact.card.geometry
    seam = max(proof.seams, key=lambda seam: seam.difference)
    return [
        ("output", f"{report.path}, {format_bytes(len(artifact.data))}, sha256 {artifact.sha256[:16]}…"),
        (
            "network",
            f"{card.name}: {card.network.words}, {card.network.in_channels} channel(s), {card.network.classes} classes",
        ),
        ("graph", f"{artifact.n_nodes} nodes, opset 18"),
        *(("changed", note) for note in report.notes),
        (
            "context",
            f"{reach.context} px: by its graph a core needs {reach.before} px before and {reach.after} after it, "
            f"impulses were felt over {max(proof.field.y.before, proof.field.x.before)} and "
            f"{max(proof.field.y.after, proof.field.x.after)}",
        ),
        ("tiles", f"{geometry.legal_sides} px from {geometry.smallest_tile}, divisor {reach.divisor}"),
        ("rewritten", f"differs from the foreign graph by {report.test_difference:.3g}"),
        ("seams", f"tiles differ from one pass by {seam.difference:.3g} (rounding: {seam.limit:.3g})"),
        ("classes", ", ".join(info.name for info in card.classes)),
        ("checked", f"through {report.engine.engine} {report.engine.versions.get('onnxruntime', '')}"),
        ("next", f"unet-deploy segment VOLUME.zarr --model {report.path}"),
    ]
