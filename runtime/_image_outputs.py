"""Where the segmentations of a store's images go, and whether one that is finished was made of its image.

1. Each output has the name of the store and of the image, and no two are the same on any file system.
2. What lies there finished is taken for the image's only if it says so: this volume, this model, these parameters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet_deploy.errors import OutputExistsError, OutputPathError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.images import ImageEntry
from unet_deploy.runtime.instances import InstanceRule, require_rule
from unet_deploy.runtime.layout import INSTANCES_NAME, split_kinds
from unet_deploy.runtime.output_paths import find_store, read_provenance
from unet_deploy.runtime.preparation import choose_channels, default_output, open_for
from unet_deploy.runtime.resume import identify_volume


def choose_outputs(volume: str | Path, entries: Sequence[ImageEntry], folder: Path | None) -> tuple[Path, ...]:
    """Return where the images' segmentations go, no two at one place, also where upper and lower case are the same."""
    chosen: list[Path] = []
    taken: set[str] = set()
    for entry in entries:
        beside = default_output(volume, entry.name)
        stem, count, name = beside.name.removesuffix(".ome.zarr"), 1, beside.name
        while name.casefold() in taken:
            count += 1
            name = f"{stem}_{count}.ome.zarr"
        taken.add(name.casefold())
        chosen.append((beside.parent if folder is None else folder) / name)
    return tuple(chosen)


def make_folder(folder: Path) -> None:
    """Make the folder for the outputs, if it is not there.

    Raises
    ------
    OutputPathError
        If it cannot be made, is a file, or is or lies in a store.
    """
    store = find_store(folder / "x")
    if store is not None or (folder.suffix == ".zarr" and not folder.is_dir()):
        raise OutputPathError(
            f"several images are to be segmented, and the output {folder} "
            + (f"is or lies in the store {store}" if store is not None else "is named as a store"),
            "a folder was expected: each image's segmentation is a store in it",
            fix=f"--output {(store or folder).resolve().parent / 'segmentations'}, or name one image with --image",
        )
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputPathError(
            f"the folder {folder} for the outputs cannot be made: {error.strerror or error}",
            f"{folder.parent} was expected to be a folder where you may write",
            fix="create it, or choose another --output",
        ) from error


def file_beside(file: Path, output: Path) -> Path:
    """Return the path of a table or profile with the image's name in it."""
    stem = output.name.removesuffix(".ome.zarr").removesuffix("_segmentation")
    return file.with_name(f"{file.stem}_{stem}{file.suffix}")


def require_same_origin(
    made: dict[str, Any],
    output: Path,
    artifact: Artifact,
    volume: str | Path,
    entry: ImageEntry,
    options: dict[str, Any],
) -> None:
    """Refuse to take a finished output for that of an image, unless it was made of it in the same way.

    Raises
    ------
    OutputExistsError
        If volume, model or parameters differ; the message says how.
    InputDataError, ConfigurationError
        If the image cannot be opened, or a parameter cannot be meant.
    """
    opened, _ = open_for(
        artifact.card, volume, image=entry.name or None, level=options.get("level"), axes=options.get("axes")
    )
    is_label_group = options.get("into_labels") is not None
    kinds, wants_instances = split_kinds(options.get("write"), is_label_group=is_label_group)
    channels = choose_channels(opened.info, artifact.card, options.get("channels", ()))
    input_range = options.get("input_range")
    parameters = made.get("parameters") or {}
    wanted: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (made.get("model") or {}, {"sha256": artifact.sha256}),
        (made.get("volume") or {}, identify_volume(opened.info)),
        (parameters, {"channels": [*channels], "input_range": input_range and [*input_range]}),
        (parameters, {"tta": bool(options.get("tta"))}),
    ]
    if wants_instances:
        wanted.append((_objects_of(output), _rule_of(artifact, options).to_object()))
    differences = [
        f"{name}: made with {_short(was.get(name))}, now {_short(value)}"
        for was, values in wanted
        for name, value in values.items()
        if was.get(name) != value
    ]
    missing = [kind for kind in kinds if kind not in parameters.get("write", ())]
    if missing:
        differences.append(f"write: {' and '.join(missing)} are not there")
    if differences:
        raise OutputExistsError(
            f"the output {output} is finished, and was made in another way",
            *differences,
            fix="choose another --output, or replace it with --overwrite",
        )


def _objects_of(output: Path) -> dict[str, Any]:
    """Return what numbered objects say of how they were told apart; nothing where there are none."""
    places = (output / "labels" / INSTANCES_NAME, output.with_name(f"{output.name}_{INSTANCES_NAME}"))
    return next((said for place in places if (said := read_provenance(place)) is not None), {})


def _rule_of(artifact: Artifact, options: dict[str, Any]) -> InstanceRule:
    return require_rule(
        artifact.card.classes,
        objects=options.get("objects", ()),
        dimensions=options.get("object_dimensions", 2),
        neighbours=options.get("object_neighbours", "face"),
        min_size=options.get("min_object_size", 0),
    )


def _short(value: object) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
