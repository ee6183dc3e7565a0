"""What a foreign file does not say of itself and its user must: grey values, normalisation, classes.

Nothing that changes a result is filled in: a network given grey values on another scale than it was trained on gives
labels that look like labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from unet_deploy.card import ClassInfo, InputContract, InputDtype, Normalisation
from unet_deploy.errors import ConfigurationError, UnknownNameError

PALETTE = ("#000000", "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Paul Tol's "bright", told apart by colour-blind readers too; after black for the first class."""
DEFAULT_DTYPE = "uint8"
FULL_RANGES: dict[str, tuple[float, float]] = {
    "uint8": (0.0, 255.0),
    "uint16": (0.0, 65535.0),
    "int16": (-32768.0, 32767.0),
}

SMALLEST_STD, LARGEST_STD = 1e-30, 1e30
"""Networks compute in float32: beyond these a normalised value is 0 or infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionSettings:
    """What the card of an adopted network says beside what is measured.

    Parameters
    ----------
    dtype
        Data type of the images the network was trained on; None for uint8.
    value_range
        Grey values that are black and white in it; None for all of an integer type.
    mean, std
        (value - mean) / std, by channel or one for all; in grey values, or of values scaled to 0..1 with `percentiles`.
    percentiles
        Each channel of a volume is first scaled so that these become 0 and 1. Mean 0 and std 1 if none are given.
    name, classes, channels
        None for the file's name, ``class-0`` ..., ``channel-0`` ...
    pixel_size_nm
        Of (y, x), if known.
    licence, citation
        Of the weights.
    """

    dtype: str | None = None
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    percentiles: tuple[float, float] | None = None
    name: str | None = None
    classes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    pixel_size_nm: tuple[float, float] | None = None
    licence: str = "unknown"
    citation: str = "unknown"
    normalisation_source: str = "the flags given when the network was adopted"


def require_settings(settings: AdoptionSettings) -> None:
    """Refuse settings that cannot be meant, all at once, before the network is looked at.

    Raises
    ------
    ConfigurationError
        If any cannot be meant.
    UnknownNameError
        If the data type is none of ours.
    """
    known = get_args(InputDtype)
    if (settings.dtype or DEFAULT_DTYPE) not in known:
        raise UnknownNameError.of_unknown_name("data type", str(settings.dtype), known)
    if not settings.percentiles and not (settings.mean and settings.std):
        raise ConfigurationError(
            "how grey values are normalised was not said: --mean and --std, or --percentiles, were expected",
            "the file does not say what its network was trained on, and another scale gives other labels",
            "look where it was trained: value / 255 is --mean 0 --std 255, zero mean and unit variance of the training "
            "images their mean and standard deviation, a scaling of each image its percentiles",
            fix="--mean 0 --std 255, or --percentiles 1,99.8",
        )
    problems = _range_problems(settings) + _constant_problems(settings)
    if settings.pixel_size_nm is not None and not all(math.isfinite(n) and n > 0 for n in settings.pixel_size_nm):
        problems.append(f"pixel size: {settings.pixel_size_nm} came, sizes above 0 were expected")
    for kind, names in (("classes", settings.classes), ("channels", settings.channels)):
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            problems.append(f"{kind}: {', '.join(names)} came, names that differ were expected")
    if problems:
        raise ConfigurationError(
            f"{len(problems)} setting(s) cannot be meant", *problems, fix="give them as the network was trained"
        )


def _range_problems(settings: AdoptionSettings) -> list[str]:
    given = settings.value_range
    if given is None:
        if (settings.dtype or DEFAULT_DTYPE) in FULL_RANGES:
            return []
        return [f"value range: none came, and {settings.dtype} has none of its own; e.g. --value-range 0:1"]
    low, high = given
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return [f"value range: {low:g}:{high:g} came, two numbers were expected, low first"]
    return []


def _constant_problems(settings: AdoptionSettings) -> list[str]:
    problems: list[str] = []
    if bool(settings.mean) != bool(settings.std):
        came = "mean" if settings.mean else "std"
        problems.append(f"normalisation: only the {came} came, mean and std were expected")
    if not all(map(math.isfinite, settings.mean)):
        problems.append(f"mean: {_words(settings.mean)} came, numbers were expected")
    if not all(SMALLEST_STD <= n <= LARGEST_STD for n in settings.std):
        problems.append(f"std: {_words(settings.std)} came, numbers above 0 that float32 holds were expected")
    low, high = settings.value_range or FULL_RANGES.get(settings.dtype or DEFAULT_DTYPE, (-math.inf, math.inf))
    strange = tuple(n for n in settings.mean if low < high and not low <= n <= high and math.isfinite(n))
    if strange and settings.percentiles is None:
        problems.append(f"mean: {_words(strange)} lies outside of {low:g}..{high:g}; is it another --dtype?")
    if settings.percentiles is not None:
        low, high = settings.percentiles
        if not 0 <= low < high <= 100:
            problems.append(f"percentiles: {low:g}, {high:g} came, 0 <= low < high <= 100 was expected")
    return problems


def _words(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def contract_of(settings: AdoptionSettings, in_channels: int) -> tuple[InputContract, Normalisation]:
    """Return what the card says of the input.

    Raises
    ------
    ConfigurationError
        If names or constants are not as many as the network has channels.
    """
    problems: list[str] = []
    mean, std = settings.mean or (0.0,), settings.std or (1.0,)
    for kind, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, in_channels):
            problems.append(f"{kind}: {len(values)} came, one, or one for each of {in_channels} channels, was expected")
    if settings.channels and len(settings.channels) != in_channels:
        problems.append(f"channels: {', '.join(settings.channels)} came, {in_channels} names were expected")
    if problems:
        raise ConfigurationError(
            f"the network takes {in_channels} channel(s), the settings are for another number",
            *problems,
            fix="give one value, or one for each channel",
        )
    contract = InputContract(
        dtype=_dtype(settings.dtype or DEFAULT_DTYPE),
        value_range=settings.value_range or FULL_RANGES[settings.dtype or DEFAULT_DTYPE],
        channels=settings.channels or tuple(f"channel-{i}" for i in range(in_channels)),
        pixel_size_nm=settings.pixel_size_nm,
    )
    mean, std = (values * in_channels if len(values) == 1 else values for values in (mean, std))
    return contract, Normalisation(
        mean=mean, std=std, source=settings.normalisation_source, percentiles=settings.percentiles
    )


def _dtype(name: str) -> InputDtype:
    known: dict[str, InputDtype] = {name: name for name in get_args(InputDtype)}
    return known[name]


def class_infos(settings: AdoptionSettings, classes: int) -> tuple[ClassInfo, ...]:
    """Return names and colours of the classes.

    Raises
    ------
    ConfigurationError
        If there are not as many names as classes.
    """
    names = settings.classes or tuple(f"class-{i}" for i in range(classes))
    if len(names) != classes:
        raise ConfigurationError(
            f"{len(names)} class name(s) came, the network has {classes} classes",
            f"names: {', '.join(names)}; a network of one output has two: background and what it looks for",
            fix="--classes " + ",".join(f"class-{i}" for i in range(classes)),
        )
    return tuple(ClassInfo(name=name, colour=PALETTE[i % len(PALETTE)]) for i, name in enumerate(names))
