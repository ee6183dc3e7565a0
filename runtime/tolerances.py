"""How far an engine may be from the fp32 parent, as data.

1. Of any tensor: |came - expected| <= atol + rtol * max|expected|, on logits.
2. Of an fp16 or int8 graph on real tiles, when it is exported, also the mean difference, of the same largest value, and
   the share of pixels that keep their most likely class.

Each line says why.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest difference on logits that is still the same network; `labels` is the smallest share of equal labels."""

    rtol: float
    atol: float
    why: str
    mean_rtol: float = float("inf")
    labels: float = 0.0

    def limit(self, largest: float) -> float:
        """Return the largest difference allowed where the largest expected value is `largest`."""
        return self.atol + self.rtol * largest

    def mean_limit(self, largest: float) -> float:
        """Return the largest mean difference allowed where the largest expected value is `largest`."""
        return self.atol + self.mean_rtol * largest


_PLANS: dict[str, Tolerance] = {
    "fp32": Tolerance(
        1e-4, 1e-4, "not measured on a GPU yet; other kernels sum in another order, TF32 (10 bits, 1e-3) is off"
    ),
    "fp16": Tolerance(
        2e-2,
        1e-3,
        "not measured on a GPU yet; sums may be in 11 bits too, so twice what the CPU is allowed",
        mean_rtol=2e-3,
        labels=0.999,
    ),
    "int8": Tolerance(
        0.25,
        1e-3,
        "not measured on a GPU yet; its graph, run by onnxruntime-cpu, is held to as much",
        mean_rtol=0.03,
        labels=0.99,
    ),
}
_OF_PLANS = {(name, precision): one for name in ("tensorrt", "tensorrt-rtx") for precision, one in _PLANS.items()}

TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("onnxruntime-cpu", "fp32"): Tolerance(1e-5, 1e-5, "other vector units sum in another order; 1e-6 was measured"),
    ("onnxruntime-cpu", "fp16"): Tolerance(
        1e-2, 1e-3, "11 bits a value: rtol 1.5e-3 was measured, and 1 label in 10,000", mean_rtol=1e-3, labels=0.9995
    ),
    ("onnxruntime-cpu", "int8"): Tolerance(
        0.25,
        1e-3,
        "256 levels a tensor: on tiles not calibrated on, rtol 0.11 at the worst pixel of 0.6 million, mean 0.009 and "
        "50 labels in 10,000 were the most measured",
        mean_rtol=0.03,
        labels=0.99,
    ),
    ("openvino", "fp32"): Tolerance(
        1e-5,
        1e-5,
        "its own convolutions sum in another order; 7e-7 of the largest logit was measured, bfloat16 is 8e-3",
    ),
    ("openvino", "fp16"): Tolerance(
        1e-2,
        1e-3,
        "the file's rounding, the sums in float32: 3e-4 was measured, and 2 labels in 100,000",
        mean_rtol=1e-3,
        labels=0.9995,
    ),
    ("openvino", "int8"): Tolerance(
        0.25,
        1e-3,
        "256 levels a tensor; 0.009 from onnxruntime's: 0.09 was measured, mean 0.003, 16 labels in 10,000",
        mean_rtol=0.02,
        labels=0.99,
    ),
    ("onnxruntime-cuda", "fp32"): Tolerance(
        1e-4, 1e-4, "not measured on a GPU yet; other kernels sum in another order, TF32 (10 bits, 1e-3) is off"
    ),
    ("onnxruntime-cuda", "fp16"): Tolerance(
        2e-2,
        1e-3,
        "not measured on a GPU yet; sums may be in 11 bits too, so twice what the CPU is allowed",
        mean_rtol=2e-3,
        labels=0.999,
    ),
    ("onnxruntime-cuda", "int8"): Tolerance(
        0.25, 1e-3, "not measured on a GPU yet; as on the CPU, whose integers are the same", mean_rtol=0.03, labels=0.99
    ),
    **_OF_PLANS,
    ("fake", "fp32"): Tolerance(0, 0, "integer arithmetic is exact"),
}
