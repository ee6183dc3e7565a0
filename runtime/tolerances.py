"""How far an engine may be from the fp32 parent, as data.

Both are on logits: |came - expected| <= atol + rtol * max|expected|. Each line says why.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest difference on logits that is still the same network."""

    rtol: float
    atol: float
    why: str

    def limit(self, largest: float) -> float:
        """Return the largest difference allowed where the largest expected value is `largest`."""
        return self.atol + self.rtol * largest


TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("onnxruntime-cpu", "fp32"): Tolerance(1e-5, 1e-5, "other vector units sum in another order; 1e-6 was measured"),
    ("fake", "fp32"): Tolerance(0, 0, "integer arithmetic is exact"),
}
