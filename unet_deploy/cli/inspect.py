"""``unet-deploy inspect``: what a model or a volume is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import describe_plan, format_bytes, format_seconds, show_json, show_rows

if TYPE_CHECKING:
    from unet_deploy.card import ModelCard, Normalisation, Training


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="X", help="A model (.onnx, .pt, .engine), a bundled network's name, or a volume.")
    ],
    axes: flags.AxesOption = None,
    level: flags.LevelOption = 0,
    trust_engine: flags.TrustEngineOption = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Say what a model or a volume is."""
    if path.suffix == ".onnx" or _is_bundled(path):
        rows, facts = _inspect_artifact(path)
    elif path.suffix == ".engine":
        rows, facts = _inspect_plan(path, trust_engine=trust_engine)
    elif path.suffix == ".pt":
        rows, facts = _inspect_checkpoint(path)
    else:
        rows, facts = _inspect_volume(path, axes=axes, level=level)
    if as_json:
        show_json(facts)
    else:
        show_rows(rows)


def _is_bundled(path: Path) -> bool:
    if path.exists():
        return False
    from unet_deploy.runtime.artifact import is_bundled

    return is_bundled(path)


def _inspect_artifact(path: Path) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    from unet_deploy.card_json import card_to_object
    from unet_deploy.runtime.artifact import load_artifact

    artifact = load_artifact(path)
    facts = {**card_to_object(artifact.card), "sha256": artifact.sha256, "nodes": artifact.n_nodes}
    facts.pop("test_tensor")
    rows = [
        ("artifact", f"{artifact.source}, {format_bytes(len(artifact.data))}, {artifact.n_nodes} nodes"),
        *_card_rows(artifact.card),
    ]
    return [*rows, ("sha256", artifact.sha256)], facts


def _inspect_plan(path: Path, *, trust_engine: bool) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Return what its sidecar says: nothing of a plan is run."""
    from unet_deploy.card_json import card_to_object
    from unet_deploy.runtime.engine_plan import load_engine_plan

    plan = load_engine_plan(path, is_trusted=trust_engine)
    facts = {**card_to_object(plan.card), "plan": plan.manifest.to_object()}
    facts.pop("test_tensor")
    rows = [
        ("engine plan", f"{path}, {format_bytes(plan.manifest.plan_bytes)}"),
        *describe_plan(plan.manifest),
        *_card_rows(plan.card),
    ]
    return [*rows, ("sha256", plan.manifest.plan_sha256), ("built from", f"sha256 {plan.manifest.onnx_sha256}")], facts


def _inspect_checkpoint(path: Path) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    from unet_deploy.card_json import card_to_object
    from unet_deploy.errors import MissingDependencyError

    try:
        from unet_deploy.training.checkpoint import load_checkpoint
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError.of_extra("torch", extra="train", purpose="reading a checkpoint") from error

    _, card = load_checkpoint(path)
    return [("checkpoint", str(path)), *_card_rows(card)], card_to_object(card)


def _card_rows(card: ModelCard) -> list[tuple[str, str]]:
    g, n, training = card.geometry, card.network, card.training
    size = card.input.pixel_size_nm
    scores = ", ".join(f"{name} {value:.4g}" for name, value in training.scores.items())
    return [
        ("name", card.name),
        ("about", card.description),
        (
            "network",
            f"{n.words}, {n.in_channels} channel(s), {n.classes} classes",
        ),
        ("geometry", f"context {g.context} px, tiles {g.legal_sides} from {g.smallest_tile}, divisor {g.divisor}"),
        ("precision", card.precision),
        *_parity_rows(card),
        (
            "input",
            f"{card.input.dtype} in {card.input.value_range[0]:g}..{card.input.value_range[1]:g}, "
            f"channels: {', '.join(card.input.channels)}",
        ),
        ("pixel size", "unknown" if size is None else f"{size[0]:g} × {size[1]:g} nm (y x)"),
        *_normalisation_rows(card.normalisation),
        *(("class", f"{index} {c.name} ({c.colour})") for index, c in enumerate(card.classes)),
        ("data", training.data),
        ("licence", training.licence),
        ("cite", training.citation),
        *_training_rows(training),
        ("scores", f"{scores or 'none'} on {', '.join(training.validation) or 'nothing held out'}"),
    ]


def _training_rows(training: Training) -> list[tuple[str, str]]:
    adopted = training.recipe.get("adopted")
    if isinstance(adopted, dict):  # of its training nothing is known, and zeros would look like knowledge
        origin = f"{adopted.get('file')}, sha256 {str(adopted.get('sha256'))[:16]}…"
        return [("adopted", f"{origin}, by {adopted.get('producer')}, operator set {adopted.get('opset')}")]
    return [
        (
            "training",
            f"{training.images} images, {training.steps:,} steps in {format_seconds(training.seconds)}, "
            f"seed {training.seed}, " + ", ".join(f"{k} {v}" for k, v in training.versions.items()),
        )
    ]


def _parity_rows(card: ModelCard) -> list[tuple[str, str]]:
    if card.parity is None:
        return []
    p = card.parity
    return [
        (
            "parity",
            f"labels equal to fp32 {p.labels_equal:.3%}, logits differ by {p.mean_difference:.2g}, at most "
            f"{p.max_difference:.2g} ({p.data}; {p.tiles} compared, {p.engine})",
        ),
        ("parent", f"fp32, sha256 {card.parent_sha256}"),
    ]


def _normalisation_rows(normalisation: Normalisation) -> list[tuple[str, str]]:
    constants = zip(normalisation.mean, normalisation.std, strict=True)
    steps = "; ".join(f"(v − {mean:.5g}) / {std:.5g}" for mean, std in constants)
    rows = [("normalised", f"{steps}, from {normalisation.source}")]
    if normalisation.percentiles is None:
        return rows
    low, high = normalisation.percentiles
    return [
        ("scaled", f"percentiles {low:g} and {high:g} of each channel of the volume become 0 and 1, then"),
        *rows,
    ]


def _inspect_volume(path: Path, *, axes: str | None, level: int) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    from unet_deploy.runtime.output_paths import read_provenance
    from unet_deploy.runtime.volume import describe_volume, open_volume

    made = read_provenance(path)
    if made is not None and made.get("status") == "running":
        rows = [("volume", str(path)), *_provenance_rows(made)]
        return rows, {"segmentation": made}
    volume = open_volume(path, level=level, axes=axes)
    facts, info = describe_volume(volume), volume.info
    sizes = ", ".join(f"{axis} {n}" for axis, n in zip(info.axes, info.shape, strict=True))
    scale = "unknown"
    if info.scale is not None:
        units = info.units or (None,) * len(info.axes)
        scale = ", ".join(
            f"{axis} {value:g} {unit or ''}".rstrip()
            for axis, value, unit in zip(info.axes, info.scale, units, strict=True)
        )
    version = f"OME-Zarr {info.ome_version}, " if info.ome_version else ""
    if made is not None:
        facts["segmentation"] = made
    rows = [
        ("volume", str(info.path)),
        *_provenance_rows(made or {}),
        ("format", "TIFF" if info.container == "tiff" else f"{version}Zarr v{info.zarr_format}"),
        ("name", info.name),
        ("axes", sizes),
        ("dtype", info.dtype),
        ("chunks", " × ".join(map(str, info.chunks))),
        ("shards", "none" if info.shards is None else " × ".join(map(str, info.shards))),
        ("codecs", ", ".join(info.codecs) or "none"),
        ("scale", scale),
        ("channels", ", ".join(info.channel_names or ()) or "unnamed"),
        *(
            ("level", f"{i} at {entry.path or '.'}: {' × '.join(map(str, entry.shape)) if entry.shape else 'absent'}")
            for i, entry in enumerate(info.levels)
        ),
    ]
    return rows, facts


def _provenance_rows(made: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a segmentation of ours says of itself, in words; nothing for other volumes."""
    if not made:
        return []
    notes = {
        "complete": "every block is there",
        "partial": f"{len(made.get('failed_blocks', []))} block(s) failed and are 0",
        "running": "being written, or the run was killed: not a result",
    }
    status = str(made.get("status"))
    model, volume = made.get("model", {}), made.get("volume", {})
    return [
        ("made by", f"unet-deploy {made.get('software', {}).get('unet-deploy')}, started {made.get('started')}"),
        ("status", f"{status}: {notes.get(status, 'unknown')}"),
        ("model", f"{model.get('name')}, sha256 {str(model.get('sha256'))[:16]}…"),
        ("source", str(volume.get("path"))),
    ]
