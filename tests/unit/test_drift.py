"""Each way in which a volume can differ from training is found, in these words; what is alike is let through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from skimage.io import imread

from tests.tiny import write_image
from unet_deploy.card import Histogram, ModelCard
from unet_deploy.errors import ValueRangeError
from unet_deploy.runtime import load_artifact, open_volume
from unet_deploy.runtime._grey_drift import FEWEST_VALUES
from unet_deploy.runtime.drift import (
    Finding,
    VolumeFacts,
    check_drift,
    compare_with_training,
    describe_findings,
    facts_of,
    require_no_drift,
)
from unet_deploy.runtime.grey_values import count_grey_values
from unet_deploy.runtime.scheduling import connect

Pixels = npt.NDArray[Any]
Cards = Callable[..., ModelCard]
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect(None) as client:
        yield client


def skewed(n: int = 40_000, *, seed: int = 0, low: float = 20, high: float = 240, dtype: str = "uint8") -> Pixels:
    """Return grey values most of which are bright, as those of electron micrographs."""
    values = np.random.default_rng(seed).beta(4, 1.5, n) * (high - low) + low
    return values.astype(dtype)


def trained_on(card: ModelCard, pixels: Pixels) -> ModelCard:
    low, high = card.input.value_range
    counts = np.histogram(pixels, 64, (low, high))[0]
    return replace(card, histogram=Histogram(value_range=(low, high), counts=tuple(int(n) for n in counts)))


def look(card: ModelCard, pixels: Pixels, **options: Any) -> tuple[Finding, ...]:
    return compare_with_training(card, VolumeFacts(dtype=pixels.dtype.name), count_grey_values(pixels), **options)


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in findings]


@pytest.fixture(scope="module")
def fixed(make_card: Cards) -> ModelCard:
    return trained_on(make_card(), skewed())


@pytest.fixture(scope="module")
def scaling(make_card: Cards) -> ModelCard:
    """A model that scales each volume by its percentiles, trained on dark images with few bright pixels."""
    return trained_on(make_card(percentiles=(1.0, 99.8)), 250 - skewed())


@pytest.fixture(scope="module")
def deep(make_card: Cards) -> ModelCard:
    card = make_card(dtype="uint16", value_range=(0.0, 65535.0))
    return trained_on(card, skewed(high=60000, dtype="uint16"))


def test_what_is_alike_is_let_through(fixed: ModelCard, scaling: ModelCard, deep: ModelCard) -> None:
    assert look(fixed, skewed(seed=1)) == ()
    assert look(scaling, 250 - skewed(seed=1)) == ()
    assert look(scaling, 4000 - skewed(seed=1, high=3900, dtype="uint16")) == ()  # of any dtype and exposure
    assert look(deep, skewed(seed=1, high=60000, dtype="uint16")) == ()


def test_grey_values_that_were_mapped_are_compared_as_the_model_sees_them(fixed: ModelCard) -> None:
    pixels = skewed(seed=1, low=20 * 16, high=240 * 16, dtype="uint16")
    assert look(fixed, pixels, input_range=(0, 255 * 16)) == ()
    assert codes(look(fixed, pixels, input_range=(0, 65535))) == ["narrow-range", "histogram"]


def test_a_card_without_histogram_finds_less(make_card: Cards) -> None:
    card = make_card()
    assert look(card, 255 - skewed()) == ()
    assert look(replace(card, histogram=Histogram(value_range=(0, 255), counts=(0, 0))), 255 - skewed()) == ()
    assert codes(look(card, skewed(dtype="uint16"))) == ["dtype"]
    assert codes(look(card, np.full(10, 7, np.uint8))) == ["constant"]
    wide = make_card(dtype="uint16", value_range=(0.0, 65535.0))
    assert codes(look(wide, skewed(high=4095, dtype="uint16"))) == ["unused-bits"]
    assert look(make_card(percentiles=(1.0, 99.8)), skewed()) == ()


def test_another_dtype(fixed: ModelCard) -> None:
    (finding,) = look(fixed, skewed(seed=1, dtype="uint16"))
    assert finding.code == "dtype"
    assert finding.text == "the volume is uint16, the model was trained on uint8 in 0..255"
    assert finding.fix == "say which grey values of the volume are black and white: --input-range LOW:HIGH"
    assert look(fixed, skewed(seed=1, dtype="uint16"), input_range=(0, 255)) == ()


@pytest.mark.parametrize(("bits", "dtype"), [(10, "uint16"), (12, "uint16"), (14, "uint16"), (12, "int16")])
def test_fewer_bits_than_in_training(make_card: Cards, deep: ModelCard, bits: int, dtype: str) -> None:
    pixels = skewed(seed=1, high=2**bits - 1, dtype=dtype)
    pixels[0] = 2**bits - 1
    if dtype == "int16":
        deep = trained_on(make_card(dtype="int16", value_range=(-32768.0, 32767.0)), skewed(high=30000, dtype="int16"))
    (finding,) = look(deep, pixels)
    assert finding.code == "unused-bits"
    assert finding.text.startswith(f"no grey value looked at exceeds {2**bits - 1:g}: {bits} bit in {dtype}; the ")
    assert "training images have values up to " in finding.text
    assert finding.fix == f"--input-range 0:{2**bits - 1}"
    assert look(deep, pixels, input_range=(0, 2**bits - 1)) == () or dtype == "int16"


def test_a_model_trained_on_12_bits_in_16_expects_them(make_card: Cards) -> None:
    card = make_card(dtype="uint16", value_range=(0.0, 65535.0))
    card = trained_on(card, skewed(high=4095, dtype="uint16"))
    assert look(card, skewed(seed=1, high=4095, dtype="uint16")) == ()
    assert codes(look(card, skewed(high=60000, dtype="uint16"))) == ["wide-range", "histogram"]


def test_inverted_contrast(fixed: ModelCard, scaling: ModelCard) -> None:
    (finding,) = look(fixed, 255 - skewed(seed=1))
    assert finding.code == "inverted"
    assert finding.text.startswith("the contrast seems inverted: bright and dark exchanged, the histogram lies 0.0")
    assert " from that of the training images, as it is 1." in finding.text
    assert finding.text.endswith(" (earth mover's distance of the shapes)")
    assert finding.fix == "invert the volume (its highest grey value minus each), or use a model trained on such images"
    assert finding.numbers["mirrored"] < 0.5 * finding.numbers["distance"]
    assert codes(look(scaling, skewed(seed=1))) == ["inverted"]


def test_contrast_of_another_kind_is_not_called_inverted(fixed: ModelCard) -> None:
    even = np.random.default_rng(0).normal(130, 40, 40_000).clip(0, 255).astype(np.uint8)
    assert "inverted" not in codes(look(fixed, even))


def test_a_narrow_range(fixed: ModelCard) -> None:
    pixels = skewed(seed=1, low=110, high=170)
    finding = look(fixed, pixels)[0]
    assert finding.code == "narrow-range"
    assert finding.text.startswith("99 % of the grey values span 122..169, in the training images 67.66..237.8: ")
    assert finding.text.endswith(" times narrower")
    start = "if the same things should look the same: --input-range "
    assert finding.fix.startswith(start)
    low, high = map(float, finding.fix.removeprefix(start).split(":"))
    assert look(fixed, pixels, input_range=(low, high)) == ()  # the fix is one


def test_a_wide_range(make_card: Cards) -> None:
    card = trained_on(make_card(), skewed(low=110, high=170))
    finding = look(card, skewed(seed=1))[0]
    assert finding.code == "wide-range"
    assert finding.text.endswith(" times wider")
    nearly_one_value = skewed(seed=1)
    nearly_one_value[5:] = 9
    assert look(card, nearly_one_value)[0].text.endswith(": infinitely narrower")
    assert look(card, nearly_one_value)[0].fix == "check the channel, the level and the file"


def test_other_grey_values(fixed: ModelCard) -> None:
    (finding,) = look(fixed, skewed(seed=1, low=0, high=150))
    assert finding.code == "histogram"
    assert finding.text.startswith("the grey values lie ")
    assert finding.text.endswith(
        " standard deviations of the training images from theirs on average (earth mover's distance); "
        "up to 0.75 is usual"
    )
    assert finding.fix.startswith("if the same things should look the same: --input-range ")


def test_other_grey_values_of_a_model_that_scales(make_card: Cards) -> None:
    dark = np.random.default_rng(0).exponential(8, 40_000).clip(0, 255).astype(np.uint8)
    card = trained_on(make_card(percentiles=(1.0, 99.8)), dark)
    two_kinds = np.random.default_rng(0).normal(50, 5, 40_000).clip(0, 255).astype(np.uint8)
    two_kinds[::2] += 120
    (finding,) = look(card, two_kinds)
    assert finding.code == "histogram"
    assert look(card, two_kinds, input_range=(40, 1000)) == ()  # what the model sees then is dark
    assert finding.text.startswith("scaled as the model does, the grey values lie ")
    assert finding.text.endswith("; up to 2 is usual")
    assert finding.fix == "look at the result of one plane first; a model trained on such images may be needed"


def test_saturation(fixed: ModelCard, make_card: Cards) -> None:
    pixels = skewed(seed=1)
    pixels[:2000] = 255
    (finding,) = look(fixed, pixels)
    assert finding.code == "saturated"
    assert finding.text == "5.0% of the pixels looked at have the highest grey value, 255: what was beyond is lost"
    assert finding.fix == "no setting mends it: expose so that neither end is reached, or leave the padding out"
    assert finding.numbers["highest"] == 0.05
    pixels[2000:4000] = 0
    assert "have the lowest grey value, 0 and 5.0% of the pixels" in look(fixed, pixels)[0].text
    assert look(trained_on(make_card(), pixels), pixels) == ()  # as in training


def test_a_volume_of_one_value(fixed: ModelCard) -> None:
    (finding,) = look(fixed, np.full(100, 7, np.uint8))
    assert (finding.code, finding.fix) == ("constant", "check the channel, the level and the file")
    assert finding.text == "all grey values looked at are 7: there is nothing to segment"


def test_values_that_are_no_numbers(make_card: Cards) -> None:
    card = make_card(dtype="float32", value_range=(0.0, 1.0))
    pixels = np.linspace(0, 1, 1000, dtype=np.float32)
    assert look(card, pixels) == ()
    pixels[:50] = np.nan
    (finding,) = look(card, pixels)
    assert (finding.code, finding.fix) == ("not-finite", "replace them by a grey value")
    assert finding.text == "5.00% of the grey values looked at are NaN or infinite"
    assert codes(look(card, np.full(10, np.inf, np.float32))) == ["not-finite"]


def test_pixels_of_another_size(fixed: ModelCard) -> None:
    card = replace(fixed, input=replace(fixed.input, pixel_size_nm=(4.0, 4.0)))
    counts = count_grey_values(skewed(seed=1))

    def of(size: Any, *levels: Any) -> tuple[Finding, ...]:
        return compare_with_training(
            card, VolumeFacts(dtype="uint8", pixel_size_nm=size, level_sizes_nm=dict(enumerate(levels))), counts
        )

    assert of(None) == of((4.0, 4.0)) == of((5.9, 2.8)) == of((6.0, 4.0)) == ()
    (finding,) = of((8.0, 8.0))
    assert finding.code == "pixel-size"
    assert finding.text == "pixels are 8 nm, the model was trained at 4 nm: a factor of 2.0"
    assert finding.fix == "resample the volume to about 4 nm, or use a model trained at its size"
    (finding,) = of((1.0, 1.0), (1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (8.0, 8.0))
    assert finding.fix == "--level 2"
    assert finding.numbers == {"factor": 4.0, "limit": 1.5}
    assert look(replace(card, input=replace(card.input, pixel_size_nm=None)), skewed(seed=1)) == ()


def test_the_pixel_size_of_a_volume_is_read_in_its_units(tmp_path: Path) -> None:
    pixels = np.zeros((2, 8, 8), np.uint8)
    volume = open_volume(write_image(tmp_path / "v.zarr", pixels))
    assert facts_of(volume.info) == VolumeFacts(dtype="uint8", pixel_size_nm=(4.0, 4.0), level_sizes_nm={0: (4.0, 4.0)})
    in_um = replace(volume.info, units=(None, "micrometer", "angstrom"))
    assert facts_of(in_um).pixel_size_nm == (4000.0, 0.4)
    unknown = facts_of(replace(in_um, units=None))
    assert (unknown.pixel_size_nm, unknown.level_sizes_nm) == (None, {})


def test_a_volume_is_looked_at_where_it_lies(tmp_path: Path, client: Any, fixed: ModelCard) -> None:
    array: Any = zarr.create_array(tmp_path / "v.zarr", shape=(6, 100, 100), chunks=(1, 50, 100), dtype="uint8")
    array[:4] = 255 - skewed().reshape(4, 100, 100)  # the rest is absent, and does not count
    volume = open_volume(tmp_path / "v.zarr")
    assert codes(check_drift(volume, fixed, (0,), client)) == ["inverted"]
    array[:4] = skewed().reshape(4, 100, 100)
    assert check_drift(volume, fixed, (0,), client, sample_values=None) == ()
    assert check_drift(volume, fixed, (0,), None) == ()
    assert check_drift(volume, fixed, (0,), client, input_range=(0, 255)) == ()


def test_of_a_sparse_volume_less_is_said(tmp_path: Path, fixed: ModelCard) -> None:
    array: Any = zarr.create_array(tmp_path / "v.zarr", shape=(100, 100, 100), chunks=(1, 100, 100), dtype="uint8")
    array[99] = 255 - skewed(10_000).reshape(100, 100)
    (finding,) = check_drift(open_volume(tmp_path / "v.zarr"), fixed, (0,), None, sample_values=200_000)
    assert finding.code == "constant"
    assert finding.text == "all grey values looked at, 20.00% of the volume, are 0: there may be nothing to segment"


def test_whoever_wants_it_strict_gets_an_error(fixed: ModelCard) -> None:
    require_no_drift((), source="brain.zarr")
    one = look(fixed, 255 - skewed(seed=1))
    with pytest.raises(ValueRangeError, match=r"brain\.zarr differs in one way from what the model was trained on"):
        require_no_drift(one, source="brain.zarr")
    two = (*one, *look(fixed, np.full(9, 7, np.uint8)))
    with pytest.raises(ValueRangeError) as caught:
        require_no_drift(two, source="brain.zarr")
    assert str(caught.value).splitlines() == [
        "brain.zarr differs in 2 ways from what the model was trained on",
        f"  {two[0].text} [inverted]",
        f"    what to do: {two[0].fix}",
        "  all grey values looked at are 7: there is nothing to segment [constant]",
        "    what to do: check the channel, the level and the file",
        "  fix: mend these, or leave --strict out to segment it as it is",
    ]
    assert (caught.value.headline, *caught.value.details) == describe_findings(two, source="brain.zarr")


def test_what_mends_two_findings_is_said_once(fixed: ModelCard) -> None:
    found = look(fixed, skewed(seed=1, low=0, high=120))
    assert codes(found) == ["narrow-range", "histogram"]
    lines = describe_findings(found, source="v.zarr")
    assert [line.split(":")[0] for line in lines[3:]] == ["  what to do"]
    assert lines[1:3] == (f"{found[0].text} [narrow-range]", f"{found[1].text} [histogram]")


@pytest.mark.parametrize("change", [lambda v: v, lambda v: 255 - v, lambda v: 110 + v // 4])
def test_few_grey_values_tell_only_what_is_certain(
    fixed: ModelCard, scaling: ModelCard, deep: ModelCard, change: Any
) -> None:
    pixels = change(skewed(FEWEST_VALUES - 1))
    assert look(fixed, pixels) == look(scaling, pixels) == ()
    assert look(fixed, pixels.astype(np.uint16), input_range=(0, 255)) == ()
    assert codes(look(fixed, pixels.astype(np.uint16))) == codes(look(deep, pixels)) == ["dtype"]
    assert codes(look(fixed, pixels[:1])) == ["constant"]
    assert look(deep, pixels.astype(np.uint16)) == ()


def test_a_finding_is_json(fixed: ModelCard) -> None:
    (finding,) = look(fixed, np.full(9, 7, np.uint8))
    assert finding.to_object() == {
        "code": "constant",
        "text": finding.text,
        "fix": finding.fix,
        "numbers": {"value": 7.0},
    }


@pytest.mark.parametrize(
    ("model", "folder", "change", "expected"),
    [
        ("membrane", "isbi2012/test", None, []),
        ("membrane", "isbi2012/test", lambda image: 255 - image, ["inverted"]),
        ("membrane", "isbi2012/test", lambda image: 64 + image // 2, ["narrow-range"]),
        ("membrane", "dsb2018/images", None, ["narrow-range", "histogram"]),
        ("nuclei", "dsb2018/images", None, []),
        ("nuclei", "dsb2018/images", lambda image: 255 - image, ["inverted"]),
        ("nuclei", "isbi2012/test", None, ["histogram"]),
    ],
)
def test_the_bundled_networks_know_their_kind(model: str, folder: str, change: Any, expected: list[str]) -> None:
    files = sorted((DATA / folder).glob("*.png"))[::5]
    if not files:
        pytest.skip(f"{DATA / folder} is not at hand")
    images = np.concatenate([imread(file).ravel() for file in files])
    card = load_artifact(model).card
    assert codes(look(card, images if change is None else change(images))) == expected
