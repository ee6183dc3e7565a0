"""Directories behind an address: http(s):// and s3://, read-only, through obstore.

1. An address is text: a `Path` would fold its slashes. One that came as a `Path` is unfolded.
2. `RemoteDirectory` has the few words of `Path` that finding an image needs, so both are handled alike.
3. Only "not found" is an absence. A server that fails is asked again a few times, then it is an error. Metadata that
   may not be read counts as absent, since S3 says so of what is not there to those who may not list.
4. Nothing secret is kept or sent to workers: credentials come from the environment of each process, as for AWS's own
   tools (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``; for public buckets
   ``AWS_SKIP_SIGNATURE=true``).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from unet_deploy.errors import MissingDependencyError, ReadError, UsageError, VolumeNotFoundError
from unet_deploy.runtime._retry import read_again

SCHEMES = ("http", "https", "s3")
RETRIES = 7
"""With growing pauses from 0.1 s, 1 to 6 s in all; then the block has failed, and can be tried again later."""


@dataclass(frozen=True, slots=True)
class RemoteDirectory:
    """What stands at an address without a slash at its end; a document too, as a `Path` may be a file."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, child: str) -> RemoteDirectory:
        return RemoteDirectory(f"{self.url}/{child}") if child else self

    @property
    def base(self) -> str:
        """The server or bucket: what an obstore store is made for."""
        return "/".join(self.url.split("/")[:3])

    @property
    def key(self) -> str:
        """The path on the server or in the bucket."""
        return "/".join(self.url.split("/")[3:])

    @property
    def name(self) -> str:
        """The last word of the address."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> RemoteDirectory:
        """The directory above, itself at the top."""
        return RemoteDirectory(self.url.rpartition("/")[0]) if self.key else self

    @property
    def parents(self) -> tuple[RemoteDirectory, ...]:
        """All directories above, nearest first."""
        above: list[RemoteDirectory] = []
        while (above[-1] if above else self).key:
            above.append((above[-1] if above else self).parent)
        return tuple(above)

    @property
    def stem_and_inside(self) -> tuple[str, ...]:
        """The store's name without its ending, and the words of the path inside it, where one ends as stores do."""
        words = self.key.split("/") if self.key else [self.name]
        ends = [place for place, word in enumerate(words) if word.lower().endswith(".zarr")]
        first = ends[0] if ends else len(words) - 1
        stem = re.sub(r"(\.ome)?\.zarr$", "", words[first], flags=re.IGNORECASE) or words[first]
        return stem, *words[first + 1 :]

    def read(self, limit: int) -> bytes | None:
        """Return a document's first bytes, at least one more than `limit` if it is larger; None if there is none.

        Raises
        ------
        ReadError
            If the server cannot be reached or fails.
        MissingDependencyError
            If obstore is not installed.
        """
        store = open_store(self.base)  # says what is missing
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            return read_again(partial(_read_start, store, self.key, limit), is_passing=is_broken_off)
        except (FileNotFoundError, PermissionDeniedError, UnauthenticatedError):
            return None
        except BaseError as error:
            raise ReadError(
                "the metadata cannot be read",
                f"in {self.url}",
                str(error).split("\n")[0].strip(),  # without the trace that obstore appends
                fix="check the address, the network and the server",
            ) from error

    def children(self) -> list[str]:
        """Return the names of the directories inside, none where the server cannot list (HTTP)."""
        if not self.url.startswith("s3:"):
            return []
        store = open_store(self.base)
        import obstore
        from obstore.exceptions import BaseError

        try:
            found = obstore.list_with_delimiter(store, self.key or None)
        except (BaseError, OSError):
            return []  # without the right to list, all that is known is what the metadata lists
        return [str(prefix).rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]


def _read_start(store: Any, key: str, limit: int) -> bytes:
    import obstore

    found = obstore.get(store, key)
    return b"\0" * (limit + 1) if found.meta["size"] > limit else bytes(found.bytes())


def is_broken_off(error: Exception) -> bool:
    """Tell whether an answer began and did not end, which obstore does not ask again for."""
    return "response body error" in str(error)


Location = Path | RemoteDirectory


def as_location(path: str | Path) -> Location:
    """Return an absolute path, or the directory at an address; whether there is anything is not looked at.

    Raises
    ------
    VolumeNotFoundError
        If it is an address that cannot be read.
    UsageError
        If it holds a query, or a user's name and password.
    """
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]+(.+)", str(path), re.DOTALL)
    if match is None or Path(path).exists():
        return Path(path).absolute()
    scheme, rest = match[1].lower(), match[2].replace("\\", "/").rstrip("/")
    if scheme not in SCHEMES:
        raise VolumeNotFoundError(
            f"{scheme}: came, an address with {', '.join(SCHEMES)} or a local path was expected",
            f"in {path}",
            fix="copy or mount the volume, and give its local path",
        )
    if re.search(r"[?#]", rest) or "@" in rest.split("/")[0]:
        raise UsageError(
            "an address with ?, # or a user's name came, a plain one was expected",
            "it would be written into the result, and its secrets with it",
            fix="give credentials of S3 by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or mount the volume",
        )
    return RemoteDirectory(f"{scheme}://{rest}")


@functools.lru_cache(maxsize=16)
def open_store(base: str) -> Any:
    """Return obstore's store of a server or bucket, one for the process.

    Raises
    ------
    MissingDependencyError
        If obstore is not installed.
    """
    try:
        from obstore import store as stores
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise MissingDependencyError.of_extra("obstore", extra="remote", purpose="reading from an address") from error
    pauses: Any = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2}
    retries: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(minutes=2), "backoff": pauses}
    options: Any = {"allow_http": True, "timeout": "120s", "connect_timeout": "10s"}
    if base.startswith("s3:"):
        return stores.S3Store(base.removeprefix("s3://"), client_options=options, retry_config=retries)
    return stores.HTTPStore.from_url(base, client_options=options, retry_config=retries)
