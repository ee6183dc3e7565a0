"""OME-Zarr 0.6 drafts, as far as they say what 0.5 could: axes, a scale and a translation of each array.

1. The axes are those of the coordinate system that the datasets' transformations end in; it must be one for all.
2. A sequence is its steps, one after the other; whether each step is honoured is decided in `ome`, by name.
3. A transformation between coordinate systems (rotation, affine, ...) would place the image elsewhere than what is
   written: it is refused by name, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from unet_deploy.errors import UnsupportedMetadataError

Entry = Mapping[str, Any]

MAX_STEPS = 64
FIX = (
    "rewrite the metadata as OME-Zarr 0.4 or 0.5, or give the path of the array itself; its pixel size is then unknown"
)


def is_version_06(version: object) -> bool:
    """Tell whether a version is 0.6 or one of its drafts, which are read alike."""
    return isinstance(version, str) and re.fullmatch(r"0\.6(\.dev\d+|rc\d+)?", version) is not None


def entry_as_05(entry: Entry, *, where: str) -> Entry:
    """Return an entry of ``multiscales`` of version 0.6 in the words of 0.5.

    Raises
    ------
    UnsupportedMetadataError
        If the coordinate systems are not what the datasets say, or the image has further transformations.
    """
    for step in _steps(entry, where):
        if step.get("type") != "identity":
            system = show(_name_of(step.get("output")))
            raise refuse(
                f"transformation {show(step.get('type'))} of the image to the coordinate system {system} came, "
                "only those of its arrays were expected",
                where,
            )
    datasets = entry.get("datasets")
    if not isinstance(datasets, list) or not all(isinstance(dataset, dict) for dataset in datasets):
        raise refuse(f"datasets is {show(datasets)}, a list of objects was expected", where)
    outputs = {str(_name_of(step.get("output"))) for dataset in datasets for step in _steps(dataset, where)}
    systems = entry.get("coordinateSystems")
    known = {
        str(system.get("name")): system.get("axes")
        for system in (systems if isinstance(systems, list) else [])
        if isinstance(system, dict)
    }
    if len(outputs) != 1 or not outputs <= known.keys():
        came, expected = (", ".join(sorted(names)) or "(none)" for names in (outputs, known))
        raise refuse(f"transformations to {came} came, one of the coordinate systems {expected} was expected", where)
    flat = [{**dataset, "coordinateTransformations": _flatten(_steps(dataset, where), where)} for dataset in datasets]
    return {**entry, "axes": known[outputs.pop()], "datasets": flat, "coordinateTransformations": []}


def _steps(holder: Entry, where: str) -> list[Entry]:
    steps = holder.get("coordinateTransformations", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise refuse(f"coordinateTransformations is {show(steps)}, a list of objects was expected", where)
    return steps


def _flatten(steps: list[Entry], where: str) -> list[Entry]:
    flat: list[Entry] = []
    waiting = list(reversed(steps))
    for _ in range(MAX_STEPS):
        if not waiting:
            return flat
        step = waiting.pop()
        if step.get("type") == "sequence":
            waiting += reversed(_steps({"coordinateTransformations": step.get("transformations")}, where))
        else:
            flat.append(step)
    raise refuse(f"more than {MAX_STEPS} transformations of one array came, a few were expected", where)


def _name_of(system: object) -> object:
    """Return a coordinate system's name, which later drafts put in an object."""
    name = system.get("name") if isinstance(system, dict) else system
    return name if isinstance(name, str) else None


def refuse(problem: str, where: str) -> UnsupportedMetadataError:
    """Return the error for metadata that cannot be honoured."""
    return UnsupportedMetadataError(problem, f"in {where}", fix=FIX)


def show(value: object) -> str:
    """Return a value's text, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
