"""Write the public names of a TensorRT module to a JSON file, for `tests/unit/test_tensorrt_api.py`.

    python tests/golden/tensorrt_api/make.py tensorrt_rtx OUTPUT.json
    python tests/golden/tensorrt_api/make.py tensorrt_bindings OUTPUT.json

TensorRT-RTX imports on a machine without a GPU. Of TensorRT, which is some gigabytes, only the wheel of its Python
bindings is needed (tensorrt_cu13_bindings, unpacked into a folder on PYTHONPATH): they ask nine functions of three
libraries, and import over libraries that hold nothing else:

    for name in createInferBuilder createInferRefitter createInferRuntime createNvOnnxParserRefitter createNvOnnxParser
        void *NAME_INTERNAL(void) { return 0; }
    for name in getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins
        void *NAME(void) { return 0; }
    for each of libnvonnxparser.so.11 libnvinfer_plugin.so.11 libnvinfer.so.11
        gcc -shared -fPIC stub.c -o LIBRARY        # and LD_LIBRARY_PATH=. for the import
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PASSED_OVER = ("Plugin", "Layer", "Boundary", "Attention", "Loop", "IIf", "ISub", "ITrip", "IRec", "IIter")
"""Layers and plug-ins: the graph comes from a parser, and none of ours is built by hand."""


def public_names(module: Any) -> dict[str, Any]:
    """Return the names of a module, and of its classes."""
    plain = set(dir(int)) | set(dir(object))
    classes = {
        key: sorted(n for n in dir(value) if not n.startswith("_") and n not in plain)
        for key, value in sorted(vars(module).items())
        if isinstance(value, type) and not key.startswith("_") and not any(word in key for word in PASSED_OVER)
    }
    names = sorted(
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in classes and not isinstance(value, ModuleType)
    )
    return {
        "module": module.__name__,
        "version": module.__version__,
        "names": [*names, "__version__"],
        "classes": classes,
    }


def main() -> None:
    name, output = sys.argv[1:]
    result = public_names(importlib.import_module(name))
    Path(output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
