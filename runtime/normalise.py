"""From raw pixels to what the network was trained on, and from logits to what is stored.

Constants come from the card, from the caller or from the whole volume, never from a tile: the same pixel gets the same
value everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.card import ModelCard
from unet_deploy.errors import ConfigurationError, ValueRangeError
from unet_deploy.percentiles import percentile_range, span_of

Batch = npt.NDArray[np.float32]
STRIP = 64
MAX_INPUT = 1e20
"""Of normalised values: from about 1e30 on the sums within a network overflow float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normaliser:
    """value → (value · gain + offset - mean) / std by channel, in float32.

    Gain and offset are 1 and 0 unless the volume's grey values are mapped to the range trained on.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    gain: float = 1.0
    offset: float = 0.0

    def __call__(self, raw: npt.NDArray[Any], out: Batch | None = None) -> Batch:
        """Return raw (c, y, x) of any dtype as normalised float32 (c, y, x), in `out` if given."""
        values = np.empty(raw.shape, np.float32) if out is None else out
        mean, std = (np.array(constants, np.float32)[:, None, None] for constants in (self.mean, self.std))
        if (self.gain, self.offset) == (1.0, 0.0):
            np.subtract(raw, mean, out=values, dtype=np.float32)
        else:
            np.multiply(raw, np.float32(self.gain), out=values, dtype=np.float32)
            values += np.float32(self.offset)
            values -= mean
        values /= std
        return values

    def gain_and_offset(self) -> tuple[Batch, Batch]:
        """Return the same as value · gain + offset, both float32 by channel, folded in float64."""
        mean, std = np.array(self.mean, np.float64), np.array(self.std, np.float64)
        return (self.gain / std).astype(np.float32), ((self.offset - mean) / std).astype(np.float32)


def is_in_range(raw: npt.NDArray[Any], normaliser: Normaliser) -> bool:
    """Tell whether raw pixels (c, ...) are numbers that a network can compute with.

    Its output does not tell: some engines turn NaN into 0 where they cut off negative values, and go on.
    """
    if raw.dtype.kind != "f":
        return True
    axes = tuple(range(1, raw.ndim))
    largest = np.maximum(-raw.min(axis=axes), raw.max(axis=axes)).astype(np.float64)  # a NaN is passed on
    gain, offset = normaliser.gain_and_offset()
    return bool((largest * np.abs(gain) + np.abs(offset) <= MAX_INPUT).all())


def needs_statistics(card: ModelCard, *, input_range: tuple[float, float] | None) -> bool:
    """Tell whether a volume's percentiles must be measured before it can be normalised."""
    return card.normalisation.percentiles is not None and input_range is None


def choose_normaliser(
    card: ModelCard,
    dtype: str,
    *,
    input_range: tuple[float, float] | None,
    source: str,
    measured: Sequence[tuple[float, float]] | None = None,
) -> Normaliser:
    """Return the normaliser for a volume of `dtype`, or refuse grey values the network was not trained on.

    Parameters
    ----------
    card
        The model's card: dtype, value range and constants of its training images.
    dtype
        The volume's dtype, by name.
    input_range
        Grey values of the volume that correspond to the ends of the card's value range; None if they are the same.
        For a card with percentiles, what to take in their place in every channel.
    source
        The volume, for the message.
    measured
        The grey values at the card's percentiles by channel, where `needs_statistics`.

    Raises
    ------
    ValueRangeError
        If the dtypes differ and no range is given. A card with percentiles takes any dtype.
    ConfigurationError
        If the range is empty.
    """
    constants = card.normalisation
    low, high = card.input.value_range
    if input_range is not None:
        _require_range(*input_range)
    if constants.percentiles is not None:
        ranges = measured if input_range is None else (input_range,) * card.network.in_channels
        assert ranges is not None, "the volume was not measured"
        return _normalise_ranges(card, ranges)
    if input_range is not None:
        first, last = input_range
        gain = (high - low) / (last - first)
        return Normaliser(mean=constants.mean, std=constants.std, gain=gain, offset=low - first * gain)
    trained, came = np.dtype(card.input.dtype), np.dtype(dtype)
    if came == trained or (came.kind == "f" and trained.kind == "f"):
        return Normaliser(mean=constants.mean, std=constants.std)
    full = np.iinfo(came) if came.kind in "iu" else None
    example = f"{full.min}:{full.max}" if full else "0:1"
    raise ValueRangeError(
        f"the volume is {came.name}, the model was trained on {trained.name} in {low:g}..{high:g}",
        f"volume: {source}",
        f"model: {card.name}",
        "the same number means another grey value, so the result would be wrong without a word",
        fix=f"say which grey values of the volume are black and white: --input-range {example} (12 bit in 16: 0:4095)",
    )


def normaliser_of_image(card: ModelCard, image: npt.NDArray[Any]) -> Normaliser:
    """Return the normaliser of an image (c, y, x) that is a whole volume of its own, as a card's test tensor is."""
    percentiles = card.normalisation.percentiles
    if percentiles is None:
        return Normaliser(mean=card.normalisation.mean, std=card.normalisation.std)
    return _normalise_ranges(card, [percentile_range(channel, percentiles) for channel in image])


def _normalise_ranges(card: ModelCard, ranges: Sequence[tuple[float, float]]) -> Normaliser:
    """Fold the scaling of each channel into its constants: ((v - low) / span - mean) / std, in one step each."""
    means = zip(card.normalisation.mean, ranges, strict=True)
    stds = zip(card.normalisation.std, ranges, strict=True)
    return Normaliser(
        mean=tuple(pair[0] + mean * span_of(pair) for mean, pair in means),
        std=tuple(std * span_of(pair) for std, pair in stds),
    )


def _require_range(first: float, last: float) -> None:
    is_finite_range = math.isfinite(first) and math.isfinite(last)
    if not (is_finite_range and first < last):
        some = f"{min(first, last):g}:{max(first, last) + (first == last):g}" if is_finite_range else "0:4095"
        raise ConfigurationError(
            f"input range {first:g}:{last:g} {'is empty' if is_finite_range else 'has no end'}",
            "the volume's grey values that stand for black and white in training were expected, low first",
            fix=f"--input-range {some}",
        )


def to_labels(logits: Batch) -> npt.NDArray[np.uint8]:
    """Return the class of each pixel: logits (k, y, x) to uint8 (y, x); on a tie the lower class."""
    if logits.shape[0] == 2:  # skips argmax's general path; the same by definition
        return np.asarray(logits[1] > logits[0]).view(np.uint8)
    return np.asarray(logits.argmax(axis=0), np.uint8)


def to_probabilities(logits: Batch, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """Return the soft-max (paper, section 3) in 8 bit: logits (k, y, x) to uint8 (k, y, x), 255 for certain.

    Of two classes the first is the logistic function of the difference and the second what is left of 255, so that a
    tie, as in `to_labels`, is the first's.
    """
    result = np.empty(logits.shape, np.uint8) if out is None else out
    for start in range(0, logits.shape[1], STRIP):  # a strip stays in the processor's cache
        strip, place = logits[:, start : start + STRIP], result[:, start : start + STRIP]
        if logits.shape[0] == 2:
            odds = strip[1] - strip[0]
            with np.errstate(over="ignore"):  # infinite odds are a probability of 0
                np.exp(odds, out=odds)
            odds += 1
            np.divide(np.float32(255), odds, out=odds)
            np.rint(odds, out=odds)
            place[0] = odds
            np.subtract(255, place[0], out=place[1])
        else:
            powers = np.exp(strip - strip.max(axis=0))
            powers *= np.float32(255) / powers.sum(axis=0)
            place[:] = np.rint(powers, out=powers)
    return result


def is_finite(logits: Batch) -> bool:
    """Tell whether all values are numbers."""
    with np.errstate(all="ignore"):
        total = logits.sum()  # a NaN or infinity cannot vanish from a sum; a sum may overflow, so look again
    return bool(np.isfinite(total) or np.isfinite(logits).all())
