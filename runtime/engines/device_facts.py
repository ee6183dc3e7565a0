"""What is to be known of a GPU before a plan is built for it, or taken from the cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One GPU of this machine, as its driver describes it.

    `compute_capability` is like 8.9, `driver` the newest CUDA that the driver knows, like 13.0.
    """

    index: int
    name: str
    compute_capability: str
    driver: str
    memory_bytes: int

    @property
    def device(self) -> str:
        """The name that ``--device`` takes."""
        return f"cuda:{self.index}"
