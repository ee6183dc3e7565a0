"""The command line: one module a verb, imported by `app`; heavy packages are imported only when a verb runs."""

from __future__ import annotations


def main() -> int:
    """Run ``unet-deploy`` and return its exit code."""
    from unet_deploy.cli.app import run

    return run()
