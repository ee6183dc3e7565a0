"""The report says what the run did, shows it to everybody, and changes nothing by watching."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")
skimage_io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")

from unet_deploy.card import Histogram  # noqa: E402
from unet_deploy.errors import OutputPathError  # noqa: E402
from unet_deploy.geometry import UnetGeometry  # noqa: E402
from unet_deploy.training import _report_curves as curves  # noqa: E402
from unet_deploy.training import _report_page as page  # noqa: E402
from unet_deploy.training import _report_pictures as pictures  # noqa: E402
from unet_deploy.training import _report_sections as sections  # noqa: E402
from unet_deploy.training.config import About, TrainingConfig  # noqa: E402
from unet_deploy.training.data import AnnotatedImage, TrainingData  # noqa: E402
from unet_deploy.training.loop import TrainingResult, train_unet  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402
from unet_deploy.training.report import TrainingReport, rank_images  # noqa: E402
from unet_deploy.training.state import History  # noqa: E402
from unet_deploy.training.validation import Score, Validation, to_tensor, validate  # noqa: E402

CONFIG = TrainingConfig(
    depth=1, base_width=2, tile_side=44, steps=6, warm_up_steps=2, validation_every_steps=3, threads=1, device="cpu"
)
ABOUT = About(name="cells")
MATCHED, MISSED, EXTRA = pictures.MATCHED, pictures.MISSED, pictures.EXTRA


def annotated(stem: str, seed: int, shape: tuple[int, int] = (40, 56), *, is_partial: bool = False) -> AnnotatedImage:
    """Two bright squares on a dark, noisy ground."""
    random = np.random.default_rng(seed)
    cells = np.zeros(shape, np.int32)
    cells[8:20, 8:20], cells[8:20, 23:35] = 1, 2
    image = np.clip(60 + 100 * (cells > 0) + random.normal(0, 10, shape), 0, 255).astype(np.uint8)
    ignored = np.zeros(shape, np.bool_)
    ignored[30:, 40:] = True
    return AnnotatedImage(
        stem=stem,
        image=image,
        label=(cells > 0).astype(np.uint8),
        cells=cells,
        instances=cells,
        ignored=ignored if is_partial else None,
    )


def squares(shape: tuple[int, int] = (40, 56), *, validation: int = 2) -> TrainingData:
    training = (annotated("a<b>&'c'", 0, shape, is_partial=True), annotated("second", 1, shape))
    return TrainingData(
        training=training,
        validation=tuple(annotated(f"v{i}", 10 + i, shape) for i in range(validation)),
        excluded=("left",),
        classes=("ground", "cell<&>"),
        dtype="uint8",
        value_range=(0.0, 255.0),
        mean=75.0,
        std=35.0,
        histogram=Histogram(value_range=(0.0, 255.0), counts=(1,)),
        class_pixels=(3000, 1000),
        cell_class=1,
        warnings=("class <odd> is rare",),
    )


def clock() -> Callable[[], datetime]:
    """One more second at each look."""
    seconds = iter(range(1000))
    return lambda: datetime(2025, 3, 1, tzinfo=UTC) + timedelta(seconds=next(seconds))


def report(path: Path, data: TrainingData, config: TrainingConfig = CONFIG, **settings: Any) -> TrainingReport:
    return TrainingReport(path, data=data, config=config, metric="seg", title="cells <&>", now=clock(), **settings)


def watched(path: Path, data: TrainingData, config: TrainingConfig = CONFIG) -> tuple[TrainingResult, str]:
    page = report(path, data, config)
    page.start()
    result = train_unet(data, config, about=ABOUT, on_validation=page.update)
    page.finish(result)
    return result, path.read_text(encoding="utf-8")


def images_of(text: str) -> dict[str, np.ndarray[Any, Any]]:
    """Decode every picture of a page by its alternative text."""
    found = re.findall(r"<img src='data:image/png;base64,([^']*)' alt='([^']*)'>", text)
    return {alt: skimage_io.imread(io.BytesIO(base64.b64decode(data)))[..., :3] for data, alt in found}


def charts_of(text: str) -> dict[str, ElementTree.Element]:
    """Parse every chart of a page by its title."""
    found = re.findall(r"<svg class='chart'.*?</svg>(?:(?!<svg class='chart').)*?</svg>", text)
    parsed = [ElementTree.fromstring(svg) for svg in found]
    return {chart.find("title").text.partition(" over")[0]: chart for chart in parsed}  # type: ignore[union-attr]


# ---- the page


def test_watching_changes_no_loss_and_no_score(tmp_path: Path) -> None:
    alone = train_unet(squares(), CONFIG, about=ABOUT)
    result, _ = watched(tmp_path / "report.html", squares())
    assert result.history == alone.history
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), alone.model.parameters(), strict=True))


def test_the_page_says_how_the_run_went(tmp_path: Path) -> None:
    result, text = watched(tmp_path / "report.html", squares())
    assert "<td>finished</td>" in text
    assert "<td>6 of 6</td>" in text
    assert f"<td>{result.seconds:,.0f} s</td>" in text
    best, last = result.best, result.history.validations[-1]
    assert f"<td>step {best.step}: SEG {best.values['seg']:.4f} (higher is better)</td>" in text
    for metric, name in (("pixel_disagreement", "pixel disagreement"), ("foreground_dice", "foreground Dice")):
        direction = "lower" if metric == "pixel_disagreement" else "higher"
        values = "".join(f"<td>{v.values[metric]:.4f}</td>" for v in (last, best))
        assert f"<td>{name}</td><td>{direction}</td>{values}" in text
    assert f"the best network, step {best.step}" in text
    for one in best.scores:
        assert f"pixel disagreement {one.values['pixel_disagreement']:.4f}" in text


def test_the_page_says_what_it_was_trained_on(tmp_path: Path) -> None:
    config = replace(CONFIG, class_balance=1.0)
    _, text = watched(tmp_path / "report.html", squares(), config)
    assert "<tr class=strong><td>class_balance</td><td>1.0</td><td>0.0</td></tr>" in text
    assert "<tr><td>momentum</td><td>0.99</td><td>0.99</td></tr>" in text
    assert "<td>augmentation.displacement_std_px</td><td>10.0</td>" in text
    assert "<td>ground</td><td>3,000</td><td>75.00%</td><td>0.6667</td>" in text
    assert "<td>cell&lt;&amp;&gt;</td><td>1,000</td><td>25.00%</td><td>2</td>" in text
    assert "<td>validation images</td><td>2: v0, v1</td>" in text
    assert "<td>left out</td><td>left</td>" in text
    assert "<td>ignored training pixels</td><td>160</td>" in text
    assert "<td>mean and standard deviation</td><td>75 and 35</td>" in text
    assert f"<td>torch</td><td>{torch.__version__}</td>" in text
    assert text.count("class &lt;odd&gt; is rare") == 2


def test_the_page_needs_nothing_beside_it_and_names_are_escaped(tmp_path: Path) -> None:
    _, text = watched(tmp_path / "report.html", squares())
    assert "<h1>cells &lt;&amp;&gt;</h1>" in text
    assert "<title>cells &lt;&amp;&gt;</title>" in text
    assert "a&lt;b&gt;&amp;&#x27;c&#x27;" in text
    for raw in ("a<b>", "cell<", "<odd>", "<script", "http:", "https:", "@import"):
        assert raw not in text
    assert set(re.findall(r"src='([^,]*),", text)) == {"data:image/png;base64"}


def test_every_picture_and_chart_is_told_to_those_who_do_not_see_it(tmp_path: Path) -> None:
    _, text = watched(tmp_path / "report.html", squares())
    pictures_shown, charts = images_of(text), charts_of(text)
    assert len(pictures_shown) == text.count("<img ") == 2 * 2 + 6 + 2 * 3
    assert all(len(alt) > 8 for alt in pictures_shown)
    assert {"validation image v0", "annotation of second", "training image second"} <= set(pictures_shown)
    assert any(re.fullmatch(r"weight map of second: weights 1 to [\d.]+, mean [\d.]+", alt) for alt in pictures_shown)
    assert set(charts) == {"loss", "learning rate", "pixel disagreement", "foreground Dice", "SEG"}
    assert all(chart.get("role") == "img" and chart.get("aria-label") for chart in charts.values())
    assert "aria-label='colours from 0 over" in text


def test_a_page_is_read_again_until_the_run_is_over(tmp_path: Path) -> None:
    path, data = tmp_path / "report.html", squares()
    refresh = f"http-equiv='refresh' content='{page.REFRESH_S}'"
    watching = report(path, data)
    watching.start()
    assert refresh in path.read_text(encoding="utf-8")
    assert "waiting for the first validation" in path.read_text(encoding="utf-8")
    model = UNet(depth=1, base_width=2, classes=2)
    history = History(losses=[0.5] * 3, validations=[validate(model, data, step=3)])
    watching.update(model, history)
    assert refresh in path.read_text(encoding="utf-8")
    assert "<td>3 of 6</td>" in path.read_text(encoding="utf-8")
    watching.stop("interrupted <here>")
    text = path.read_text(encoding="utf-8")
    assert refresh not in text
    assert "<td>stopped: interrupted &lt;here&gt;</td>" in text
    assert "Borders in validation images: step 3" in text
    history.losses += [0.5] * 3
    watching.update(model, history)
    assert refresh not in path.read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    pages = []
    for name in ("a.html", "b.html"):
        torch.manual_seed(0)
        data, model = squares(), UNet(depth=1, base_width=2, classes=2)
        one = report(tmp_path / name, data)
        one.update(model, History(losses=[1.0, 0.5], validations=[validate(model, data, step=2)]))
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_the_old_page_stays_until_the_new_one_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "report.html"
    watching = report(path, squares())
    watching.start()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    path.unlink()
    path.mkdir()
    (path / "kept").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        watching.stop("the folder is in the way")
    assert "cannot be written, the training goes on" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert [p.name for p in path.iterdir()] == ["kept"]


@pytest.mark.parametrize("place", ["missing/report.html", "."])
def test_a_place_that_cannot_hold_the_page_is_refused_at_once(tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputPathError, match=r"the training report cannot be written to (.|\n)*folder that exists"):
        report(tmp_path / place, squares())


def test_the_page_of_large_noisy_images_stays_below_4_mb(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noisy = [
        replace(annotated(f"n{i}", i, (600, 700)), image=random.integers(0, 256, (600, 700), np.uint8))
        for i in range(6)
    ]
    data = replace(squares(), training=tuple(noisy[:2]), validation=tuple(noisy[2:]))
    config = replace(CONFIG, tile_side=572)
    model = UNet(depth=1, base_width=1, classes=2)
    scores = tuple(Score(stem=a.stem, values={"seg": 0.5}) for a in data.validation)
    history = History(losses=[1.0] * 5000, validations=[Validation(step=5000, values={"seg": 0.5}, scores=scores)])
    report(tmp_path / "report.html", data, config).update(model, history)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text) < 4_000_000
    assert text.count("Of images larger than 512 px the centre is shown.") == 2
    assert "Of 572 px a side, one in 2 is shown." in text
    shapes = {alt.partition(" ")[0]: image.shape for alt, image in images_of(text).items()}
    assert shapes == dict.fromkeys(("validation", "predicted", "training", "annotation", "weight"), (512, 512, 3)) | {
        "augmented": (286, 286, 3)
    }


# ---- which images


def test_the_first_validation_decides_which_images_are_shown() -> None:
    def validation(*values: float) -> Validation:
        scores = tuple(Score(stem=str(i), values={"seg": v, "rand_error": v}) for i, v in enumerate(values))
        return Validation(step=1, values={}, scores=scores)

    assert rank_images(validation(0.5), "seg") == [(0, "the only one")]
    assert rank_images(validation(0.5, 0.2), "seg") == [(1, "worst at first"), (0, "best at first")]
    assert rank_images(validation(0.5, 0.2), "rand_error") == [(0, "worst at first"), (1, "best at first")]
    shown = rank_images(validation(0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8), "seg")
    assert shown == [
        (1, "worst at first"),
        (3, "in between at first"),
        (4, "in between at first"),
        (0, "best at first"),
    ]


def test_the_best_is_the_first_of_equals() -> None:
    history = History(
        validations=[Validation(step=s, values={"seg": v}, scores=()) for s, v in ((1, 0.1), (2, 0.7), (3, 0.7))]
    )
    best = sections.find_best(history, "seg")
    assert best is not None
    assert best.step == 2
    assert sections.find_best(History(), "seg") is None


def test_the_patches_are_the_first_of_the_run() -> None:
    from unet_deploy.training.augment import draw_patch

    data = squares()
    generator = torch.Generator().manual_seed(CONFIG.seed)
    picks = []
    for _ in range(sections.PATCHES):
        picks.append(data.training[int(torch.randint(2, (), generator=generator))])
        image = to_tensor(picks[-1], data)
        draw_patch(
            image,
            torch.cat([image, image]),
            tile_side=CONFIG.tile_side,
            geometry=UnetGeometry(1),
            config=CONFIG.augmentation,
            generator=generator,
        )
    text = "".join(sections.patches(data, CONFIG))
    names = [page.html.escape(a.stem) for a in picks]
    assert re.findall(r"<figcaption>\d: from ([^<]*)</figcaption>", text) == names
    assert len(set(names)) == 2


def test_labels_without_cells_have_class_weights_alone() -> None:
    plain = [replace(a, cells=None, instances=None) for a in squares().training]
    text = "".join(sections.weight_maps(replace(squares(), training=tuple(plain)), replace(CONFIG, class_balance=1.0)))
    assert "Class weights alone: these labels and settings have no border term." in text
    assert "classes as annotated" in text
    assert "weights 0 to 2, mean" in text  # ignored pixels, and the class of a quarter
    assert "<span>0</span>" in text
    assert "<span>2</span>" in text


# ---- pictures


def test_predicted_borders_are_found_missed_or_wrong() -> None:
    truth = annotated("a", 0)
    predicted = np.zeros((40, 56), np.uint8)
    predicted[9:20, 8:20] = 1  # a pixel short of the first square; nothing of the second
    predicted[28:34, 10:16] = 1
    match = pictures.draw_borders(truth, predicted)
    assert match.picture[9, 12] == MATCHED
    assert match.picture[8, 30] == MISSED
    assert match.picture[28, 12] == EXTRA
    assert match.picture[14, 12] < pictures.GREYS
    assert 0.5 < match.found < 0.6  # type: ignore[operator] # the squares are so near that one's border finds some
    assert 0.5 < match.right < 0.8  # type: ignore[operator]


def test_objects_that_touch_have_a_border_between_them() -> None:
    cells = np.zeros((20, 30), np.int32)
    cells[5:15, 5:15], cells[5:15, 15:25] = 1, 2
    truth = AnnotatedImage(
        stem="a",
        image=np.arange(600).reshape(20, 30).astype(np.uint16),
        label=(cells > 0).astype(np.uint8),
        instances=cells,
    )
    merged = pictures.draw_borders(truth, (cells > 0).astype(np.uint8))
    assert merged.picture[10, 14] == merged.picture[10, 15] == MISSED
    assert merged.right == 1.0
    by_class = pictures.draw_borders(replace(truth, instances=None), (cells > 0).astype(np.uint8))
    assert (by_class.found, by_class.right) == (1.0, 1.0)
    nothing = pictures.draw_borders(truth, np.zeros((20, 30), np.uint8))
    assert (nothing.found, nothing.right) == (0.0, None)


def test_borders_in_ignored_pixels_do_not_count() -> None:
    truth = annotated("a", 0, is_partial=True)
    predicted = (truth.label > 0).astype(np.uint8)
    predicted[32:38, 44:52] = 1
    match = pictures.draw_borders(truth, predicted)
    assert (match.found, match.right) == (1.0, 1.0)
    assert {pictures.STRIPE} <= set(match.picture[30:, 40:].ravel().tolist())
    assert EXTRA not in match.picture


def test_an_annotation_shows_each_object_in_its_own_colour_and_ignored_pixels_striped() -> None:
    drawn = pictures.draw_annotation(annotated("a", 0, is_partial=True))
    colours = {int(drawn[10, 10]), int(drawn[10, 25]), int(drawn[0, 0]), pictures.STRIPE, pictures.GAP}
    assert set(drawn.ravel().tolist()) == colours
    assert len(colours) == 5
    assert set(drawn[30:, 40:].ravel().tolist()) == {pictures.STRIPE, pictures.GAP}


def test_a_weight_map_is_hotter_where_it_is_greater() -> None:
    weights = np.linspace(0, 10, 11, dtype=np.float32)[None]
    drawn = pictures.draw_weights(weights, None, greatest=10.0)
    assert drawn[0, 0] == 0
    assert drawn[0, -1] == pictures.GREYS - 1
    assert (np.diff(drawn[0].astype(int)) > 0).all()
    assert not pictures.draw_weights(weights * 0, None, greatest=0.0).any()
    shown = skimage_io.imread(io.BytesIO(base64.b64decode(pictures.data_uri(drawn, is_heat=True).partition(",")[2])))
    assert "#" + bytes(shown[0, 0, :3].tolist()).hex() == pictures.heat_stops()[0]
    assert "#" + bytes(shown[0, -1, :3].tolist()).hex() == pictures.heat_stops()[-1]


def test_a_patch_keeps_its_contrast_and_shows_where_the_output_lies() -> None:
    tile = np.full((44, 44), 0.5, np.float32)
    label = np.zeros((28, 28), np.int64)
    label[10:20, 10:20] = 1
    drawn = pictures.draw_patch_sample(tile, label, label < 0, grey_range=(0.0, 1.0))
    assert drawn[0, 0] == round(0.5 * (pictures.GREYS - 1))
    assert drawn[8, 20] == pictures.FRAME
    assert drawn[18, 22] == pictures.OUTLINE
    brighter = pictures.draw_patch_sample(tile * 1.5, label, label < 0, grey_range=(0.0, 1.0))
    assert brighter[0, 0] > drawn[0, 0]
    assert pictures.draw_patch_sample(tile, label, label < 0, grey_range=(1.0, 1.0)).shape == (44, 44)


# ---- curves


def test_a_long_curve_is_reduced_to_means_of_neighbours() -> None:
    steps = np.arange(1, 5001, dtype=np.float64)
    line = curves.Line(steps=steps, values=steps * 2).reduced()
    assert len(line.steps) == 1000
    assert line.steps[:2].tolist() == [3.0, 8.0]
    assert np.allclose(line.values, 2 * line.steps)
    odd = curves.Line(steps=steps[:2003], values=np.ones(2003)).reduced()
    assert (len(odd.values), set(odd.values.tolist())) == (668, {1.0})
    assert len(curves.Line(steps=steps[:3], values=np.array([1.0, np.nan, 2.0])).reduced().steps) == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (0.001, 0.0016, [0.001, 0.0012, 0.0014, 0.0016]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert curves.linear_ticks(low, high) == expected


def test_every_axis_has_a_few_ticks() -> None:
    for power in range(-9, 9):
        for factor in (1.0, 1.3, 2.7, 4.9, 9.99):
            high = factor * 10.0**power
            assert 3 <= len(curves.linear_ticks(0, high)) <= 6
    assert curves.logarithmic_ticks(0.0009, 12) == [0.001, 0.01, 0.1, 1, 10]


def test_the_axis_is_logarithmic_only_where_the_values_ask_for_it() -> None:
    assert curves.asks_for_logarithm(np.array([0.01, 1.0]))
    assert not curves.asks_for_logarithm(np.array([0.5, 1.0]))
    assert not curves.asks_for_logarithm(np.array([0.0, 1.0]))
    losses = list(np.geomspace(10, 0.01, 400))
    history = History(losses=[*losses, 0.0])  # a tile without any annotation
    text = "".join(sections.curves(history, CONFIG, "seg"))
    chart = charts_of(text)["loss"]
    words = [element.text for element in chart.iter("text")]
    assert "loss, logarithmic" in words
    assert {"0.01", "0.1", "1"} <= set(words)
    assert "nan" not in text
    assert "inf" not in text.replace("infinity", "")


def test_points_lie_where_the_axes_say() -> None:
    line = curves.Line(steps=np.array([0.0, 50.0, 100.0]), values=np.array([0.0, 0.5, 1.0]), has_dots=True)
    mark = curves.Mark(step=100, value=1.0, text="best <network>")
    chart = ElementTree.fromstring(curves.draw_chart([line], alt="a & b", y_label="Dice", steps=100, mark=mark))
    dots = [(float(d.get("cx", "")), float(d.get("cy", ""))) for d in chart.iter("circle") if d.get("class") == "dot"]
    assert [x for x, _ in dots] == [0.0, 275.0, 550.0]
    assert dots[0][1] > dots[1][1] > dots[2][1]
    ring = next(element for element in chart.iter("circle") if element.get("class") == "mark")
    assert float(ring.get("cx", "")) == 72 + 550
    assert float(ring.get("cy", "")) == pytest.approx(14 + dots[2][1], abs=0.2)
    assert "step 50: 0.5" in [title.text for title in chart.iter("title")]
    assert "best <network>" in [text.text for text in chart.iter("text")]


@pytest.mark.parametrize("values", [[], [0.0], [0.25, 0.25], [np.nan], [-2.0, -1.0]])
@pytest.mark.parametrize("is_logarithmic", [False, True])
def test_odd_values_still_make_a_chart(values: list[float], is_logarithmic: bool) -> None:
    line = curves.Line(steps=np.arange(len(values), dtype=np.float64), values=np.array(values, np.float64))
    mark = curves.Mark(step=1, value=values[0] if values else np.nan, text="best")
    text = curves.draw_chart(
        [line],
        alt="odd",
        y_label="value",
        steps=0,
        mark=None if is_logarithmic else mark,
        is_logarithmic=is_logarithmic,
    )
    assert ElementTree.fromstring(text).find("title").text == "odd"  # type: ignore[union-attr]
    assert "nan" not in text
