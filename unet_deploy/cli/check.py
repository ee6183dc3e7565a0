"""``unet-deploy check``: the proof of one model on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import format_seconds, show_json, show_rows
from unet_deploy.errors import ParityError

if TYPE_CHECKING:
    from unet_deploy.runtime.artifact import Artifact
    from unet_deploy.runtime.pictures import Picture
    from unet_deploy.runtime.proof import Proof, Seam
    from unet_deploy.runtime.receptive_field import Reach, ReceptiveField
    from unet_deploy.runtime.survey import EngineStatus


def check(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model (.onnx), or the name of a bundled network.")],
    volume: Annotated[
        Path | None,
        typer.Option("--volume", metavar="VOLUME", help="Try it on the middle of this volume; else on a drawn sample."),
    ] = None,
    channel: flags.ChannelOption = None,
    axes: flags.AxesOption = None,
    level: flags.LevelOption = 0,
    input_range: flags.InputRangeOption = None,
    device: flags.DeviceOption = "auto",
    engine: flags.EngineOption = None,
    threads: flags.ThreadsOption = 0,
    as_json: flags.JsonOption = False,
) -> None:
    """Prove that a model computes here what its card promises: context, seams, engines, extremes."""
    from unet_deploy.runtime.artifact import load_artifact
    from unet_deploy.runtime.engines import open_engine
    from unet_deploy.runtime.pictures import sample_picture, volume_picture
    from unet_deploy.runtime.proof import prove
    from unet_deploy.runtime.survey import survey_engines

    artifact = load_artifact(model)
    picture: Picture = (
        sample_picture(artifact.card)
        if volume is None
        else volume_picture(
            artifact.card,
            volume,
            channels=channel or (),
            axes=axes,
            level=level,
            input_range=flags.parse_input_range(input_range),
        )
    )
    opened = open_engine(artifact, device=device, engine=engine, threads=threads)
    try:
        proof = prove(
            artifact, opened, picture, engines=survey_engines(artifact), say=lambda text: _say(f"check: {text}")
        )
    finally:
        opened.close()
    if as_json:
        show_json(proof.to_object())
    else:
        show_rows(_rows(proof, artifact))
    if not proof.has_passed:
        raise ParityError(
            f"{proof.model} does not compute what its card promises",
            *proof.problems,
            f"engine: {proof.engine.engine} on {proof.engine.device}",
            fix="do not segment with it here: try --device cpu, export it again, and report this if it stays",
        )


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _rows(proof: Proof, artifact: Artifact) -> list[tuple[str, str]]:
    field, geometry = proof.field, artifact.card.geometry
    versions = ", ".join(f"{name} {version}" for name, version in proof.engine.versions.items())
    return [
        ("model", f"{proof.model}, {proof.engine.precision}, sha256 {proof.sha256[:16]}…"),
        ("network", artifact.card.network.words),
        ("engine", f"{proof.engine.engine} on {proof.engine.device}" + (f", {versions}" if versions else "")),
        ("picture", proof.picture),
        ("declared", f"context {_reach(field.declared)}, divisor {geometry.divisor}"),
        (
            "measured",
            f"{_reach(field.y)} on axis y, {_reach(field.x)} on axis x, by {field.felt} of {field.impulses} impulses"
            + _compare_reach(field),
        ),
        ("beyond", f"an impulse changes {field.beyond:.3g} outside its reach (rounding: {field.beyond_limit:.3g})"),
        (
            "scrambled",
            f"a core changes by {field.scrambled:.3g} when all outside its context is replaced "
            f"(rounding: {field.scrambled_limit:.3g})",
        ),
        *(("seams", _describe_seam(seam)) for seam in proof.seams),
        (
            "off grid",
            f"{_describe_seam(proof.misaligned)}; {proof.misaligned.differing:.1%} of pixels differ, "
            f"{proof.misaligned.relabelled:.2%} change class: why tiles keep to the grid",
        ),
        *(("replayed", _describe_engine(status)) for status in proof.engines if status.works or status.is_wrong),
        *(("not here", f"{s.name}: {s.reason}") for s in proof.engines if not s.works and not s.is_wrong),
        (
            "extremes",
            ", ".join(f"{name} {'finite' if good else 'NOT FINITE'}" for name, good in proof.extremes.items()),
        ),
        ("verdict", "passed" if proof.has_passed else f"FAILED: {len(proof.problems)} problem(s)"),
    ]


def _reach(reach: Reach) -> str:
    return f"{reach.before} px before and {reach.after} after a core"


def _compare_reach(field: ReceptiveField) -> str:
    if field.is_exact:
        return ": as declared"
    return ": it uses less than it may, here" if field.is_within else ""


def _describe_seam(seam: Seam) -> str:
    return (
        f"{seam.tiles} tiles of {seam.tile[0]} × {seam.tile[1]} px from {seam.start} differ from one pass by "
        f"{seam.difference:.3g} (rounding: {seam.limit:.3g})"
    )


def _describe_engine(status: EngineStatus) -> str:
    if not status.works:
        return f"{status.name}: WRONG: {status.reason}"
    took = "" if status.seconds is None else f", opened in {format_seconds(status.seconds)}"
    if status.difference is None or status.limit is None:
        return f"{status.name} on {status.device}{took}, no test tensor"
    return f"{status.name} on {status.device}: difference {status.difference:.3g} (at most {status.limit:.3g}){took}"
