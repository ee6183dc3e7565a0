"""A bioimage.io package, a zip or a folder with ``rdf.yaml`` of model format 0.4 or 0.5: what it says, as settings.

1. Description and ONNX weights are read (`exporters.foreign_files`); the weights must have the sha256 that is
   written beside them.
2. Steps before the network become our normalisation: constants as they are (``fixed_zero_mean_unit_variance``,
   ``scale_linear``), percentiles of a sample as those of the volume (``scale_range``). A step that measures a sample
   otherwise, or changes what is not linear, is refused by its name: it would measure each tile.
3. Steps after it are those that make probabilities, or none.
4. Names, licence, citation and pixel size are taken along. What a flag says comes before what the package says.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from unet_deploy.errors import AdoptionError, ConfigurationError, UnsafeModelError
from unet_deploy.exporters.adopt_settings import AdoptionSettings
from unet_deploy.exporters.foreign_files import open_files, parse_description
from unet_deploy.runtime.artifact import MAX_FILE_BYTES

SUFFIXES = (".zip", ".yaml", ".yml")
MAX_DESCRIPTION_BYTES = 2**20
KEPT = ("ensure_dtype",)
"""Steps that change nothing, unless values are cut to integers midway: we compute in float32 as it is."""
PROBABILITIES = ("sigmoid", "softmax", *KEPT)
NANOMETRES = {"nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6, "angstrom": 0.1, "picometer": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What a package holds: its weights, and what it says of them; `notes` are words for the user."""

    data: bytes
    source: str
    settings: AdoptionSettings
    is_sigmoid: bool
    notes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Scaling:
    """value → value · gain + offset by channel, after percentiles if there are some."""

    gain: list[float]
    offset: list[float]
    percentiles: tuple[float, float] | None = None

    def then(self, gain: list[float], offset: list[float]) -> None:
        self.offset = [old * g + o for old, g, o in zip(self.offset, gain, offset, strict=True)]
        self.gain = [old * g for old, g in zip(self.gain, gain, strict=True)]


def is_package(path: Path) -> bool:
    """Tell whether a path is a package rather than an ONNX file."""
    return path.is_dir() or path.suffix.lower() in SUFFIXES


def open_package(path: Path) -> Package:
    """Read a package's description and weights; see the module.

    Raises
    ------
    ModelNotFoundError
        If it, its description or its weights are not there.
    UnsafeModelError
        If a file in it is larger than any model, outside of it, or not the one that is described.
    AdoptionError
        If the description cannot be read, or asks for what cannot be done tile by tile.
    MissingDependencyError
        If PyYAML is not installed.
    """
    read, name = open_files(path)
    described = parse_description(read(name, MAX_DESCRIPTION_BYTES), f"{name} of {path}")
    inputs, outputs = _objects(described.get("inputs")), _objects(described.get("outputs"))
    if len(inputs) != 1 or len(outputs) != 1:
        raise AdoptionError(
            f"{path} describes no network of one input and one output",
            f"{len(inputs)} input(s) and {len(outputs)} output(s) came",
            fix="adopt its ONNX file by itself",
        )
    (given,), (made,) = inputs, outputs
    axes = _axis_names(given)
    if sorted(axes) != ["b", "c", "x", "y"] or axes != ["b", "c", "y", "x"]:
        raise AdoptionError(
            f"{path} describes an input with the axes {', '.join(axes) or 'none'}",
            "batch, channel, y, x were expected, in that order",
            fix="use a network of two dimensions",
        )
    weights = _object(_object(described.get("weights")).get("onnx"))
    if not weights:
        kinds = ", ".join(sorted(map(str, _object(described.get("weights"))))) or "none"
        raise AdoptionError(
            f"{path} has no ONNX weights",
            f"weights: {kinds}",
            fix="add them with bioimageio.core, or export them as ONNX",
        )
    source = _file_of(weights.get("source"))
    data = read(source, MAX_FILE_BYTES)
    expected = weights.get("sha256")
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise UnsafeModelError(
            f"{source} of {path} is not the file that the package describes",
            f"sha256 {str(expected)[:12]}… was expected, {hashlib.sha256(data).hexdigest()[:12]}… came",
            fix="download the package again",
        )
    channels = _channels(given)
    scaling, notes = _read_steps(given, len(channels) or _channel_count(given), str(path))
    dtype = _dtype(given)
    if dtype is None:
        notes += ("the package does not say which grey values its images have: uint8, unless --dtype says another",)
    settings = AdoptionSettings(
        dtype=dtype,
        value_range=None if dtype is None else _value_range(given),
        mean=tuple(0 - o / g for g, o in zip(scaling.gain, scaling.offset, strict=True)),
        std=tuple(1 / g for g in scaling.gain),
        percentiles=scaling.percentiles,
        name=_text(described.get("name")),
        classes=_channels(made),
        channels=channels,
        pixel_size_nm=_pixel_size(given),
        licence=_text(described.get("license")) or "unknown",
        citation=_citation(described.get("cite")),
        normalisation_source=f"the steps that {name} describes",
    )
    return Package(
        data=data,
        source=f"{source} of {path}",
        settings=settings,
        is_sigmoid=_require_probabilities(made, str(path)),
        notes=notes,
    )


def fill_in(given: AdoptionSettings, described: AdoptionSettings) -> AdoptionSettings:
    """Return what was given, and where nothing was, what is described; a normalisation is one thing."""
    plain = AdoptionSettings()
    changes = {
        field.name: getattr(described, field.name)
        for field in fields(given)
        if getattr(given, field.name) == getattr(plain, field.name)
    }
    if given.mean or given.std or given.percentiles:
        for name in ("mean", "std", "percentiles", "normalisation_source"):
            changes.pop(name, None)
    return replace(given, **changes)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _file_of(source: Any) -> str:
    """Return a file's name, which 0.5 may give in an object of its own."""
    name = _text(source) or _text(_object(source).get("source"))
    return name.removeprefix("./") if name else "weights.onnx"


def _axes(tensor: dict[str, Any]) -> list[Any]:
    axes = tensor.get("axes")
    return list(axes) if isinstance(axes, str | list) else []


def _axis_names(tensor: dict[str, Any]) -> list[str]:
    """Return b, c, y, x: letters in 0.4, objects in 0.5."""
    short = {"batch": "b", "channel": "c"}
    return [
        axis if isinstance(axis, str) else short.get(str(axis.get("type")), str(axis.get("id")))
        for axis in _axes(tensor)
        if isinstance(axis, str | dict)
    ]


def _channels(tensor: dict[str, Any]) -> tuple[str, ...]:
    for axis in _axes(tensor):
        if isinstance(axis, dict) and axis.get("type") == "channel":
            names = axis.get("channel_names")
            return tuple(map(str, names)) if isinstance(names, list) else ()
    return ()


def _channel_count(tensor: dict[str, Any]) -> int:
    """Return the length of the channel axis where names do not tell it: 0.4 has it in the shape."""
    shape = tensor.get("shape")
    sizes = _object(shape).get("min") if isinstance(shape, dict) else shape
    is_known = isinstance(sizes, list) and len(sizes) == 4 and isinstance(sizes[1], int) and sizes[1] > 0
    return sizes[1] if is_known and isinstance(sizes, list) else 1


def _dtype(tensor: dict[str, Any]) -> str | None:
    """Return the images' data type; floats alone say nothing, since tensors are called so whatever is in them."""
    data = tensor.get("data")
    name = tensor.get("data_type") or _object(data[0] if isinstance(data, list) and data else data).get("type")
    if name in ("float16", "float32", "float64") and _value_range(tensor) is not None:
        return "float32"
    return name if name in ("uint8", "uint16", "int16") else None


def _value_range(tensor: dict[str, Any]) -> tuple[float, float] | None:
    values = tensor.get("data_range") or _object(tensor.get("data")).get("range")
    if not isinstance(values, list) or len(values) != 2 or not all(isinstance(v, int | float) for v in values):
        return None
    low, high = (float(v) for v in values)
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def _pixel_size(tensor: dict[str, Any]) -> tuple[float, float] | None:
    sizes = {}
    for axis in _axes(tensor):
        if isinstance(axis, dict) and axis.get("unit") in NANOMETRES and isinstance(axis.get("scale"), int | float):
            sizes[axis.get("id")] = axis["scale"] * NANOMETRES[axis["unit"]]
    return (sizes["y"], sizes["x"]) if {"y", "x"} <= sizes.keys() else None


def _citation(value: Any) -> str:
    cited = [_text(_object(entry).get("text")) for entry in value] if isinstance(value, list) else []
    return "; ".join(text for text in cited if text) or "unknown"


# ---- steps


def _steps(tensor: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    entries = tensor.get(key)
    return [
        (str(_object(entry).get("id") or _object(entry).get("name")), _object(_object(entry).get("kwargs")))
        for entry in (entries if isinstance(entries, list) else [])
    ]


def _read_steps(tensor: dict[str, Any], channels: int, source: str) -> tuple[_Scaling, tuple[str, ...]]:
    """Return the steps before the network as one linear scaling, and what must be said of it."""
    scaling = _Scaling(gain=[1.0] * channels, offset=[0.0] * channels)
    notes: list[str] = []
    is_first = True
    for name, options in _steps(tensor, "preprocessing"):
        mode = options.get("mode", "fixed" if name.startswith("fixed") else "per_sample")
        if name in KEPT and (is_first or str(options.get("dtype", "float32")).startswith("float")):
            continue
        if name == "fixed_zero_mean_unit_variance" or (name == "zero_mean_unit_variance" and mode == "fixed"):
            mean, std = _numbers(options, "mean", channels, source), _numbers(options, "std", channels, source)
            scaling.then([1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)])
        elif name == "scale_linear":
            gain = _numbers({"gain": 1.0, **options}, "gain", channels, source)
            scaling.then(gain, _numbers({"offset": 0.0, **options}, "offset", channels, source))
        elif name == "scale_range" and is_first and _is_by_channel(options, channels):
            (low,) = _numbers({"min_percentile": 0.0, **options}, "min_percentile", 1, source)
            (high,) = _numbers({"max_percentile": 100.0, **options}, "max_percentile", 1, source)
            scaling.percentiles = low, high
            notes.append("percentiles are those of each channel of the whole volume, where the package has a sample's")
        else:
            raise AdoptionError(
                f"{source} prepares its input by {name}{f' ({mode})' if 'mode' in options else ''}",
                "that is no scaling by constants or by percentiles: it would be measured on every tile by itself",
                "possible: fixed_zero_mean_unit_variance, scale_linear, and first of all scale_range by channel",
                fix="adopt its ONNX file by itself, with --mean and --std of the images it was trained on",
            )
        is_first = False
    if any(g == 0 or not math.isfinite(g) for g in scaling.gain):
        raise ConfigurationError(
            f"{source} scales its input by {scaling.gain}",
            "factors other than 0 were expected",
            fix="mend its description",
        )
    return scaling, tuple(notes)


def _is_by_channel(options: dict[str, Any], channels: int) -> bool:
    axes = [{"channel": "c"}.get(axis, axis) for axis in options.get("axes") or ["c", "y", "x"]]
    return "reference_tensor" not in options and (channels == 1 or "c" not in axes) and {"y", "x"} <= set(axes)


def _numbers(options: dict[str, Any], key: str, channels: int, source: str) -> list[float]:
    value = options.get(key)
    values = value if isinstance(value, list) else [value]
    good = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(good) != len(values) or len(values) not in (1, channels) or (key == "std" and min(good) <= 0):
        raise ConfigurationError(
            f"{source} scales its input with {key} {value!r}",
            f"one number, or {channels}, were expected",
            fix="mend its description, or adopt its ONNX file by itself",
        )
    return good * channels if len(good) == 1 else good


def _require_probabilities(tensor: dict[str, Any], source: str) -> bool:
    """Refuse steps after the network that make anything but probabilities; return whether they are sigmoids."""
    names = [name for name, _ in _steps(tensor, "postprocessing")]
    foreign = [name for name in names if name not in PROBABILITIES]
    if foreign:
        raise AdoptionError(
            f"{source} changes its output by {', '.join(foreign)}",
            f"steps that make probabilities were expected: {', '.join(PROBABILITIES)}",
            fix="adopt its ONNX file by itself, if its output is logits",
        )
    return "sigmoid" in names
