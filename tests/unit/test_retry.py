"""What is read again, and what is not."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.contract.volumes import KINDS, chunk_files, make_pixels, write_array
from tests.faults.failing_files import failing
from unet_deploy.errors import ReadError
from unet_deploy.geometry import Interval
from unet_deploy.runtime import open_volume
from unet_deploy.runtime._retry import PAUSES_S, may_pass, read_again, read_again_async

WINDOW = {"z": Interval(0, 5), "y": Interval(0, 21), "x": Interval(0, 19)}


def failing_reader(*codes: int) -> tuple[Callable[[], str], list[int]]:
    """Return what raises one error after another, then reads; and what it raised."""
    raised: list[int] = []

    def read() -> str:
        if len(raised) < len(codes):
            raised.append(codes[len(raised)])
            raise OSError(raised[-1], os.strerror(raised[-1]))
        return "pixels"

    return read, raised


@pytest.mark.parametrize("is_async", [False, True])
def test_a_read_that_fails_twice_is_done(is_async: bool) -> None:
    read, raised = failing_reader(errno.EIO, errno.ETIMEDOUT)

    async def read_async() -> str:
        return read()

    assert (asyncio.run(read_again_async(read_async)) if is_async else read_again(read)) == "pixels"
    assert len(raised) == len(PAUSES_S) == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_the_third_error_stands(is_async: bool) -> None:
    read, raised = failing_reader(errno.EIO, errno.EIO, errno.ESTALE if sys.platform != "win32" else errno.EACCES)

    async def read_async() -> str:
        return read()

    with pytest.raises(OSError, match=r"\[Errno") as caught:
        asyncio.run(read_again_async(read_async)) if is_async else read_again(read)
    assert caught.value.errno == raised[-1]
    assert len(raised) == 3


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_stays_as_it_is_is_not_read_again(code: int) -> None:
    read, raised = failing_reader(code)
    with pytest.raises(OSError, match=r"\[Errno"):
        read_again(read)
    assert raised == [code]


def test_rights_may_come_where_programs_lock_files() -> None:
    assert may_pass(PermissionError(errno.EACCES, "no")) == (sys.platform == "win32")
    assert not may_pass(OSError("said by a library, not by the system"))


@pytest.mark.parametrize("name", ["v2-blosc", "v3-zstd", "v3-sharded", "v3-sharded-index-first"])
def test_chunks_that_fail_twice_are_read(name: str, tmp_path: Path) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    pixels = make_pixels("zyx", "uint16")
    path = write_array(tmp_path / "array", pixels, axes="zyx", kind=kind)
    ending = chunk_files(path)[-1].relative_to(tmp_path).as_posix()
    with failing(f"{ending}$", times=2) as fault:
        np.testing.assert_array_equal(open_volume(path).read(**WINDOW)[0, 0], pixels)
    assert [*fault.failed.values()] == [2]
    with failing(f"{ending}$") as fault, pytest.raises(ReadError, match=r"cannot be read\n.*\n  OSError: \[Errno 5\]"):
        open_volume(path).read(**WINDOW)
    assert [*fault.failed.values()] == [3]


def test_a_tiff_that_fails_twice_is_read(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="comes with the extra 'tiff'")
    pixels = make_pixels("zyx", "uint16")
    tifffile.imwrite(tmp_path / "stack.tif", pixels, compression="zlib")
    volume = open_volume(tmp_path / "stack.tif", axes="zyx")
    with failing(r"stack\.tif$", times=2) as fault:
        np.testing.assert_array_equal(volume.read(**WINDOW)[0, 0], pixels)
    assert [*fault.failed.values()] == [2]
    with failing(r"stack\.tif$"), pytest.raises(ReadError, match=r"OSError: \[Errno 5\]"):
        volume.read(**WINDOW)


def test_metadata_that_fails_twice_is_read(tmp_path: Path) -> None:
    path = write_array(tmp_path / "array", make_pixels("zyx", "uint8"), axes="zyx", kind=KINDS[-1])
    with failing(r"zarr\.json$", times=2) as fault:
        assert open_volume(path).info.axes == "zyx"
    assert set(fault.failed.values()) == {2}
    with failing(r"array/zarr\.json$"), pytest.raises(ReadError, match="the metadata cannot be read"):
        open_volume(path)
