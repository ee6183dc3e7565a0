"""Which image belongs to which label: by file stem in two folders, by slice in two stacks.

1. Two stacks: both are read, and slice z of one belongs to slice z of the other; the stems are ``z000``, ``z001``, ...
2. Two folders: files and stores of the same stem belong together, in the order of the stems.

Folders of the Cell Tracking Challenge have a module of their own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unet_deploy.training.image_files import SUFFIXES, PlaneReader, Source, is_stack, stem_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An image and its label; `markers`, if any, point at cells that the label may leave out."""

    image: Source
    label: Source
    markers: Source | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs by stem, in order, and every stem that was seen, also those without a partner."""

    by_stem: dict[str, Pair]
    stems: tuple[str, ...]


def find_pairs(images: Path, labels: Path, reader: PlaneReader, problems: list[str]) -> Pairs:
    """Return the pairs of two folders or two stacks; what is wrong is noted in `problems`."""
    if is_stack(images) and is_stack(labels):
        return _pair_slices(images, labels, reader, problems)
    if is_stack(images) or is_stack(labels):
        stack, other, its, others = (
            (images, labels, "images", "labels") if is_stack(images) else (labels, images, "labels", "images")
        )
        problems.append(f"{its} are one stack, {stack}, but {others} are not: {other}; two of a kind were expected")
        return Pairs(by_stem={}, stems=())
    return _pair_files(images, labels, problems)


def check_stems(wanted: Iterable[str], stems: Sequence[str], role: str, problems: list[str]) -> None:
    """Note each of `wanted` that no file has as its stem."""
    problems += [
        f"{stem}: named as {role}, but no file has that stem{did_you_mean(stem, stems)}"
        for stem in wanted
        if stem not in stems
    ]


def did_you_mean(came: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the nearest of `known`; empty if none is near.

    >>> did_you_mean("02x", ["01", "02"])
    "; did you mean '02'?"
    """
    close = difflib.get_close_matches(came, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _pair_slices(images: Path, labels: Path, reader: PlaneReader, problems: list[str]) -> Pairs:
    image, label = reader.read_stack(images, problems), reader.read_stack(labels, problems)
    if image is None or label is None:
        return Pairs(by_stem={}, stems=())
    if len(image) != len(label):
        problems.append(f"{images} has {len(image)} slice(s), {labels} has {len(label)}; as many were expected")
        return Pairs(by_stem={}, stems=())
    digits = max(3, len(str(len(image) - 1)))
    by_stem = {
        f"z{z:0{digits}}": Pair(image=Source(path=images, z=z), label=Source(path=labels, z=z))
        for z in range(len(image))
    }
    return Pairs(by_stem=by_stem, stems=tuple(by_stem))


def _pair_files(images: Path, labels: Path, problems: list[str]) -> Pairs:
    by_image, by_label = _list_files(images, "images", problems), _list_files(labels, "labels", problems)
    stems = tuple(sorted(by_image.keys() | by_label.keys()))
    if by_image and by_label:
        problems += [f"{s}: an image without a label" for s in stems if s not in by_label]
        problems += [f"{s}: a label without an image" for s in stems if s not in by_image]
    by_stem = {
        s: Pair(image=Source(path=by_image[s]), label=Source(path=by_label[s]))
        for s in stems
        if s in by_image and s in by_label
    }
    return Pairs(by_stem=by_stem, stems=stems)


def _list_files(folder: Path, kind: str, problems: list[str]) -> dict[str, Path]:
    if not folder.is_dir():
        problems.append(f"{kind}: there is no folder {folder}")
        return {}
    files: dict[str, Path] = {}
    entries = sorted(folder.iterdir())
    for path in entries:
        if path.suffix.lower() not in SUFFIXES:
            continue
        if stem_of(path) in files:
            problems.append(f"{stem_of(path)}: two files of that stem in {folder}")
        files[stem_of(path)] = path
    if not files:
        inside = ", ".join(path.name for path in entries[:5] if path.is_dir())
        hint = f"; it holds the folders {inside}" if inside else ""
        problems.append(f"{kind}: no {', '.join(SUFFIXES)} file in {folder}{hint}")
    return files
