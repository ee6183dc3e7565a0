"""PNG files decode to what was written; overlays, maps and panels show what they claim."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from unet_deploy.errors import ConfigurationError
from unet_deploy.picture import borders, encode_png, heat, overlay, side_by_side, to_display, write_png

COLOURS = ["#000000", "#ff7f0e", "#1f77b4"]


def decode_by_hand(path: Path) -> npt.NDArray[np.uint8]:
    """Read a PNG of ours with nothing but the specification: filter 0, 8 bits, one IDAT."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(name + body)
        chunks[name] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, bits, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (bits, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3}[colour]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    shape = (height, width) if channels == 1 else (height, width, 3)
    return rows[:, 1:].reshape(shape)


def picture(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (1, 9, 3), (33, 20, 3)])
def test_png_decodes_to_what_was_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = picture(*shape)
    path = write_png(tmp_path / "a.png", image)
    assert (decode_by_hand(path) == image).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("shape", [(5, 7), (33, 20, 3)])
def test_png_is_read_by_others(tmp_path: Path, shape: tuple[int, ...]) -> None:
    skimage_io = pytest.importorskip("skimage.io")
    image = picture(*shape)
    assert (skimage_io.imread(write_png(tmp_path / "a.png", image)) == image).all()


def test_png_of_a_view_and_over_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    image = picture(8, 10)[::2, ::-1]
    write_png(str(path), image)
    assert (decode_by_hand(path) == image).all()


def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "a.png"
    folder.mkdir()
    (folder / "kept").write_bytes(b"")
    with pytest.raises(OSError, match=r"a\.png"):
        write_png(folder, picture(2, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8)],
    ids=["float", "rgba", "line", "empty"],
)
def test_png_of_something_else_is_refused(tmp_path: Path, wrong: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigurationError, match=r"picture to write has shape .* not uint8 \(y, x\) or \(y, x, 3\)"):
        write_png(tmp_path / "a.png", wrong)
    assert not list(tmp_path.iterdir())


def test_encoded_bytes_are_the_file(tmp_path: Path) -> None:
    image = picture(5, 7, 3)
    assert write_png(tmp_path / "a.png", image).read_bytes() == encode_png(image)


def test_indexed_png_is_read_by_others_in_its_colours(tmp_path: Path) -> None:
    skimage_io = pytest.importorskip("skimage.io")
    palette, indices = picture(200, 3), picture(9, 14) % 200
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(indices, palette=palette))
    assert (skimage_io.imread(path)[..., :3] == palette[indices]).all()


@pytest.mark.parametrize(
    ("palette", "shape"),
    [
        (np.zeros((4, 3), np.uint8), r"\(4, 3\) and dtype uint8"),
        (np.zeros((257, 3), np.uint8), r"\(257, 3\)"),
        (np.zeros((9, 4), np.uint8), r"\(9, 4\)"),
        (np.zeros((9, 3)), r"\(9, 3\) and dtype float64"),
    ],
    ids=["too short", "too long", "with alpha", "float"],
)
def test_a_palette_that_does_not_fit_is_refused(palette: npt.NDArray[np.uint8], shape: str) -> None:
    indices = np.array([[0, 4]], np.uint8)
    with pytest.raises(ConfigurationError, match=rf"palette has shape {shape}.*not uint8 \(5\.\.256, 3\)"):
        encode_png(indices, palette=palette)
    with pytest.raises(ConfigurationError, match=r"picture to write has shape \(2, 2, 3\)"):
        encode_png(picture(2, 2, 3), palette=palette)


def test_borders_are_on_both_sides_of_a_change() -> None:
    labels = np.zeros((5, 5), np.int32)
    labels[2, 2] = 7
    cross = {(1, 2), (2, 1), (2, 2), (2, 3), (3, 2)}
    assert {(int(y), int(x)) for y, x in np.argwhere(borders(labels))} == cross
    assert not borders(labels * 0).any()


def test_to_display_stretches_the_percentiles() -> None:
    ramp = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    shown = to_display(ramp)
    assert shown.dtype == np.uint8
    assert (shown[0, :50] == 0).all()
    assert (shown[-1, -50:] == 255).all()
    assert abs(int(shown[50, 0]) - 128) <= 1
    assert (np.diff(shown.ravel().astype(int)) >= 0).all()


def test_to_display_of_special_planes() -> None:
    assert (to_display(np.full((3, 3), 7)) == 128).all()
    assert (to_display(np.full((3, 3), np.nan)) == 0).all()
    lone = np.zeros((100, 100), bool)
    lone[2, 3] = True  # rarer than the percentiles
    assert (to_display(lone) == 255 * lone).all()
    holes = np.array([[0.0, np.nan], [np.inf, 10.0]])
    assert to_display(holes).tolist() == [[0, 0], [0, 255]]


@pytest.mark.parametrize("wrong", [np.zeros((2, 3, 4)), np.zeros((0, 4)), np.zeros((2, 2), complex)])
def test_to_display_refuses_what_is_no_plane(wrong: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ConfigurationError, match=r"image to display has shape .* not \(y, x\) real numbers"):
        to_display(wrong)


def test_overlay_leaves_class_0_clear_and_outlines_the_rest() -> None:
    image = np.full((12, 12), 100, np.uint8)
    labels = np.zeros((12, 12), np.uint8)
    labels[3:9, 3:9] = 1
    shown = overlay(image, labels, COLOURS, opacity=0.5)
    assert (shown[labels == 0] == 100).all()
    assert (shown[3, 3:9] == (255, 127, 14)).all()  # the outline, on the object's own pixels
    assert shown[5, 5].tolist() == [178, 114, 57]  # halfway, 177.5 and 113.5 to even
    assert (overlay(image, labels * 0, COLOURS) == 100).all()
    assert (overlay(image, labels == 1, COLOURS, opacity=1)[5, 5] == (255, 127, 14)).all()


def test_overlay_outlines_classes_that_touch() -> None:
    labels = np.ones((6, 6), np.int64)
    labels[:, 3:] = 2
    shown = overlay(np.zeros((6, 6), np.uint8), labels, COLOURS, opacity=0)
    assert (shown[0, 2] == (255, 127, 14)).all()
    assert (shown[0, 3] == (31, 119, 180)).all()
    assert not shown[:, [0, 1, 4, 5]].any()


def test_overlay_refuses() -> None:
    image, labels = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    with pytest.raises(ConfigurationError, match=r"image under the labels has shape .* not uint8 \(y, x\)\n"):
        overlay(np.zeros((4, 5, 3), np.uint8), labels, COLOURS)
    with pytest.raises(ConfigurationError, match=r"labels have shape \(5, 4\) and dtype uint8, not \(4, 5\)"):
        overlay(image, labels.T, COLOURS)
    with pytest.raises(ConfigurationError, match="dtype float64"):
        overlay(image, labels.astype(float), COLOURS)
    with pytest.raises(ConfigurationError, match=r"labels span 3\.\.3, but .* classes 0\.\.2(.|\n)*give 4 colours"):
        overlay(image, labels + 3, COLOURS)
    with pytest.raises(ConfigurationError, match=r"labels span -1\.\.-1"):
        overlay(image, labels.astype(int) - 1, COLOURS)
    with pytest.raises(ConfigurationError, match="colour 'red' is not #rrggbb"):
        overlay(image, labels, ["#000000", "red"])
    with pytest.raises(ConfigurationError, match=r"opacity 1\.5 is not in 0\.\.1"):
        overlay(image, labels, COLOURS, opacity=1.5)


def test_heat_gets_lighter_with_every_step_of_ten() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    colours = heat(ramp)
    assert colours.shape == (1, 256, 3)
    lightness = (colours[0] * (0.2126, 0.7152, 0.0722)).sum(axis=1)
    assert (lightness[10:] > lightness[:-10]).all()
    assert lightness[0] < 10
    assert lightness[-1] > 235
    with pytest.raises(ConfigurationError, match=r"probability map has shape .* dtype float64"):
        heat(ramp / 255)


def test_side_by_side_puts_a_white_gap_between() -> None:
    grey, colour = np.full((4, 3), 9, np.uint8), np.full((2, 5, 3), (1, 2, 3), np.uint8)
    row = side_by_side([grey, colour], gap=2)
    assert row.shape == (4, 10, 3)
    assert (row[:, :3] == 9).all()
    assert (row[:, 3:5] == 255).all()
    assert (row[:2, 5:] == (1, 2, 3)).all()
    assert (row[2:, 5:] == 255).all()


def test_side_by_side_refuses() -> None:
    with pytest.raises(ConfigurationError, match="no pictures to set side by side"):
        side_by_side([])
    with pytest.raises(ConfigurationError, match="gap -1 between panels is negative"):
        side_by_side([picture(2, 2)], gap=-1)
    with pytest.raises(ConfigurationError, match=r"panel 1 has shape \(2, 2\) and dtype int64"):
        side_by_side([picture(2, 2), np.zeros((2, 2), np.int64)])  # type: ignore[list-item]
