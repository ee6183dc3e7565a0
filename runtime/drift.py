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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unet_deploy.card import ModelCard
from unet_deploy.errors import ValueRangeError
from unet_deploy.runtime._grey_drift import Finding, compare_grey_values
from unet_deploy.runtime.grey_values import SAMPLE_VALUES, GreyCounts, GreySample, sample_volume
from unet_deploy.runtime.levels import MAX_RATIO, Size, level_sizes_nm, pixel_size_nm, ratio_of, size_text
from unet_deploy.runtime.volume import Volume, VolumeInfo

__all__ = [
    "Finding",
    "VolumeFacts",
    "check_drift",
    "compare_with_training",
    "describe_findings",
    "facts_of",
    "glance_at_drift",
    "require_no_drift",
]
GLANCE_VALUES = 2**21
"""So many are looked at where no run is to begin yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFacts:
    """What is compared besides grey values. Sizes are (y, x) in nm; `level_sizes_nm` has those known, by level."""

    dtype: str
    pixel_size_nm: Size | None = None
    level_sizes_nm: Mapping[int, Size] = field(default_factory=dict)


def check_drift(
    volume: Volume,
    card: ModelCard,
    channels: tuple[int, ...],
    client: Any,
    *,
    input_range: tuple[float, float] | None = None,
    sample_values: int | None = SAMPLE_VALUES,
    cache_bytes: int = 0,
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
        A ``distributed.Client``, whose workers see the volume; None to look here, one chunk after the other.
    input_range
        As for `segment`: grey values of the volume that mean the ends of the card's value range.
    sample_values
        About how many grey values to look at, in whole chunks spread over the volume; None for all.
    cache_bytes
        What a process may keep of decoded chunks. Only a volume that fits is kept; 0 for one that is still growing.

    Raises
    ------
    ReadError
        If a chunk that is looked at cannot be read.
    """
    sample = sample_volume(volume, channels, client, sample_values=sample_values, cache_bytes=cache_bytes)
    findings = compare_with_training(card, facts_of(volume.info), sample.counts, input_range=input_range)
    return findings if sample.is_whole else tuple(_of_a_part(finding, sample, volume) for finding in findings)


def _of_a_part(finding: Finding, sample: GreySample, volume: Volume) -> Finding:
    """Say less of a sparse volume: that all of a sample is empty does not mean that all is."""
    if finding.code != "constant":
        return finding
    share = sample.pixels / math.prod(volume.extent(axis) for axis in "tzyx")
    text = f"all grey values looked at, {share:.2%} of the volume, are {finding.numbers['value']:g}"
    return replace(finding, text=f"{text}: there may be nothing to segment")


def glance_at_drift(
    volume: Volume, card: ModelCard, channels: tuple[int, ...], *, input_range: tuple[float, float] | None = None
) -> tuple[Finding, ...]:
    """Return what `check_drift` would likely say, by a small sample that is read here, in a fraction of a second.

    Raises
    ------
    ReadError
        If a chunk that is looked at cannot be read.
    """
    return check_drift(volume, card, channels, None, input_range=input_range, sample_values=GLANCE_VALUES)


def facts_of(info: VolumeInfo) -> VolumeFacts:
    """Return a volume's dtype and pixel sizes."""
    return VolumeFacts(dtype=info.dtype, pixel_size_nm=pixel_size_nm(info), level_sizes_nm=level_sizes_nm(info))


def describe_findings(findings: Sequence[Finding], *, source: str) -> tuple[str, ...]:
    """Return findings in words: a headline, then for each a line on what differs and one on what to do."""
    assert findings, "there is nothing to say"
    ways = "in one way" if len(findings) == 1 else f"in {len(findings)} ways"
    lines = [f"{source} differs {ways} from what the model was trained on"]
    for number, finding in enumerate(findings):
        lines.append(f"{finding.text} [{finding.code}]")
        if finding.fix not in (later.fix for later in findings[number + 1 :]):  # said once, after all that it mends
            lines.append(f"  what to do: {finding.fix}")
    return tuple(lines)


def require_no_drift(findings: Sequence[Finding], *, source: str) -> None:
    """Refuse a volume that differs.

    Raises
    ------
    ValueRangeError
        If there are findings; the message has all of them, with what to do about each.
    """
    if findings:
        words = "this" if len(findings) == 1 else "these"
        headline, *details = describe_findings(findings, source=source)
        raise ValueRangeError(headline, *details, fix=f"mend {words}, or leave --strict out to segment it as it is")


def compare_with_training(
    card: ModelCard, facts: VolumeFacts, counts: GreyCounts, *, input_range: tuple[float, float] | None = None
) -> tuple[Finding, ...]:
    """Return how a volume differs from what a model was trained on; pure. Parameters as of `check_drift`."""
    grey = compare_grey_values(card, facts.dtype, counts, input_range=input_range)
    pixel_size = _compare_pixel_size(card, facts)
    return grey if pixel_size is None else (*grey, pixel_size)


def _compare_pixel_size(card: ModelCard, facts: VolumeFacts) -> Finding | None:
    came, trained = facts.pixel_size_nm, card.input.pixel_size_nm
    if came is None or trained is None:
        return None
    factor = ratio_of(came, trained)
    if factor <= MAX_RATIO:
        return None
    nearest, level = min(
        ((ratio_of(size, trained), level) for level, size in facts.level_sizes_nm.items()), default=(factor, 0)
    )
    resample = f"resample the volume to about {size_text(trained)}, or use a model trained at its size"
    return Finding(
        code="pixel-size",
        text=f"pixels are {size_text(came)}, the model was trained at {size_text(trained)}: a factor of {factor:.1f}",
        fix=f"--level {level}" if nearest < factor else resample,
        numbers={"factor": factor, "limit": MAX_RATIO},
    )
