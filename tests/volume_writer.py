"""Writes a volume chunk by chunk, as acquisition software does: a program of its own, for tests that follow one.

It says that it is ready, waits for a line on stdin, and then does what its arguments say: a function's name, and JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any


def chunk_files(volume: Path) -> list[Path]:
    """Return the chunks' paths within a volume."""
    return sorted(path.relative_to(volume) for path in (volume / "c").rglob("*") if path.is_file())


def put(source: Path, target: Path, *, pause_s: float | None = None) -> None:
    """Write a chunk's file in place, as a careless writer does; in two halves, with a pause between them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    with target.open("wb") as stream:
        if pause_s is not None:
            stream.write(data[: len(data) // 2])
            stream.flush()
            time.sleep(pause_s)
            data = data[len(data) // 2 :]
        stream.write(data)


def acquire(finished: Path, volume: Path, seed: int, seconds: float, halves_s: float) -> None:
    """Write a volume's chunks in random order, some of them in two halves: what the other process does."""
    files = chunk_files(finished)
    chance = random.Random(seed)
    chance.shuffle(files)
    for n, file in enumerate(files):
        put(finished / file, volume / file, pause_s=halves_s if n % 20 == 4 else None)
        time.sleep(chance.uniform(0, 2 * seconds / len(files)))


def append(finished: Path, volume: Path, seconds: float) -> None:
    """Write a volume along its first axis, as acquisition software does: the chunks, then the longer shape."""
    document = json.loads((finished / "zarr.json").read_text())
    depth = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    length = document["shape"][0]
    for layer in range(-(-length // depth)):
        for file in chunk_files(finished):
            if file.parts[1] == str(layer):
                put(finished / file, volume / file)
        set_length(volume, document, min((layer + 1) * depth, length))
        time.sleep(seconds * depth / length)


def set_length(volume: Path, document: dict[str, Any], length: int) -> None:
    shape = [length, *document["shape"][1:]]
    scratch = volume / "zarr.json.new"
    scratch.write_text(json.dumps({**document, "shape": shape}))
    scratch.replace(volume / "zarr.json")


def main() -> None:
    """Run one of the functions above."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    finished, volume, *others = arguments
    {"acquire": acquire, "append": append}[name](Path(finished), Path(volume), *others)


if __name__ == "__main__":
    main()
