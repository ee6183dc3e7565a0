"""A procedural volume that looks like serial-section electron microscopy of nerve tissue, with its true membranes.

For demonstrations and tests: no image is needed, none is copied. Each plane is drawn from first principles:

1. textures are periodic noise, each with a spectrum of its own;
2. space is bent by smooth noise, so that membranes curve, and divided among cells that drift and breathe slowly
   along z (`unet_deploy._sample_cells`);
3. grey values are cytoplasm with vesicles, mitochondria, membranes that fade where they are cut obliquely, stains,
   uneven illumination, and noise whose spectrum falls as that of a real micrograph.

Everything is periodic and depends only on the seed and on absolute coordinates: a smaller shape is a crop of a larger
one, and memory does not grow with the plane. Arithmetic is in float64, where the last-bit differences between
platforms all but never reach the 8-bit result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet_deploy._sample_cells import TILE, Cells, Field, Ownership, divide, pack_cells
from unet_deploy.errors import ConfigurationError

TEXTURE = 640
"""Period of every texture; not a divisor of WORLD, so that a plane repeats itself only after 5,120 pixels."""
BLOCK = 256
"""Pixels rendered at a time, a side; bounds the memory."""

MEMBRANE_HALF_WIDTH = 3.2
"""Pixels from the middle of a membrane that count as membrane, as wide as people draw them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleVolume:
    """A procedural image and its truth, both (z, y, x)."""

    image: npt.NDArray[np.uint8]
    membrane: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _World:
    """All that does not depend on the plane. Textures have side TEXTURE, mean 0 and standard deviation 1."""

    cells: Cells
    bend: tuple[Field, Field, Field, Field]  # y and x, twice: a plane mixes the two by its angle
    contrast: Field
    oblique: Field
    stain: Field
    light: Field
    grain: Field
    noise: Field
    vesicles: Field  # 0..1, dark rings


def em_like_volume(*, shape: tuple[int, int, int] = (4, 512, 512), seed: int = 0) -> npt.NDArray[np.uint8]:
    """Draw a volume like a serial-section electron micrograph; the same for a seed on every platform.

    Parameters
    ----------
    shape
        Extents (z, y, x) in pixels, each at least 1.
    seed
        Any integer from 0.

    Returns
    -------
    numpy.ndarray
        uint8, (z, y, x): dark membranes on grey cytoplasm.

    Raises
    ------
    ConfigurationError
        If the shape is not three positive integers, or the seed is negative.

    Examples
    --------
    >>> em_like_volume(shape=(1, 64, 48)).shape
    (1, 64, 48)
    """
    return em_like_volume_with_truth(shape=shape, seed=seed).image


def em_like_volume_with_truth(*, shape: tuple[int, int, int] = (4, 512, 512), seed: int = 0) -> SampleVolume:
    """Draw the volume of `em_like_volume` and tell which of its pixels are membrane.

    Takes and raises what `em_like_volume` does.
    """
    _check(shape, seed)
    world = _make_world(seed)
    image = np.empty(shape, np.uint8)
    membrane = np.empty(shape, np.bool_)
    for z in range(shape[0]):
        for y in range(0, shape[1], BLOCK):
            for x in range(0, shape[2], BLOCK):
                at = np.s_[z, y : y + BLOCK, x : x + BLOCK]
                height, width = image[at].shape
                grey, is_membrane = _render(world, _Plane(seed, z), _Window.around(y, x, height, width))
                image[at], membrane[at] = grey[:height, :width], is_membrane[:height, :width]
    return SampleVolume(image=image, membrane=membrane)


def _check(shape: tuple[int, ...], seed: int) -> None:
    if len(shape) != 3 or any(n != int(n) or n < 1 for n in shape):
        raise ConfigurationError(
            f"sample shape {shape} is not three positive integers",
            "the shape is (z, y, x) in pixels",
            fix="for example shape=(4, 512, 512)",
        )
    if seed < 0:
        raise ConfigurationError(f"sample seed {seed} is negative", "seeds are integers from 0", fix="seed=0")


# --- the world ------------------------------------------------------------------------------------------------------


def _random(*key: int) -> np.random.Generator:
    # PCG64 and uniform numbers only: their streams are fixed, those of other distributions may change with numpy.
    return np.random.Generator(np.random.PCG64(key))


def _make_world(seed: int) -> _World:
    """Make what all planes share; the numbers were set by eye and by the statistics of the ISBI 2012 slices."""
    rng = _random(seed, 0)
    fine_y, fine_x = _textures(rng, lambda k: _ring(k, 1 / 42, 0.35))
    other_y, other_x = _textures(rng, lambda k: _ring(k, 1 / 42, 0.35))
    wide_y, wide_x = _textures(rng, lambda k: _ring(k, 1 / 150, 0.35))
    contrast, oblique = _textures(rng, lambda k: _ring(k, 1 / 60, 0.5))
    stain, light = _textures(rng, lambda k: _ring(k, 1 / 110, 0.5))
    grain, fibre = _textures(rng, lambda k: _ring(k, 1 / 11, 0.6))
    noise, _ = _textures(rng, _noise_amplitude)
    return _World(
        cells=pack_cells(rng),
        bend=(
            1.4 * fine_y + 7 * wide_y,
            1.4 * fine_x + 7 * wide_x,
            1.4 * other_y + 7 * wide_x,
            1.4 * other_x - 7 * wide_y,
        ),
        contrast=contrast,
        oblique=oblique,
        stain=stain,
        light=light,
        grain=1.2 * np.minimum(grain, 0.4) + 0.4 * fibre,
        noise=noise,
        vesicles=_vesicle_texture(rng),
    )


def _ring(frequency: Field, centre: float, width: float) -> Field:
    """Return a band around `centre` cycles a pixel; `width` in natural logarithms of the frequency."""
    return np.exp(-((np.log(np.maximum(frequency, 1e-6) / centre) / width) ** 2)) / np.maximum(frequency, 1e-6)


def _noise_amplitude(frequency: Field) -> Field:
    return np.exp(-((frequency / 0.33) ** 2)) * (1 + 0.5 * np.exp(-((frequency / 0.06) ** 2)))


def _textures(rng: np.random.Generator, amplitude: Callable[[Field], Field]) -> tuple[Field, Field]:
    """Return two independent periodic fields of one spectrum: the real and imaginary part of one transform."""
    white = rng.random((TEXTURE, TEXTURE)) - 0.5 + 1j * (rng.random((TEXTURE, TEXTURE)) - 0.5)
    axis = np.fft.fftfreq(TEXTURE)
    gain = amplitude(np.hypot(axis[:, None], axis[None, :]))
    gain[0, 0] = 0
    both = np.fft.ifft2(np.fft.fft2(white) * gain)
    return both.real / both.real.std(), both.imag / both.imag.std()


def _vesicle_texture(rng: np.random.Generator) -> Field:
    texture = np.zeros((TEXTURE, TEXTURE))
    offset = np.arange(-11, 12)
    for y, x, size, depth in rng.random((1700, 4)):
        rows, columns = int(y * TEXTURE) + offset, int(x * TEXTURE) + offset
        distance = np.hypot(rows[:, None] - y * TEXTURE, columns[None, :] - x * TEXTURE)
        radius = 2.0 + 3.0 * size**2
        ring = (0.45 + 0.55 * depth) * np.exp(-(((distance - radius) / 1.6) ** 2))
        place = np.ix_(rows % TEXTURE, columns % TEXTURE)
        texture[place] = np.maximum(texture[place], ring)
    return texture


# --- one block of one plane -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Window:
    """Where a block lies: whole tiles, so that what is drawn does not depend on where the volume ends."""

    y: slice
    x: slice

    @classmethod
    def around(cls, y: int, x: int, height: int, width: int) -> _Window:
        return cls(slice(y, y + -(-height // TILE) * TILE), slice(x, x + -(-width // TILE) * TILE))

    def of(self, texture: Field, shift: tuple[int, int] = (0, 0), *, margin: int = 0) -> Field:
        """Look at a periodic texture through the window, moved by `shift`, with a margin around."""
        rows, columns = self.axes(margin)
        return texture[np.ix_((rows + shift[0]) % TEXTURE, (columns + shift[1]) % TEXTURE)]

    def axes(self, margin: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        rows = np.arange(self.y.start - margin, self.y.stop + margin, dtype=np.intp)
        return rows, np.arange(self.x.start - margin, self.x.stop + margin, dtype=np.intp)


class _Plane:
    """What varies from plane to plane as a microscope's sections do; the same for every block of a plane."""

    def __init__(self, seed: int, z: int) -> None:
        random = _random(seed, 1, z).random(9)
        self.z = z
        self.gain, self.level, self.noise = 0.9 + 0.2 * random[0], 147 + 30 * random[1], 16 + 11 * random[2]
        shifts = (random[3:] * TEXTURE).astype(int).tolist()
        self.grain_shift, self.vesicle_shift, self.noise_shift = zip(shifts[::2], shifts[1::2], strict=True)


def _render(world: _World, plane: _Plane, window: _Window) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Step 3 of the module: return grey values and membranes of one block."""
    z, cells = plane.z, world.cells
    own = divide(cells, z, *_bend(world, z, window))
    distance = np.maximum(own.distance, 0)
    inside = np.clip((distance - 3) / 5, 0, 1)
    grain = window.of(world.grain, plane.grain_shift)
    clusters = np.clip(1 + window.of(world.contrast, plane.noise_shift), 0, 1.4)
    grey = cells.brightness[own.cell] + cells.grain[own.cell] * grain
    grey -= inside * clusters * cells.vesicles[own.cell] * window.of(world.vesicles, plane.vesicle_shift)
    grey -= inside * _mitochondria(cells, own, grain)

    oblique = np.clip(window.of(world.oblique, (9 * z, 5 * z)) - 1.2, 0, 1.5)
    depth = (80 + 16 * window.of(world.contrast, (7 * z, -6 * z))) / (1 + 0.5 * oblique)
    grey -= depth / (1 + (distance / (2.9 + 2.2 * oblique)) ** 4)
    grey -= 55 * np.clip(window.of(world.stain, (4 * z, -3 * z)) - 1, 0, 1.5) * np.exp(-distance / 18)
    grey += 8 * window.of(world.light, (-5 * z, 8 * z))
    grey += plane.noise * window.of(world.noise, plane.noise_shift)
    image = np.clip(np.rint(plane.level + plane.gain * grey), 0, 255).astype(np.uint8)
    return image, own.distance < MEMBRANE_HALF_WIDTH


def _mitochondria(cells: Cells, own: Ownership, wobble: Field) -> Field:
    """Return how much darker mitochondria make each pixel: a dense body, a dark rim, stripes of cristae."""
    centre_y, centre_x, half_y, half_x, angle = np.moveaxis(cells.mitochondrion[own.cell], -1, 0)
    exists = half_y > 0
    half_y, half_x = np.where(exists, half_y, 1), np.where(exists, half_x, 1)
    dy, dx = own.y - centre_y, own.x - centre_x
    along, across = np.cos(angle) * dy + np.sin(angle) * dx, np.cos(angle) * dx - np.sin(angle) * dy
    deep = (1 - np.hypot(along / half_y, across / half_x)) * np.minimum(half_y, half_x)  # pixels from the rim, about
    stripes = np.sin(2 * np.pi * (across + 3 * np.sin(along / 9) + wobble) / 7.5)
    body = np.clip(deep / 3 + 0.5, 0, 1) * (58 + 17 * stripes + 8 * wobble)
    return np.where(exists, body + 8 * np.exp(-((deep / 2) ** 2)), 0)


def _bend(world: _World, z: int, window: _Window) -> tuple[Field, Field]:
    """Return bent coordinates, (2, y, x), and their slopes, (2, 2, y, x): of which coordinate, along which axis."""
    cos, sin = np.cos(0.35 * z), np.sin(0.35 * z)
    one_y, one_x, two_y, two_x = (window.of(texture, margin=1) for texture in world.bend)
    rows, columns = window.axes(1)
    bent = np.stack([rows[:, None] + cos * one_y + sin * two_y, columns[None, :] + cos * one_x + sin * two_x])
    slope = np.stack([bent[:, 2:, 1:-1] - bent[:, :-2, 1:-1], bent[:, 1:-1, 2:] - bent[:, 1:-1, :-2]], axis=1)
    return bent[:, 1:-1, 1:-1], slope / 2
