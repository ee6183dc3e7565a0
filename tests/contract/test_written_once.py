"""Every chunk of the output is written exactly once: counted where Python opens files, not timed."""

from __future__ import annotations

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zarr

from tests.conftest import ArtifactFactory
from tests.tiny import make_pixels
from unet_deploy.runtime import parse_region, segment

SHAPE = (3, 130, 2500)
CHUNK_FILE = re.compile(r"(.*/(?:c/)?\d+(?:[/.]\d+)*)\.[0-9a-f]{32}\.partial")
_recorders: list[Counter[str]] = []
_is_installed = False


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _recorders and isinstance(arguments[0], str | os.PathLike):
        found = CHUNK_FILE.fullmatch(str(arguments[0]).replace("\\", "/"))
        if found is not None:
            for recorder in _recorders:
                recorder[found[1]] += 1


@contextmanager
def chunks_written() -> Iterator[Counter[str]]:
    """Count how often the file of each chunk is opened to be written; zarr writes it under another name first."""
    global _is_installed  # noqa: PLW0603  # an audit hook stays for good
    if not _is_installed:
        sys.addaudithook(_note)
        _is_installed = True
    recorder: Counter[str] = Counter()
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.remove(recorder)


@pytest.mark.parametrize("shards", [None, (1, 128, 512)], ids=["chunks", "shards"])
@pytest.mark.parametrize("is_in_parts", [False, True], ids=["whole", "in parts"])
def test_each_chunk_is_written_once(
    tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any, shards: Any, is_in_parts: bool
) -> None:
    volume: Any = zarr.create_array(
        tmp_path / "v.zarr", shape=SHAPE, chunks=(1, 64, 64), shards=shards, dtype="uint8", dimension_names=list("zyx")
    )
    volume[...] = make_pixels(SHAPE)
    parts = [parse_region("z=1"), None] if is_in_parts else [None]
    with chunks_written() as counts:
        for part in parts:
            result = segment(
                tmp_path / "v.zarr", model=fake_artifact(), engine_factory=fake_factory, tile=(172, 300), region=part
            )
    assert result.plan.n_blocks > 3
    places = {Path(path).relative_to(result.output).as_posix(): n for path, n in counts.items()}
    finest = {path: n for path, n in places.items() if path.startswith(("0/", "labels/segmentation/0/"))}
    array = zarr.open_array(result.output / "labels/segmentation/0")
    n_units = math.prod(-(-n // c) for n, c in zip(SHAPE, array.shards or array.chunks, strict=True))
    assert len(finest) == 3 * n_units  # labels, and two classes of probabilities
    assert set(finest.values()) == {1}
    coarser = {path: n for path, n in places.items() if path not in finest and "unet_deploy_run" not in path}
    assert coarser
    if not is_in_parts:
        assert set(coarser.values()) == {1}
