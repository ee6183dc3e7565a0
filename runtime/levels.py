"""The size of a pixel in nanometres, and which level of a pyramid is nearest to what a network was trained at. Pure.

1. A pixel's size is the level's scale along y and x in their units, where the metadata says both.
2. How far two sizes are apart is the larger of their ratios along y and x, either way up.
3. The nearest level is that with the smallest such ratio; of equals the finer, which keeps more. Where a size is
   unknown, it is the finest.
4. The nearest may still be far off: whether that matters is for the drift guard to say, which knows the same limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from unet_deploy.runtime.volume_info import VolumeInfo

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
"""How far a pixel may be off. Levels halve, so that of a pyramid that reaches so far one is within 1.42."""

Size = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelChoice:
    """A level, and why that one in a few words; no words where there was nothing to choose by."""

    level: int
    reason: str | None


def pixel_size_nm(info: VolumeInfo, level: int | None = None) -> Size | None:
    """Return the (y, x) size of a level's pixel in nanometres, None where scale or unit are unknown.

    Parameters
    ----------
    info
        The volume.
    level
        Which level; by default the one that is open.
    """
    scale = info.levels[info.level if level is None else level].scale
    if scale is None or info.units is None:
        return None
    y, x = (scale[place] * NANOMETRES.get(info.units[place] or "", 0.0) for place in map(info.axes.index, "yx"))
    return (y, x) if min(y, x) > 0 else None


def level_sizes_nm(info: VolumeInfo) -> dict[int, Size]:
    """Return the pixel sizes of the levels that are there and have one."""
    sizes = {i: pixel_size_nm(info, i) for i, level in enumerate(info.levels) if level.shape is not None}
    return {i: size for i, size in sizes.items() if size is not None}


def choose_level(info: VolumeInfo, trained_nm: Size | None) -> LevelChoice:
    """Return the level whose pixel is nearest in size to what a network was trained at, however far that is.

    Parameters
    ----------
    info
        The volume; any of its levels may be the open one.
    trained_nm
        (y, x) in nanometres, as in a model's card; None where it says none.

    Returns
    -------
    LevelChoice
        For ``open_volume(..., level=...)``. A level whose array is absent is chosen only where all are.
    """
    sizes = level_sizes_nm(info)
    there = [i for i, level in enumerate(info.levels) if level.shape is not None]
    if len(there) <= 1:
        return LevelChoice(level=there[0] if there else 0, reason=None)
    if trained_nm is None or not sizes:
        return LevelChoice(level=there[0], reason=None)
    nearest = min(sizes, key=lambda i: (round(ratio_of(sizes[i], trained_nm), 6), i))
    words = f"{size_text(sizes[nearest])} is nearest to the {size_text(trained_nm)} trained at"
    return LevelChoice(level=nearest, reason=f"level {nearest} of {len(info.levels)}: {words}")


def ratio_of(size: Size, wanted: Size) -> float:
    """Return how far off a pixel is along its worse axis, 1 for equal."""
    return max(max(came / want, want / came) for came, want in zip(size, wanted, strict=True))


def size_text(size: Size) -> str:
    """Return a pixel's size in words.

    >>> size_text((4.0, 4.0)), size_text((4.0, 5.5))
    ('4 nm', '4 × 5.5 nm')
    """
    y, x = (f"{length:.4g}" for length in size)
    return f"{y} nm" if y == x else f"{y} × {x} nm"
