"""Recipes: all settings of a training in one value, from a preset, a TOML file and single settings.

1. Four layers, each over the one before: the defaults, a preset, the file, the settings given one by one.
2. A setting has a dotted name: ``data.images``, ``training.steps``, ``augmentation.flip``, ``about.name``; a file has
   these tables and may name the preset it starts from. Names and types are those of the dataclasses.
3. `read_recipe` returns a sound recipe, or one error with everything that is wrong with it.
4. `recipe_to_toml` writes a recipe so that reading it gives the same.

::

    preset = "nuclei"

    [data]
    images = "images"           # relative to this file
    labels = "masks"

    [training]
    steps = 4000

    [augmentation]
    displacement_std_px = 6.0

    [about]
    name = "my nuclei"
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from unet_deploy.errors import ConfigurationError, UsageError
from unet_deploy.training._recipe_values import admits, convert, describe, parse_text, show, to_toml
from unet_deploy.training.augment import AugmentationConfig
from unet_deploy.training.config import About, TrainingConfig, config_problems
from unet_deploy.training.data_config import DataConfig
from unet_deploy.training.presets import PRESETS

Settings = dict[str, Any]
TABLES: Mapping[str, type[Any]] = {
    "data": DataConfig,
    "training": TrainingConfig,
    "augmentation": AugmentationConfig,
    "about": About,
}
HINTS: Mapping[str, Any] = {
    f"{table}.{name}": hint
    for table, cls in TABLES.items()
    for name, hint in get_type_hints(cls).items()
    if hint is not AugmentationConfig
}
"""The type of every setting by its dotted name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings of a training: the images, the numbers, and what the model's card says."""

    data: DataConfig
    training: TrainingConfig
    about: About


def read_recipe(
    path: Path | None = None,
    *,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str = "model",
) -> Recipe:
    """Return the recipe that a preset, a file and single settings make.

    Parameters
    ----------
    path
        A TOML file; relative paths in it are relative to it. None: no file.
    preset
        A name of `PRESETS` to start from; it goes before the one that the file names.
    overrides
        Values by dotted name, as Python values or as a file has them. They go before everything else.
    name
        The model's name where nothing gives one.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or is no TOML; or with every unknown name, value of another type, missing
        path and setting that cannot be.
    """
    content = {} if path is None else _read_file(path)
    problems: list[str] = []
    in_file = content.pop("preset", None)
    settings: Settings = {"about.name": name}
    settings |= _sound(_preset(in_file if preset is None else preset, problems), problems)
    settings |= _sound(_file_settings(content, Path() if path is None else path.parent, problems), problems)
    settings |= _sound(dict(overrides or {}), problems)
    wrong = {problem.partition(":")[0] for problem in problems}
    missing = [name for name in _required() if name not in settings.keys() | wrong]
    problems += [f"{name}: missing; a folder, a TIFF stack or a Zarr store" for name in missing]
    recipe = _build(settings)
    if not wrong & {"preset", "training.depth", "training.tile_side"}:  # the others would be about the defaults
        problems += [p if p.startswith("augmentation.") else f"training.{p}" for p in config_problems(recipe.training)]
    problems += _card_problems(recipe.about)
    if problems:
        source = "the settings given" if path is None else f"the recipe {path} and the settings given"
        raise ConfigurationError(
            f"{len(problems)} problem(s) with the recipe",
            *problems,
            f"in {source}",
            fix="correct the settings named above",
        )
    return recipe


def recipe_to_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML with every setting that has a value; `read_recipe` gives the same recipe back."""
    parts: dict[str, Any] = {
        "data": recipe.data,
        "training": recipe.training,
        "augmentation": recipe.training.augmentation,
        "about": recipe.about,
    }
    blocks: list[str] = []
    for table, part in parts.items():
        values = {f.name: getattr(part, f.name) for f in fields(part) if f"{table}.{f.name}" in HINTS}
        lines = [f"{name} = {to_toml(value)}" for name, value in values.items() if value is not None]
        blocks.append("\n".join([f"[{table}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def preset_settings(name: str) -> Settings:
    """Return what a preset sets, by dotted name.

    Raises
    ------
    ConfigurationError
        If there is no such preset.
    """
    problems: list[str] = []
    settings = _preset(name, problems)
    if problems:
        raise ConfigurationError(*problems, fix=f"--preset {next(iter(PRESETS))}, or another of them")
    return settings


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return name and value of ``KEY=VALUE`` as typed on the command line; `read_recipe` refuses unknown names.

    >>> parse_assignment("augmentation.displacement_std_px=6")
    ('augmentation.displacement_std_px', 6)

    Raises
    ------
    UsageError
        If there is no ``=`` with a name before it.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(
            f"--set {text!r} is not KEY=VALUE",
            "KEY is the dotted name of a setting of a recipe",
            fix="--set training.steps=4000",
        )
    key = key.strip()
    return key, parse_text(HINTS.get(key, str), value.strip())


def _read_file(path: Path) -> Settings:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no recipe {path}", fix="check the path given with --recipe") from error
    except OSError as error:
        raise ConfigurationError(
            f"the recipe {path} cannot be read: {error.strerror}", fix="check the path given with --recipe"
        ) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigurationError(
            f"{path} is no TOML file", str(error), fix="correct that line; texts stand in quotes in TOML"
        ) from error


def _preset(name: Any, problems: list[str]) -> Settings:
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        problems.append(f"preset: {name!r} is none of {', '.join(PRESETS)}{hint}")
        return {}
    return {f"{table}.{key}": value for table, values in PRESETS[name].items() for key, value in values.items()}


def _file_settings(content: Settings, folder: Path, problems: list[str]) -> Settings:
    """Return a file's settings by dotted name, its relative paths taken from its folder."""
    settings: Settings = {}
    for table, values in content.items():
        if table not in TABLES:
            problems.append(_unknown(table, [*TABLES, "preset", *HINTS]))
        elif not isinstance(values, Mapping):
            problems.append(f"{table}: {show(values)} came, a table was expected")
        else:
            settings |= {f"{table}.{key}": value for key, value in values.items()}
    for name, value in settings.items():
        if HINTS.get(name) is Path and isinstance(value, str) and value:
            settings[name] = folder / value
    return settings


def _sound(layer: Settings, problems: list[str]) -> Settings:
    """Return a layer's settings that are known and of the right type."""
    sound: Settings = {}
    for name, value in layer.items():
        if name not in HINTS:
            problems.append(_unknown(name, list(HINTS)))
        elif not admits(HINTS[name], value):
            problems.append(f"{name}: {show(value)} came, {describe(HINTS[name])} was expected")
        else:
            sound[name] = convert(HINTS[name], value)
    return sound


def _unknown(name: str, known: list[str]) -> str:
    last = {k.rpartition(".")[2]: k for k in known}  # `steps` is training.steps, and so is `trainig.steps`
    wanted = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, known, n=1) or [
        last[k] for k in difflib.get_close_matches(wanted, last, n=1)
    ]
    return f"{name}: unknown" + (f"; did you mean {close[0]}?" if close else "")


def _required() -> Iterator[str]:
    for field in fields(DataConfig):
        if field.default is MISSING and field.default_factory is MISSING:
            yield f"data.{field.name}"


def _build(settings: Settings) -> Recipe:
    parts: dict[str, Settings] = {table: {} for table in TABLES}
    for name in _required():
        parts["data"][name.partition(".")[2]] = Path()  # only where it is missing, which is refused
    for name, value in settings.items():
        table, _, key = name.partition(".")
        parts[table][key] = value
    augmentation = AugmentationConfig(**parts["augmentation"])
    return Recipe(
        data=DataConfig(**parts["data"]),
        training=TrainingConfig(**parts["training"], augmentation=augmentation),
        about=About(**parts["about"]),
    )


def _card_problems(about: About) -> Iterator[str]:
    if not about.name.strip():
        yield "about.name: empty; every model has a name"
    if about.pixel_size_nm is not None and min(about.pixel_size_nm) <= 0:
        yield f"about.pixel_size_nm: {about.pixel_size_nm} is not above 0"
