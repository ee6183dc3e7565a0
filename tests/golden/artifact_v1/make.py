"""How the files here were made: ``python -m tests.golden.artifact_v1.make``, once, by unet-deploy 0.1.0.

`tiny.onnx` is the artifact of `tests.tiny` (depth 2, width 2, random weights from torch's seed 0), `expected.npz` what
`unet_deploy.runtime.segment` made of `image()` with it. They are not made again: what release 0.1.0 wrote, every later
release with card version 1 must read, and get the same from it. A new card version gets a folder of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).parent


def image() -> npt.NDArray[np.uint8]:
    """Return the image (z, y, x) segmented: whole numbers only, the same on every machine and in every numpy."""
    z, y, x = np.ogrid[:2, :75, :90]
    return ((7 * y * y + 13 * x * (x + 3) + 31 * z + (x // 9 + y // 7) % 2 * 90) % 256).astype(np.uint8)


def make() -> None:
    """Write the files."""
    from tests.tiny import read_arrays, write_checkpoint, write_image
    from unet_deploy.exporters.export import export_checkpoint
    from unet_deploy.runtime import segment

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "tiny.pt")
        export_checkpoint(checkpoint, HERE / "tiny.onnx")
        volume = write_image(Path(folder) / "v.zarr", image())
        segment(volume, model=HERE / "tiny.onnx", output=Path(folder) / "out.zarr")
        arrays = read_arrays(Path(folder) / "out.zarr")
    np.savez_compressed(HERE / "expected.npz", labels=arrays["labels/segmentation/0"], probabilities=arrays["0"])


if __name__ == "__main__":
    make()
