"""The command line: one module a verb, imported by `app`; heavy packages are imported only when a verb runs."""

from __future__ import annotations

import gc

GARBAGE_AFTER = 10_000
"""So many new objects, where Python's own is 700: what an import makes stays, and looking through it takes a tenth of a
second."""


def main() -> int:
    """Run ``unet-deploy`` and return its exit code."""
    gc.set_threshold(GARBAGE_AFTER, *gc.get_threshold()[1:])
    from unet_deploy.cli.app import run

    code = run()
    gc.freeze()  # the process ends, and so does all that it holds: nobody looks for garbage in that
    return code
