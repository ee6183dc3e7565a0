"""Tiles of one grey value, answered without the network: missing chunks, the dark around a sample, a saturated plane.

1. A tile is constant if each of its channels holds one finite number, compared bit by bit. A few of its pixels are
   looked at first, since most tiles differ there already.
2. Its answer is what this engine says of a tile of this very shape and value, sent alone, by the very runner that all
   tiles go through. Labels and probabilities are kept whole, and cropped for each tile like it: they are not one value,
   but repeat with the divisor, since up-convolutions do.
3. Which tiles are answered, and with what, depends on their pixels alone and never on which came first. So a run that
   was killed and resumed stays byte-identical to an unbroken one.
4. A tile whose logits are not all numbers has no answer: it goes to the network like any other, and fails there.
5. `ConstantAnswers` keeps the last few for as long as its engine is open; they are a small part of a batch's memory.

In a batch the network could say something else in the last bit, since a kernel may round a tile's first place another
way than its second. Measured with the bundled network on a CPU, onnxruntime and openvino give a tile the same bits at
any place of a batch of 2, 3 or 5.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.runtime.layout import Kind
from unet_deploy.runtime.normalise import Normaliser

Bytes = npt.NDArray[np.uint8]
Values = tuple[bytes, ...]

MAX_ANSWERS = 8
MAX_BYTES = 32 * 2**20
"""Of all answers together; at a tile of 1212² and two classes one takes 3 MB. The newest is kept whatever it takes."""
N_SAMPLES = 8
"""Along each axis."""
STRIP = 64
"""Rows that are compared at once: a tile that is constant in its first rows alone is left early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerKey:
    """What an answer depends on, the engine aside: the raw tile, what is made of it, and how often the network runs."""

    shape: tuple[int, ...]
    dtype: str
    values: Values
    normaliser: Normaliser
    kinds: tuple[Kind, ...]
    passes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What the network says of a whole constant tile.

    `labels` is uint8 (y, x), `probabilities` uint8 (classes, y, x), None for what was not asked for. It `is_number`
    unless a logit is none; nothing is to be taken from it then.
    """

    labels: Bytes | None
    probabilities: Bytes | None
    is_number: bool = True

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in (self.labels, self.probabilities) if array is not None)


class ConstantAnswers:
    """The answers of an open engine, the most recently used last. Safe to use from several threads.

    Examples
    --------
    >>> key = AnswerKey(
    ...     shape=(1, 44, 44), dtype="|u1", values=(b"0",), normaliser=Normaliser(mean=(0.0,), std=(1.0,)),
    ...     kinds=("labels",), passes=1,
    ... )
    >>> answers = ConstantAnswers()
    >>> answers.find(key) is None
    True
    >>> answers.keep(key, Answer(labels=np.zeros((4, 4), np.uint8), probabilities=None))
    >>> answers.find(key).n_bytes, len(answers)
    (16, 1)
    """

    def __init__(self) -> None:
        self._answers: dict[AnswerKey, Answer] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def n_bytes(self) -> int:
        """Memory of all answers."""
        with self._lock:
            return self._n_bytes()

    def find(self, key: AnswerKey) -> Answer | None:
        """Return a known answer."""
        with self._lock:
            answer = self._answers.pop(key, None)
            if answer is not None:
                self._answers[key] = answer
            return answer

    def keep(self, key: AnswerKey, answer: Answer) -> None:
        """Keep an answer; those that were not asked for longest go."""
        with self._lock:
            self._answers[key] = answer
            while len(self._answers) > 1 and (len(self._answers) > MAX_ANSWERS or self._n_bytes() > MAX_BYTES):
                self._answers.pop(next(iter(self._answers)))

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._answers.clear()

    def _n_bytes(self) -> int:
        return sum(answer.n_bytes for answer in self._answers.values())


def constant_values(raw: npt.NDArray[Any]) -> Values | None:
    r"""Return the one value of each channel of a raw tile (c, y, x), as bytes; None where it is not constant.

    A NaN or an infinity is never constant, nor is -0.0 beside 0.0.

    >>> tile = np.full((2, 100, 100), 7, np.uint8)
    >>> constant_values(tile)
    (b'\x07', b'\x07')
    >>> tile[1, 37, 41] = 8
    >>> constant_values(tile) is None
    True
    """
    first = raw[:, :1, :1]
    if raw.dtype.kind not in "iuf" or not np.isfinite(first).all():
        return None
    bits = raw.view(f"u{raw.dtype.itemsize}")
    same = bits[:, :1, :1]
    _, height, width = raw.shape
    samples = bits[:, :: -(-height // N_SAMPLES), :: -(-width // N_SAMPLES)]
    if (samples != same).any():
        return None
    strips = (bits[:, start : start + STRIP] for start in range(0, height, STRIP))
    if any((strip != same).any() for strip in strips):
        return None
    return tuple(value.tobytes() for value in first[:, 0, 0])
