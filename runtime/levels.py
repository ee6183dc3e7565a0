"""Which level of a pyramid has pixels of the size that a network was trained at; numbers only, nothing is read.

1. A pixel's size in nanometres is the level's scale along y and x in their units, where the metadata says both.
2. The nearest level is that with the smallest ratio between its pixel and the wanted one, either way; of equals the
   finer, which keeps more.
3. A level whose ratio is beyond the limit is none: the network would see another magnification than it knows.
"""

from __future__ import annotations

import math

from unet_deploy.errors import UnsupportedMetadataError
from unet_deploy.runtime.volume import Level, VolumeInfo

NANOMETRES = {
    "angstrom": 0.1,
    "picometer": 1e-3,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "decimeter": 1e8,
    "meter": 1e9,
    "inch": 2.54e7,
    "foot": 3.048e8,
    "yard": 9.144e8,
    "nm": 1.0,
    "nanometre": 1.0,
    "mm": 1e6,
    **dict.fromkeys(("um", "µm", "μm", "micron", "micrometre"), 1e3),
}
"""The lengths of OME-Zarr (0.4, section 3.1) that a microscope could mean, with what some writers put for them."""
MAX_RATIO = 1.5
"""How far the nearest level may be off. Levels halve, so between two of them it is 1.42 at most."""

Size = tuple[float, float]


def pixel_size_nm(info: VolumeInfo, level: int | None = None) -> Size | None:
    """Return the (y, x) size of a level's pixel in nanometres, None where scale or unit are unknown.

    Parameters
    ----------
    info
        The volume.
    level
        Which level; by default the one that is open.
    """
    entry = info.levels[info.level if level is None else level]
    if entry.scale is None or info.units is None:
        return None
    sizes = []
    for axis in "yx":
        place = info.axes.index(axis)
        factor = NANOMETRES.get(info.units[place] or "")
        if factor is None:
            return None
        sizes.append(entry.scale[place] * factor)
    return sizes[0], sizes[1]


def choose_level(info: VolumeInfo, pixel_size_nm_trained: Size, *, max_ratio: float = MAX_RATIO) -> int:
    """Return the level whose pixel is nearest in size to what a network was trained at.

    Parameters
    ----------
    info
        The volume; any of its levels may be the open one.
    pixel_size_nm_trained
        (y, x) in nanometres, as in a model's card.
    max_ratio
        How many times larger or smaller the pixel may be, along either axis.

    Returns
    -------
    int
        For ``open_volume(..., level=...)``. A level whose array is absent is never chosen.

    Raises
    ------
    UnsupportedMetadataError
        If the volume's pixel size is unknown, or no level is near enough.
    """
    assert min(pixel_size_nm_trained) > 0, pixel_size_nm_trained
    assert max_ratio >= 1, max_ratio
    sizes = {i: pixel_size_nm(info, i) for i, level in enumerate(info.levels) if _is_there(level)}
    ratios = {i: _ratio(size, pixel_size_nm_trained) for i, size in sizes.items() if size is not None}
    if not ratios:
        raise UnsupportedMetadataError(
            "the volume's pixel size is unknown, so that no level can be chosen by it",
            f"in {info.path}",
            f"trained at {_text(pixel_size_nm_trained)}",
            fix="choose the level with --level",
        )
    nearest = min(ratios, key=lambda i: (round(ratios[i], 6), i))
    if ratios[nearest] > max_ratio:
        listing = [f"level {i}: {_text(size)}, off by {ratios[i]:.3g}" for i, size in sizes.items() if size is not None]
        raise UnsupportedMetadataError(
            f"no level has pixels near {_text(pixel_size_nm_trained)}, what the model was trained at",
            f"in {info.path}",
            *listing,
            fix=f"resample the volume, use a model trained at its pixel size, or insist with --level {nearest}",
        )
    return nearest


def _is_there(level: Level) -> bool:
    return level.shape is not None


def _ratio(size: Size, wanted: Size) -> float:
    """Return how far off a pixel is along its worse axis, 1 for equal."""
    return max(math.exp(abs(math.log(came / want))) for came, want in zip(size, wanted, strict=True))


def _text(size: Size) -> str:
    return f"{size[0]:.4g} × {size[1]:.4g} nm"
