"""How a volume differs from what a model was trained on: dtype, exposure, contrast, pixel size. Findings in words.

1. `check_drift` counts the grey values of a sample of chunks (`grey_values`) and asks `compare_with_training`, which is
   pure: numbers in, findings out. Nothing is raised; `require_no_drift` is for those who want it strict.
2. Two histograms are compared by the *earth mover's distance*: how far grey values must be moved, on average, to make
   one of the other; in units of the training images' standard deviation, so that it has no scale.
3. A model with fixed constants sees grey values as they are, so these are compared. One that scales each volume by its
   percentiles sees what is left after that, so both are scaled in that way before.
4. A model whose card has no histogram is compared by dtype, range and pixel size alone.

The rules and their limits are in `_grey_drift`, and how they were measured in `benchmarks/drift_limits.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unet_deploy.card import ModelCard
from unet_deploy.errors import ValueRangeError
from unet_deploy.runtime._grey_drift import Finding, compare_grey_values
from unet_deploy.runtime.grey_values import SAMPLE_VALUES, GreyCounts, sample_volume
from unet_deploy.runtime.volume import Volume, VolumeInfo

__all__ = ["Finding", "VolumeFacts", "check_drift", "compare_with_training", "facts_of", "require_no_drift"]

PIXEL_FACTOR = 1.5

_UNIT_NM = {
    "angstrom": 0.1,
    "picometer": 1e-3,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}

Size = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFacts:
    """What is compared besides grey values. Sizes are (y, x) in nm, None where unknown; `level_sizes_nm` by level."""

    dtype: str
    pixel_size_nm: Size | None = None
    level_sizes_nm: tuple[Size | None, ...] = ()


def check_drift(
    volume: Volume,
    card: ModelCard,
    channels: tuple[int, ...],
    client: Any,
    *,
    input_range: tuple[float, float] | None = None,
    sample_values: int | None = SAMPLE_VALUES,
) -> tuple[Finding, ...]:
    """Look at a volume, and return how it differs from what the model was trained on; nothing if it does not.

    Parameters
    ----------
    volume
        At the level that will be segmented.
    card
        The model's card.
    channels
        Indices, in the model's order.
    client
        A ``distributed.Client``, whose workers see the volume.
    input_range
        As for `segment`: grey values of the volume that mean the ends of the card's value range.
    sample_values
        About how many grey values to look at, in whole chunks spread over the volume; None for all.

    Raises
    ------
    ReadError
        If a chunk that is looked at cannot be read.
    """
    sample = sample_volume(volume, channels, client, sample_values=sample_values)
    return compare_with_training(card, facts_of(volume.info), sample.counts, input_range=input_range)


def facts_of(info: VolumeInfo) -> VolumeFacts:
    """Return a volume's dtype and pixel sizes."""
    return VolumeFacts(
        dtype=info.dtype,
        pixel_size_nm=_pixel_size(info, info.scale),
        level_sizes_nm=tuple(_pixel_size(info, level.scale) for level in info.levels),
    )


def require_no_drift(findings: Sequence[Finding], *, source: str) -> None:
    """Refuse a volume that differs.

    Raises
    ------
    ValueRangeError
        If there are findings; the message has all of them.
    """
    if findings:
        ways = "in one way" if len(findings) == 1 else f"in {len(findings)} ways"
        raise ValueRangeError(
            f"{source} differs {ways} from what the model was trained on",
            *(finding.text for finding in findings),
            fix=f"{findings[0].fix}; or leave --strict out",
        )


def compare_with_training(
    card: ModelCard, facts: VolumeFacts, counts: GreyCounts, *, input_range: tuple[float, float] | None = None
) -> tuple[Finding, ...]:
    """Return how a volume differs from what a model was trained on; pure. Parameters as of `check_drift`."""
    grey = compare_grey_values(card, facts.dtype, counts, input_range=input_range)
    pixel_size = _compare_pixel_size(card, facts)
    return grey if pixel_size is None else (*grey, pixel_size)


def _compare_pixel_size(card: ModelCard, facts: VolumeFacts) -> Finding | None:
    came, trained = facts.pixel_size_nm, card.input.pixel_size_nm
    if came is None or trained is None or _factor(came, trained) <= PIXEL_FACTOR:
        return None
    better = [(_factor(size, trained), level) for level, size in enumerate(facts.level_sizes_nm) if size is not None]
    factor, level = min(better, default=(math.inf, 0))
    return Finding(
        code="pixel-size",
        text=f"pixels are {_nm(came)} (y × x), the model was trained at {_nm(trained)}: a factor of "
        f"{_factor(came, trained):.1f}",
        fix=f"--level {level}"
        if factor < _factor(came, trained)
        else f"resample the volume to about {_nm(trained)}, or use a model trained at its size",
        numbers={"factor": _factor(came, trained), "limit": PIXEL_FACTOR},
    )


def _pixel_size(info: VolumeInfo, scale: tuple[float, ...] | None) -> Size | None:
    if scale is None or info.units is None:
        return None
    units = [info.units[info.axes.index(axis)] for axis in "yx"]
    y, x = (scale[info.axes.index(axis)] for axis in "yx")
    if any(unit not in _UNIT_NM for unit in units) or min(y, x) <= 0:
        return None
    return y * _UNIT_NM[units[0] or ""], x * _UNIT_NM[units[1] or ""]


def _factor(came: Size, trained: Size) -> float:
    return max(max(a / b, b / a) for a, b in zip(came, trained, strict=True))


def _nm(size: Size) -> str:
    return f"{size[0]:g} × {size[1]:g} nm"
