"""Curves as inline SVG, drawn with a few lines of our own: a page that needs neither a script nor a plotting library.

1. A curve of more than MAX_POINTS steps is reduced: each point is the mean of as many steps as it takes.
2. Axes go from the smallest to the greatest value, linear or logarithmic, with ticks at 1, 2 or 5 times powers of ten.
3. Lines and words take the page's own colours from CSS, so the same SVG is read on a light and on a dark ground.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MAX_POINTS = 1000
LOGARITHMIC_FROM = 10.0
"""From this ratio of the greatest to the smallest value on, an axis is logarithmic."""
_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 18, 14, 44


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """Values over steps; `style` is the CSS class of the line, `has_dots` marks each value."""

    steps: Floats
    values: Floats
    style: str = "curve"
    has_dots: bool = False

    def reduced(self) -> Line:
        """Return at most MAX_POINTS points, each the mean of neighbours; values that are no number are left out."""
        finite = np.isfinite(self.values)
        steps, values = self.steps[finite], self.values[finite]
        stride = math.ceil(len(values) / MAX_POINTS)
        if stride > 1:
            starts = np.arange(0, len(values), stride)
            counts = np.diff([*starts, len(values)])
            steps, values = (np.add.reduceat(array, starts) / counts for array in (steps, values))
        return Line(steps=steps, values=values, style=self.style, has_dots=self.has_dots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point to be noticed, such as the best."""

    step: float
    value: float
    text: str


def running_mean(values: Sequence[float], window: int) -> Floats:
    """Return for each value the mean of the last `window` values up to it, of fewer at the start.

    >>> running_mean([1, 3, 5, 7], 2).tolist()
    [1.0, 2.0, 4.0, 6.0]
    """
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    stop = np.arange(1, len(total))
    start = np.maximum(stop - window, 0)
    return np.asarray((total[stop] - total[start]) / (stop - start), np.float64)


def asks_for_logarithm(values: Floats) -> bool:
    """Tell whether positive values span so much that a linear axis would hide the small ones."""
    return bool(values.size and values.min() > 0 and values.max() / values.min() >= LOGARITHMIC_FROM)


def linear_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return at most `most` round numbers in low..high, evenly spaced by 1, 2 or 5 times a power of ten.

    >>> linear_ticks(0.13, 0.92)
    [0.2, 0.4, 0.6, 0.8]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [float(f"{n * step:.12g}") for n in range(first, last + 1)]
    raise AssertionError((low, high))


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten in low..high, with their double and fivefold where there are few.

    >>> logarithmic_ticks(0.03, 3)
    [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    sparse, dense = (
        [t for power in powers for factor in factors if low <= (t := float(f"{factor * 10.0**power:.12g}")) <= high]
        for factors in ((1,), (1, 2, 5))
    )
    return sparse if len(sparse) >= 3 else dense  # fewer do not show that the axis is logarithmic


def draw_chart(
    lines: Sequence[Line],
    *,
    alt: str,
    y_label: str,
    steps: float,
    mark: Mark | None = None,
    is_logarithmic: bool = False,
) -> str:
    """Return a chart of lines over training steps as an SVG element.

    Parameters
    ----------
    lines
        What to draw; the axis covers all values of the last one, and all but the outermost hundredths of the others.
    alt
        What the chart shows, for those who do not see it.
    y_label
        The quantity, with its unit if it has one.
    steps
        The end of the horizontal axis, which starts at 0.
    mark
        A point with a ring around it and a word beside it.
    is_logarithmic
        Whether the vertical axis is; values of 0 and below are then left out.
    """
    lines = [line.reduced() for line in lines]
    if is_logarithmic:
        lines = [_positive(line) for line in lines]
    axes = _Axes.around(lines, steps=steps, is_logarithmic=is_logarithmic)
    scale = ", logarithmic" if is_logarithmic else ""
    middle = _TOP + axes.height / 2
    parts = [
        f"<svg class='chart' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{html.escape(alt, quote=True)}'>",
        f"<title>{html.escape(alt)}</title>",
        *axes.grid(),
        f"<text class='label' x='{_LEFT + axes.width / 2:.1f}' y='{_HEIGHT - 6}' text-anchor='middle'>step</text>",
        f"<text class='label' x='14' y='{middle:.1f}' text-anchor='middle' "
        f"transform='rotate(-90 14 {middle:.1f})'>{html.escape(y_label)}{scale}</text>",
        # A nested SVG cuts off what leaves the axes.
        f"<svg x='{_LEFT}' y='{_TOP}' width='{axes.width}' height='{axes.height}' overflow='hidden'>",
        *(axes.line(line) for line in lines),
        "</svg>",
    ]
    if mark is not None and math.isfinite(mark.value):
        parts.append(axes.mark(mark))
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """Where a step and a value lie on the paper."""

    steps: float
    low: float
    high: float
    is_logarithmic: bool
    width: int = _WIDTH - _LEFT - _RIGHT
    height: int = _HEIGHT - _TOP - _BOTTOM

    @classmethod
    def around(cls, lines: Sequence[Line], *, steps: float, is_logarithmic: bool) -> _Axes:
        spans = [np.percentile(line.values, [1, 99]) for line in lines[:-1] if line.values.size]
        spans += [np.array([line.values.min(), line.values.max()]) for line in lines[-1:] if line.values.size]
        low, high = (
            (float(min(span[0] for span in spans)), float(max(span[1] for span in spans))) if spans else (0.1, 1.0)
        )
        if is_logarithmic:
            margin = max((high / low) ** 0.04, 1.05)
            return cls(steps=max(steps, 1), low=low / margin, high=high * margin, is_logarithmic=True)
        margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        # Quantities that are never negative get no axis below 0.
        low = low - margin if low < 0 else max(low - margin, 0.0)
        return cls(steps=max(steps, 1), low=low, high=high + margin, is_logarithmic=False)

    def x(self, steps: Floats | float) -> Floats:
        return np.asarray(np.asarray(steps) / self.steps * self.width, np.float64)

    def y(self, values: Floats | float) -> Floats:
        low, high, at = self.low, self.high, np.asarray(values, np.float64)
        if self.is_logarithmic:
            low, high, at = math.log(low), math.log(high), np.log(at)
        return np.asarray((high - at) / (high - low) * self.height, np.float64)

    def grid(self) -> list[str]:
        bottom, right = _TOP + self.height, _LEFT + self.width
        ticks = logarithmic_ticks(self.low, self.high) if self.is_logarithmic else linear_ticks(self.low, self.high)
        parts = []
        for tick in ticks:
            y = _TOP + float(self.y(tick))
            parts.append(f"<path class='grid' d='M{_LEFT} {y:.1f}H{right}'/>")
            parts.append(f"<text x='{_LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{format_number(tick)}</text>")
        for tick in linear_ticks(0, self.steps):
            if tick == int(tick):
                x = _LEFT + float(self.x(tick))
                parts.append(f"<path class='axis' d='M{x:.1f} {bottom}v5'/>")
                parts.append(f"<text x='{x:.1f}' y='{bottom + 18}' text-anchor='middle'>{format_number(tick)}</text>")
        return [*parts, f"<path class='axis' d='M{_LEFT} {_TOP}V{bottom}H{right}'/>"]

    def line(self, line: Line) -> str:
        xs, ys = self.x(line.steps), self.y(line.values)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        drawn = f"<polyline class='{line.style}' points='{points}'/>"
        if line.has_dots:
            drawn += "".join(
                f"<circle class='dot' cx='{x:.1f}' cy='{y:.1f}' r='2.5'>"
                f"<title>step {step:,.0f}: {value:.4g}</title></circle>"
                for x, y, step, value in zip(xs, ys, line.steps, line.values, strict=True)
            )
        return drawn

    def mark(self, mark: Mark) -> str:
        x, y = _LEFT + float(self.x(mark.step)), _TOP + float(self.y(mark.value))
        is_right = x > _LEFT + self.width / 2
        text_y = y + 18 if y < _TOP + self.height / 4 else y - 10
        return (
            f"<circle class='mark' cx='{x:.1f}' cy='{y:.1f}' r='6'/>"
            f"<text class='marked' x='{x:.1f}' y='{text_y:.1f}' text-anchor='{'end' if is_right else 'start'}'>"
            f"{html.escape(mark.text)}</text>"
        )


def format_number(value: float) -> str:
    """Return a tick's number in few characters.

    >>> [format_number(v) for v in (0, 20000, 0.25, 0.00001)]
    ['0', '20,000', '0.25', '1e-5']
    """
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.4g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:,.10g}"


def _positive(line: Line) -> Line:
    is_positive = line.values > 0
    return Line(
        steps=line.steps[is_positive], values=line.values[is_positive], style=line.style, has_dots=line.has_dots
    )
