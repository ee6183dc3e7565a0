"""What an object is: which labels count, which pixels touch, and through which axes objects go on.

An object of several blocks is found where two blocks touch: `forward_steps` are the neighbours, each pair once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

Neighbours = Literal["face", "full"]
Step = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRule:
    """What an object is.

    `classes` are the labels whose pixels are objects. `dimensions` is 2 where each plane (t, z) has objects of its own,
    3 where they go on through z; never through t. `neighbours` says which pixels touch: those that share a side
    (``"face"``), or a corner too (``"full"``). Objects of fewer than `min_size` pixels are background.
    """

    classes: tuple[int, ...]
    dimensions: Literal[2, 3] = 2
    neighbours: Neighbours = "face"
    min_size: int = 0

    @property
    def joined(self) -> tuple[int, ...]:
        """The axes through which objects go on, as indices into (z, y, x)."""
        return (1, 2) if self.dimensions == 2 else (0, 1, 2)

    @property
    def forward_steps(self) -> tuple[Step, ...]:
        """The (z, y, x) steps to the blocks that a block touches, one of each two opposite ones.

        >>> InstanceRule(classes=(1,)).forward_steps
        ((0, 0, 1), (0, 1, 0))
        >>> len(InstanceRule(classes=(1,), dimensions=3, neighbours="full").forward_steps)
        13
        """
        steps = [(z, y, x) for z, y, x in product((-1, 0, 1), repeat=3) if (z, y, x) > (0, 0, 0)]
        return tuple(
            step
            for step in steps
            if (self.dimensions == 3 or step[0] == 0) and (self.neighbours == "full" or sum(abs(i) for i in step) == 1)
        )

    def to_object(self) -> dict[str, Any]:
        """Return JSON values for provenance."""
        return {
            "classes": list(self.classes),
            "dimensions": self.dimensions,
            "neighbours": self.neighbours,
            "min_size": self.min_size,
        }
