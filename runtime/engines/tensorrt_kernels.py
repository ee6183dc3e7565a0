"""The kernels that TensorRT-RTX compiled for a plan, kept in a file beside it.

1. They are for one GPU, driver and version, which the file's name and its hash say; for others they are compiled anew.
2. They run as they are: the file is read only if nobody else can have written it, and its hash is that of its content.
3. Whatever is wrong with the file is a warning: it costs the time to compile again, and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Self

from unet_deploy.errors import UnsafeModelError
from unet_deploy.runtime._private_files import read_private, write_private
from unet_deploy.runtime.engine_plan import EnginePlan
from unet_deploy.runtime.engines.device_facts import DeviceFacts

logger = logging.getLogger(__name__)

MAGIC = b"unet-deploy kernels 1\n"
MAX_BYTES = 2**28
"""NVIDIA advises to stay below 100 MB."""
_HASH_BYTES = 32
_HEAD_BYTES = len(MAGIC) + _HASH_BYTES


class KernelFile:
    """Where the compiled kernels of a plan are kept.

    Parameters
    ----------
    path
        The file; its folder exists.
    key
        What they were compiled for.
    """

    def __init__(self, path: Path, *, key: str) -> None:
        self.path = path
        self._key = key.encode()
        self._known: bytes | None = None

    @classmethod
    def of_plan(cls, plan: EnginePlan, facts: DeviceFacts) -> Self | None:
        """Return the file beside a plan, for this GPU; None if the plan lies in no folder."""
        source, manifest = Path(plan.source), plan.manifest
        if not source.exists():
            return None
        key = "\n".join(
            [manifest.plan_sha256, manifest.version, facts.name, facts.compute_capability, facts.driver],
        )
        folder = source if source.is_dir() else source.parent
        return cls(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.kernels", key=key)

    def read(self) -> bytes | None:
        """Return what is kept, or None if there is nothing, or nothing to rely on."""
        try:
            content = read_private(self.path, largest=MAX_BYTES, is_trusted=False, fix=f"delete {self.path}")
        except FileNotFoundError:
            return None
        except (OSError, UnsafeModelError) as error:
            self.refuse(error.details[0] if isinstance(error, UnsafeModelError) else str(error))
            return None
        body = content[_HEAD_BYTES:]
        if content[:_HEAD_BYTES] != MAGIC + self._hash(body):
            self.refuse("it is damaged")
            return None
        self._known = body
        return body

    def refuse(self, why: str) -> None:
        """Say that the file is of no use."""
        logger.warning("%s is not used, the kernels are compiled again: %s", self.path, why)
        self._known = None

    def write(self, body: bytes) -> None:
        """Keep the kernels, if they are others than those read."""
        if body == self._known or not body or len(body) > MAX_BYTES - _HEAD_BYTES:
            return
        try:
            write_private(self.path, MAGIC + self._hash(body) + body)
        except OSError as error:
            logger.warning("%s cannot be written, the next run compiles again: %s", self.path, error)
            return
        self._known = body

    def _hash(self, body: bytes) -> bytes:
        return hashlib.sha256(self._key + b"\0" + body).digest()
