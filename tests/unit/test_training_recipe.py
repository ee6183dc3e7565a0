"""A recipe is layers of settings: the later wins, everything wrong is said at once, and its text gives it back."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the extra 'train' is not installed")

from unet_deploy.errors import ConfigurationError, UsageError
from unet_deploy.training._recipe_values import admits, convert, describe, parse_text, show, to_toml
from unet_deploy.training.augment import AugmentationConfig
from unet_deploy.training.config import About, TrainingConfig, config_problems
from unet_deploy.training.data_config import DataConfig
from unet_deploy.training.presets import PRESETS
from unet_deploy.training.recipe import (
    HINTS,
    Recipe,
    parse_assignment,
    preset_settings,
    read_recipe,
    recipe_to_toml,
)

PLACES = {"data.images": "images", "data.labels": "labels"}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path | None = None, **given: Any) -> str:
    with pytest.raises(ConfigurationError, match=r"problem\(s\) with the recipe") as caught:
        read_recipe(path, **given)
    return str(caught.value)


# ---- layers


def test_without_anything_it_is_the_defaults() -> None:
    recipe = read_recipe(overrides=PLACES, name="mine")
    assert recipe == Recipe(
        data=DataConfig(images=Path("images"), labels=Path("labels")),
        training=TrainingConfig(),
        about=About(name="mine"),
    )


def test_each_layer_goes_before_the_one_below(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        preset = "nuclei"
        [data]
        images = "pictures"
        labels = "/elsewhere/masks"
        classes = { ground = 0, nucleus = 1 }
        exclude = ["7"]
        [training]
        steps = 40
        dropout = 0
        [augmentation]
        flip = false
        [about]
        pixel_size_nm = [4, 5]
        """,
    )
    recipe = read_recipe(path, overrides={"training.steps": 50, "data.labels": Path("here")}, name="default")
    assert recipe.training.steps == 50  # given
    assert (recipe.training.dropout, recipe.training.augmentation.flip) == (0.0, False)  # of the file
    assert (recipe.training.depth, recipe.data.percentiles) == (4, (1.0, 99.8))  # of the preset
    assert recipe.training.seed == TrainingConfig().seed
    assert recipe.data.images == tmp_path / "pictures"  # relative to the file
    assert recipe.data.labels == Path("here")  # relative to where the user is
    assert list(recipe.data.classes or ()) == ["ground", "nucleus"]
    assert recipe.about == About(name="default", pixel_size_nm=(4.0, 5.0))
    assert isinstance(recipe.training.dropout, float)
    assert recipe.data.exclude == ("7",)


def test_a_preset_given_goes_before_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, 'preset = "nuclei"\n[data]\nimages = "i"\nlabels = "l"\n')
    assert read_recipe(path).data.label_kind == "instances"
    assert read_recipe(path, preset="paper").training.base_width == 64
    assert read_recipe(path, preset="paper").data.label_kind == "classes"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_sound_and_differs_from_the_defaults(name: str) -> None:
    recipe = read_recipe(preset=name, overrides=PLACES)
    assert config_problems(recipe.training) == []
    assert recipe != read_recipe(overrides=PLACES)
    for key, value in preset_settings(name).items():
        table, _, setting = key.partition(".")
        part = recipe.training.augmentation if table == "augmentation" else getattr(recipe, table)
        assert getattr(part, setting) == value


def test_the_paper_s_preset_is_the_papers() -> None:
    training = read_recipe(preset="paper", overrides=PLACES).training
    assert (training.base_width, training.optimiser, training.momentum, training.dropout) == (64, "sgd", 0.99, 0.5)
    assert (training.tile_side, training.border_weight, training.border_sigma_px) == (572, 10, 5)
    assert (training.augmentation.displacement_grid, training.augmentation.displacement_std_px) == (3, 10)


def test_none_takes_a_value_of_the_preset_back(tmp_path: Path) -> None:
    path = write(tmp_path, 'preset = "nuclei"\n[data]\nimages = "i"\nlabels = "l"\npercentiles = "none"\n')
    assert read_recipe(path).data.percentiles is None
    given = dict([parse_assignment("data.percentiles=none")])
    assert read_recipe(preset="nuclei", overrides={**PLACES, **given}).data.percentiles is None


# ---- everything wrong at once


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        preset = "nucleus"
        seed = 5
        training = 3
        [data]
        imagse = "pictures"
        labels = 5
        classes = { ground = 0, nucleus = "1" }
        percentiles = [1]
        gap = 1.5
        [augmentation]
        flip = 1
        displacement_std_px = nan
        [abot]
        name = "x"
        """,
    )
    said = problems(
        path, overrides={"training.steps": True, "training.optimiser": "sdg", "about.pixel_size_nm": [0, 1]}
    )
    for expected in (
        "preset: 'nucleus' is none of paper, small, membranes, nuclei; did you mean 'nuclei'?",
        "seed: unknown; did you mean training.seed?",
        "training: 3 (whole number) came, a table was expected",
        "data.imagse: unknown; did you mean data.images?",
        "data.images: missing; a folder, a TIFF stack or a Zarr store",
        "data.labels: 5 (whole number) came, a path was expected",
        'data.classes: {"ground": 0, "nucleus": "1"} (table) came, a table of names and whole numbers, or \'none\' was',
        "data.percentiles: [1] (list) came, a list of 2 numbers, or 'none' was expected",
        "data.gap: 1.5 (number) came, a whole number was expected",
        "augmentation.flip: 1 (whole number) came, true or false was expected",
        "augmentation.displacement_std_px: NaN (number) came, a number was expected",
        "abot: unknown; did you mean about?",
        "training.steps: true (true or false) came, a whole number was expected",
        'training.optimiser: "sdg" (text) came, one of sgd, adam was expected',
        "about.pixel_size_nm: (0.0, 1.0) is not above 0",
        f"in the recipe {path} and the settings given",
    ):
        assert expected in said, (expected, said)
    assert said.startswith(f"{said.count(chr(10)) - 2} problem(s) with the recipe\n")


def test_numbers_that_cannot_be_are_said_with_the_rest() -> None:
    wrong = {"training.tile_side": 250, "training.dropout": 1, "augmentation.displacement_grid": 1, "about.name": " "}
    said = problems(overrides=wrong)
    for expected in (
        "training.tile_side: 250 is not legal for depth 4; nearest: 236, 252",
        "training.dropout: 1.0 is not in [0, 1)",
        "augmentation.displacement_grid: 1 is not at least 2",
        "about.name: empty; every model has a name",
        "data.images: missing",
        "data.labels: missing",
        "in the settings given",
    ):
        assert expected in said
    assert said.startswith("6 problem(s)")
    assert "training.depth: network depth -1" in problems(overrides={**PLACES, "training.depth": -1})


def test_a_number_is_not_judged_by_the_default_of_one_that_is_wrong() -> None:
    said = problems(overrides={**PLACES, "training.depth": "one", "training.tile_side": 28})
    assert said.startswith("1 problem(s)")


@pytest.mark.parametrize("name", ["steps", "trainig.steps", "training.step"])
def test_an_unknown_name_gets_the_nearest(name: str) -> None:
    assert f"{name}: unknown; did you mean training.steps?" in problems(overrides={**PLACES, name: 5})


def test_an_unknown_name_like_no_other() -> None:
    assert "\n  zzz: unknown\n" in problems(overrides={**PLACES, "zzz": 5})


def test_a_preset_by_itself_is_known_or_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"preset: 'papre' is none of .*; did you mean 'paper'\?"):
        preset_settings("papre")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"steps = ", "is no TOML file"),
        (b"[training]\nsteps = 5\nsteps = 6", "is no TOML file"),
        (b'name = "\xff"', "is no TOML file"),
        (None, "there is no recipe"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=says) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_recipe(tmp_path)


# ---- types and texts


def test_every_setting_has_a_type_and_words_for_it() -> None:
    classes = (DataConfig, TrainingConfig, AugmentationConfig, About)
    assert len(HINTS) == sum(len(fields(cls)) for cls in classes) - 1  # the augmentation is a table of its own
    assert [name for name, hint in HINTS.items() if not describe(hint)] == []
    assert describe(HINTS["data.validation"]) == "a list of texts, or 'none'"
    assert describe(HINTS["training.best_by"]).startswith("one of pixel_disagreement, ")


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float, 3, 3.0),
        (int | None, "none", None),
        (str | None, "none", "none"),
        (Path, "a/b", Path("a/b")),
        (tuple[str, ...], ["a", "b"], ("a", "b")),
        (tuple[float, float] | None, (1, 2.5), (1.0, 2.5)),
    ],
)
def test_a_value_becomes_its_type(hint: Any, value: Any, expected: Any) -> None:
    assert admits(hint, value)
    came = convert(hint, value)
    assert came == expected
    assert type(came) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, True),
        (float, float("inf")),
        (float, 10**400),
        (float, "1"),
        (int, 1.0),
        (int, None),
        (bool, 0),
        (Path, ""),
        (str, 5),
        (tuple[str, ...], "ab"),
        (tuple[str, ...], [1]),
        (tuple[float, float], [1, 2, 3]),
    ],
)
def test_a_value_of_another_type_is_not_admitted(hint: Any, value: Any) -> None:
    assert not admits(hint, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.steps=5", ("training.steps", 5)),
        ("training.steps = 1_000", ("training.steps", 1000)),
        ("training.learning_rate=1e-3", ("training.learning_rate", 1e-3)),
        ("training.optimiser=sgd", ("training.optimiser", "sgd")),
        ("augmentation.flip=false", ("augmentation.flip", False)),
        ("data.exclude=['a', 'b']", ("data.exclude", ["a", "b"])),
        ("data.classes={ground = 0, cell = 1}", ("data.classes", {"ground": 0, "cell": 1})),
        ("data.ignore=none", ("data.ignore", None)),
        ("data.images=C:\\data = x", ("data.images", "C:\\data = x")),
        ("about.name=2020-01-01", ("about.name", "2020-01-01")),
        ('about.name="quoted"', ("about.name", "quoted")),
        ("about.name=", ("about.name", "")),
        ("zzz=5", ("zzz", "5")),
        ("about.name=1\nother = 2", ("about.name", "1\nother = 2")),
    ],
)
def test_an_assignment(text: str, expected: tuple[str, Any]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["training.steps", "=5", " = 5"])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not KEY=VALUE") as caught:
        parse_assignment(text)
    assert "fix: --set training.steps=4000" in str(caught.value)


def test_what_came_is_shown_in_short() -> None:
    assert show("a" * 500).endswith("... (text)")
    assert len(show("a" * 500)) < 100
    assert show(Path("a")) == f'"a" ({type(Path()).__name__})'


# ---- round trip

texts = st.text(max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Draw values that a type admits."""
    arguments = get_args(hint)
    if NoneType in arguments:
        return st.none() | values_of(next(a for a in arguments if a is not NoneType))
    plain = {bool: st.booleans(), int: st.integers(-(2**40), 2**40), float: numbers, str: texts}
    if hint in plain:
        return plain[hint]
    if hint is Path:
        return texts.map(lambda text: Path("/", text.replace("\0", "").replace("/", "")).absolute())
    if get_origin(hint) is tuple:
        one = values_of(arguments[0])
        return st.lists(one, max_size=3).map(tuple) if Ellipsis in arguments else st.tuples(one, one)
    if all(isinstance(a, str) for a in arguments):
        return st.sampled_from(arguments)
    return st.dictionaries(texts, values_of(arguments[1]), max_size=3)


SETTINGS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {name: values_of(hint) for name, hint in HINTS.items()}
)


@given(SETTINGS)
def test_any_value_comes_back_from_its_text(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        assert admits(HINTS[name], value)
        if value is not None:
            again = tomllib.loads(f"value = {to_toml(value)}")["value"]
            assert admits(HINTS[name], again)
            assert convert(HINTS[name], again) == value
            if not isinstance(value, str | Path):
                assert convert(HINTS[name], parse_text(HINTS[name], to_toml(value))) == value


@given(
    data=SETTINGS.map(lambda s: {k: v for k, v in s.items() if k.partition(".")[0] in ("data", "about")}),
    preset=st.sampled_from([None, *PRESETS]),
    seed=st.integers(0, 2**40),
    rate=st.floats(1e-9, 1e9),
)
def test_a_recipe_comes_back_from_its_toml(
    data: dict[str, Any], preset: str | None, seed: int, rate: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data |= {"about.name": f"n{data['about.name']}", "about.pixel_size_nm": (4.5, rate)}
    recipe = read_recipe(
        preset=preset, overrides={**data, "training.seed": seed, "training.learning_rate": rate, "training.threads": 3}
    )
    path = write(tmp_path_factory.mktemp("recipe"), recipe_to_toml(recipe))
    again = read_recipe(path)
    assert again == recipe
    assert list(again.data.classes or ()) == list(recipe.data.classes or ())
