"""How the grey values of a volume differ from those a model was trained on: the rules, and their limits. Pure.

1. A model with fixed constants sees grey values as they are: dtype, bits in use, span and histogram are compared.
2. One that scales each volume by its percentiles sees what is left after that: both are scaled so before.
3. For both: a single value, values that are no numbers, contrast that fits only when mirrored, and ends in which many
   pixels lie.

4. Fewer values than `FEWEST_VALUES` are too few to tell what is usual: of those only what is certain is said.

Every limit lies between volumes of one kind and of different kinds, as `benchmarks/drift_limits.py` measures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from unet_deploy.card import ModelCard
from unet_deploy.runtime._grey_reference import SPAN, Reference, percentile_of
from unet_deploy.runtime.grey_values import GreyCounts

Code = Literal[
    "constant",
    "not-finite",
    "dtype",
    "unused-bits",
    "narrow-range",
    "wide-range",
    "inverted",
    "histogram",
    "saturated",
    "pixel-size",
]

FIXED_DISTANCE = 0.75
"""Slices of the stack trained on lie at 0.02 to 0.61 each, its test stack at 0.04; brightened by 40 grey values it lies
at 0.93, other kinds of images at 1.6 and more."""
SCALED_DISTANCE = 2.0
"""After scaling by percentiles, single images of the set trained on lie at 0.28 to 1.60, all together at 0.13; electron
micrographs, against fluorescence, at 2.9 and more."""
RANGE_FACTOR = 1.5
"""Slices of the stack trained on span 0.76 to 1.14 of what the stack does; at half the contrast 0.52."""
MIRROR_FACTOR = 0.5
"""The mirrored distance over the upright one is 1.2 and more for images of the kind trained on, and at most 0.43 for
their inverted slices; where neither fits, in images of another kind, it is 0.66 to 1.36."""
MIRROR_DISTANCE = 0.15
"""Nearer than this nothing is called inverted, however near its mirror image is."""
SATURATED_SHARE = 0.02
"""Up to 0.01 of the pixels have the highest value in all images measured."""

FEWEST_VALUES = 2**14
"""Of crops of 128 × 128 pixels of images of the kind trained on, about 3 to 6 in 100 are far from the whole; of 64 × 64
pixels 15 to 24, of 32 × 32 pixels 25 to 60."""

Size = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One way in which a volume differs; `text` says which, `fix` what to do, `numbers` are what it was judged by."""

    code: Code
    text: str
    fix: str
    numbers: dict[str, float] = field(default_factory=dict)

    def to_object(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"code": self.code, "text": self.text, "fix": self.fix, "numbers": dict(self.numbers)}


def compare_grey_values(
    card: ModelCard, dtype: str, counts: GreyCounts, *, input_range: tuple[float, float] | None
) -> tuple[Finding, ...]:
    """Return how grey values differ from those that a model was trained on; nothing if they do not."""
    found: list[Finding | None] = []
    if counts.not_finite:
        share = counts.not_finite / (counts.total + counts.not_finite)
        found.append(
            Finding(
                code="not-finite",
                text=f"{share:.2%} of the grey values looked at are NaN or infinite",
                fix="replace them by a grey value",
                numbers={"share": share},
            )
        )
    reference = Reference.of(card)
    if counts.is_constant:
        found.append(_constant(counts))
    elif counts.total < FEWEST_VALUES:
        is_fixed = card.normalisation.percentiles is None and input_range is None
        found.append(_compare_dtype(card, dtype) if is_fixed else None)
    elif card.normalisation.percentiles is not None:
        found += _compare_scaled(card, reference, counts, input_range)
        found.append(_compare_ends(counts, reference, (1.0, 0.0), scaled=True))
    else:
        found += _compare_fixed(card, reference, dtype, counts, input_range)
        found.append(_compare_ends(counts, reference, _gain_offset(card, input_range), scaled=False))
    return tuple(finding for finding in found if finding is not None)


def _constant(counts: GreyCounts) -> Finding | None:
    if not counts.total:
        return None
    return Finding(
        code="constant",
        text=f"all grey values looked at are {counts.low:g}: there is nothing to segment",
        fix="check the channel, the level and the file",
        numbers={"value": counts.low},
    )


def _compare_fixed(
    card: ModelCard,
    reference: Reference | None,
    dtype: str,
    counts: GreyCounts,
    input_range: tuple[float, float] | None,
) -> list[Finding | None]:
    """Compare grey values as they are, for a model with fixed constants."""
    if input_range is None:
        wrong = _compare_dtype(card, dtype) or _compare_bits(card, reference, dtype, counts)
        if wrong is not None:  # whatever else differs, differs for that reason
            return [wrong, None if reference is None else _compare_mirrored(reference, counts)]
    if reference is None:
        return []
    gain, offset = _gain_offset(card, input_range)
    values, shares = counts.histogram
    seen = values * gain + offset
    inverted = _compare_mirrored(reference, counts)
    span = percentile_of(seen, shares, SPAN[0]), percentile_of(seen, shares, SPAN[1])
    trained = reference.percentile(SPAN[0]), reference.percentile(SPAN[1])
    better = _suggest_range(card, span, trained, gain, offset)
    distance = reference.distance(seen, shares)
    histogram = Finding(
        code="histogram",
        text=f"the grey values lie {distance:.2f} standard deviations of the training images from theirs on average "
        f"(earth mover's distance); up to {FIXED_DISTANCE:g} is usual",
        fix=better,
        numbers={"distance": distance, "limit": FIXED_DISTANCE},
    )
    is_far = distance > FIXED_DISTANCE and inverted is None
    return [_compare_span(span, trained, reference.width, fix=better), inverted, histogram if is_far else None]


def _compare_scaled(
    card: ModelCard, reference: Reference | None, counts: GreyCounts, input_range: tuple[float, float] | None
) -> list[Finding | None]:
    """Compare grey values after scaling by percentiles, for a model that does so."""
    assert card.normalisation.percentiles is not None
    if reference is None or reference.is_coarse:
        return []
    inverted = _compare_mirrored(reference, counts)
    if inverted is not None:
        return [inverted]
    low, high = card.normalisation.percentiles
    values, shares = counts.histogram
    first, last = input_range or (percentile_of(values, shares, low), percentile_of(values, shares, high))
    if not first < last:
        return []
    distance = reference.scaled_distance(values, shares, (first, last), (low, high))
    if distance <= SCALED_DISTANCE:
        return []
    return [
        Finding(
            code="histogram",
            text=f"scaled as the model does, the grey values lie {distance:.2f} standard deviations of the training "
            f"images from theirs on average (earth mover's distance); up to {SCALED_DISTANCE:g} is usual",
            fix="look at the result of one plane first; a model trained on such images may be needed",
            numbers={"distance": distance, "limit": SCALED_DISTANCE},
        )
    ]


def _compare_mirrored(reference: Reference, counts: GreyCounts) -> Finding | None:
    """Tell whether the histogram's mirror image has the shape of the training images' much rather than itself."""
    values, shares = counts.histogram
    first, last = percentile_of(values, shares, SPAN[0]), percentile_of(values, shares, SPAN[1])
    if not first < last or reference.is_coarse:
        return None
    upright = reference.scaled_distance(values, shares, (first, last), SPAN)
    mirrored = reference.scaled_distance(values, shares, (last, first), SPAN)
    if upright <= MIRROR_DISTANCE or mirrored >= MIRROR_FACTOR * upright:
        return None
    return Finding(
        code="inverted",
        text=f"the contrast seems inverted: bright and dark exchanged, the histogram lies {mirrored:.2f} from that of "
        f"the training images, as it is {upright:.2f} (earth mover's distance of the shapes)",
        fix="invert the volume (its highest grey value minus each), or use a model trained on such images",
        numbers={"distance": upright, "mirrored": mirrored, "limit": MIRROR_FACTOR},
    )


def _compare_dtype(card: ModelCard, dtype: str) -> Finding | None:
    came, trained = np.dtype(dtype), np.dtype(card.input.dtype)
    if came == trained or came.kind == trained.kind == "f":
        return None
    low, high = card.input.value_range
    return Finding(
        code="dtype",
        text=f"the volume is {came.name}, the model was trained on {trained.name} in {low:g}..{high:g}",
        fix="say which grey values of the volume are black and white: --input-range LOW:HIGH",
    )


def _compare_bits(card: ModelCard, reference: Reference | None, dtype: str, counts: GreyCounts) -> Finding | None:
    """Tell whether 10, 12 or 14 bits came in 16, where training images used more."""
    if np.dtype(dtype).kind not in "iu" or np.dtype(dtype).itemsize != 2 or counts.low < 0:
        return None
    bits = next((n for n in (8, 10, 12, 14) if counts.high < 2**n), None)
    if bits is None:
        return None
    used = card.input.value_range[1] if reference is None else reference.percentile(SPAN[1]) - reference.width
    if used < 2**bits:
        return None
    return Finding(
        code="unused-bits",
        text=f"no grey value looked at exceeds {counts.high:g}: {bits} bit in {np.dtype(dtype).name}; the "
        f"training images have values up to {used:.5g}",
        fix=f"--input-range 0:{2**bits - 1}",
        numbers={"highest": counts.high, "bits": bits, "trained": used},
    )


def _compare_span(span: Size, trained: Size, bin_width: float, *, fix: str) -> Finding | None:
    """Tell whether the middle 99 % of the grey values span far less or more than in training."""
    ours, theirs = span[1] - span[0], trained[1] - trained[0]
    numbers = {"span": ours, "trained": theirs, "limit": RANGE_FACTOR}
    words = (
        f"99 % of the grey values span {span[0]:.4g}..{span[1]:.4g}, "
        f"in the training images {trained[0]:.4g}..{trained[1]:.4g}"
    )
    if RANGE_FACTOR * ours < theirs - 2 * bin_width:  # a bin's width at either end is not known better
        by = f"{theirs / ours:.1f} times" if ours else "infinitely"
        return Finding(code="narrow-range", text=f"{words}: {by} narrower", fix=fix, numbers=numbers)
    if ours > RANGE_FACTOR * (theirs + 2 * bin_width):
        return Finding(code="wide-range", text=f"{words}: {ours / theirs:.1f} times wider", fix=fix, numbers=numbers)
    return None


def _compare_ends(
    counts: GreyCounts, reference: Reference | None, mapping: tuple[float, float], *, scaled: bool
) -> Finding | None:
    """Tell whether many pixels have the very lowest or highest grey value, and more than in training."""
    shares = counts.histogram[1][[0, -1]] / counts.total
    usual = np.zeros(2)
    if reference is not None:
        ends = np.array([counts.low, counts.high]) * mapping[0] + mapping[1]
        places = np.array([0, reference.shares.size - 1]) if scaled else reference.bins(ends)
        inside = (places >= 0) & (places < reference.shares.size)
        usual[inside] = reference.shares[places[inside]]
    limits = np.maximum(SATURATED_SHARE, 2 * usual)
    words = [
        f"{share:.1%} of the pixels looked at have the {name} grey value, {value:g}"
        for share, limit, name, value in zip(
            shares.tolist(), limits.tolist(), ("lowest", "highest"), (counts.low, counts.high), strict=True
        )
        if share > limit
    ]
    if not words:
        return None
    return Finding(
        code="saturated",
        text=f"{' and '.join(words)}: what was beyond is lost",
        fix="no setting mends it: expose so that neither end is reached, or leave the padding out",
        numbers={"lowest": float(shares[0]), "highest": float(shares[1]), "limit": float(limits.min())},
    )


def _gain_offset(card: ModelCard, input_range: tuple[float, float] | None) -> tuple[float, float]:
    """Return what a model with fixed constants multiplies and adds, so that grey values mean what they did."""
    if input_range is None:
        return 1.0, 0.0
    low, high = card.input.value_range
    gain = (high - low) / (input_range[1] - input_range[0])
    return gain, low - input_range[0] * gain


def _suggest_range(card: ModelCard, span: Size, trained: Size, gain: float, offset: float) -> str:
    """Return the input range that would bring the span of the volume to that of the training images."""
    if not span[0] < span[1] or not trained[0] < trained[1]:
        return "check the channel, the level and the file"
    low, high = card.input.value_range
    first, last = ((value - offset) / gain for value in span)
    wanted = (trained[1] - trained[0]) / (last - first)
    ends = first - (trained[0] - low) / wanted, last + (high - trained[1]) / wanted
    return f"if the same things should look the same: --input-range {ends[0]:.4g}:{ends[1]:.4g}"
