"""Print every version floor of pyproject.toml as an exact pin, so that the floors can be tested.

python tools/floors.py > floors.txt
pip install --constraint floors.txt -e '.[cpu,train,evaluate,dev]' && pytest
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    skipped = {"gpu", "dev"}  # onnxruntime-gpu would replace onnxruntime; tools need no floor
    wanted = [
        *project["dependencies"],
        *(line for name in sorted(extras) if name not in skipped for line in extras[name]),
    ]
    pins = set()
    for line in wanted:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[.*\])?>=([0-9.]+)", line)
        assert match, f"a floor (name>=version) was expected in pyproject.toml, {line!r} came"
        pins.add(f"{match[1]}=={match[2]}")
    print("\n".join(sorted(pins)))


if __name__ == "__main__":
    main()
