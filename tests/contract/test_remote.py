"""Volumes behind an address: read as from a disk, and a server that fails is never a hole."""

from __future__ import annotations

import functools
import http.server
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.contract.test_images import write_plate, write_series
from tests.contract.volumes import KINDS, chunk_files, make_pixels, write_array, write_image
from unet_deploy.errors import ReadError, SeveralImagesError, UnboundedMetadataError, UsageError, VolumeNotFoundError
from unet_deploy.geometry import Interval
from unet_deploy.runtime import default_output, list_images, open_volume
from unet_deploy.runtime._remote import RemoteDirectory, as_location
from unet_deploy.runtime.volume import Volume

KIND = {kind.name: kind for kind in KINDS}


def read_all(volume: Volume, **wanted: Any) -> npt.NDArray[Any]:
    window: dict[str, Any] = {axis: Interval(0, volume.extent(axis)) for axis in "zyx"}
    return volume.read(**(window | wanted))


# Addresses, without any server.


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("https://host/a/b.zarr", "https://host/a/b.zarr"),
        ("HTTPS://host:8080/a/b.zarr/", "https://host:8080/a/b.zarr"),
        (Path("https://host/a/b.zarr"), "https://host/a/b.zarr"),  # a Path folds the slashes
        (PureWindowsPath("https://host/a/b.zarr"), "https://host/a/b.zarr"),  # and turns them
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_an_address_stays_text(path: Any, url: str) -> None:
    assert as_location(path) == RemoteDirectory(url)
    assert str(as_location(path)) == url


def test_a_path_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_location("volume.zarr") == tmp_path / "volume.zarr"
    assert isinstance(as_location("C:/data/volume.zarr"), Path)


def test_an_address_has_the_words_of_a_path() -> None:
    place = RemoteDirectory("s3://bucket/a/b.zarr")
    assert place / "0" / ".zarray" == RemoteDirectory("s3://bucket/a/b.zarr/0/.zarray")
    assert place / "" == place
    assert (place.base, place.key, place.name) == ("s3://bucket", "a/b.zarr", "b.zarr")
    assert [str(parent) for parent in place.parents] == ["s3://bucket/a", "s3://bucket"]
    assert RemoteDirectory("s3://bucket").parent == RemoteDirectory("s3://bucket")
    assert RemoteDirectory("s3://bucket").parents == ()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/data/cells.ome.zarr", "cells"),
        ("s3://bucket/plate.zarr/A/1", "plate_A_1"),
        ("s3://bucket", "bucket"),
        ("https://host/data/cells", "cells"),
    ],
)
def test_the_result_of_an_address_goes_to_the_working_directory(url: str, name: str) -> None:
    assert default_output(url) == default_output(Path(url)) == Path(f"{name}_segmentation.ome.zarr")


@pytest.mark.parametrize("url", ["gs://bucket/volume.zarr", "file:///volume.zarr", "ftp://host/volume.zarr"])
def test_other_kinds_of_addresses_are_refused(url: str) -> None:
    with pytest.raises(
        VolumeNotFoundError, match="came, an address with http, https, s3 or a local path was"
    ) as caught:
        open_volume(url)
    assert caught.value.headline.startswith(url.partition(":")[0])


@pytest.mark.parametrize("url", ["https://host/a?signature=1", "https://me:secret@host/a", "s3://bucket/a#b"])
def test_an_address_with_secrets_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"an address with \?, # or a user's name came, a plain one was") as caught:
        open_volume(url)
    assert "secret@" not in str(caught.value)
    assert "signature" not in str(caught.value)


def test_without_obstore_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['obstore'] = None\n"
        "from unet_deploy.errors import MissingDependencyError\n"
        "from unet_deploy.runtime import open_volume\n"
        "try: open_volume('https://127.0.0.1/volume.zarr')\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.startswith("reading from an address needs the package 'obstore', which is not installed")
    assert "pip install 'unet-deploy[remote]'" in said


# A web server on this machine.

HANG_UP = 0
"""In a status's place: half of what was asked for comes, then nothing more."""


@dataclass
class Site:
    """A folder behind a web server; `faults` answers paths that end so with a status, as often as told."""

    folder: Path
    url: str
    asked: list[str] = field(default_factory=list)
    faults: dict[str, list[int]] = field(default_factory=dict)
    has_ranges: bool = True


class _Handler(http.server.SimpleHTTPRequestHandler):
    disable_nagle_algorithm = True  # headers and content are sent apart: each answer would wait 40 ms

    def __init__(self, *args: Any, site: Site) -> None:
        self.site = site
        super().__init__(*args, directory=str(site.folder))

    def do_GET(self) -> None:
        self.site.asked.append(self.path)
        for ending, statuses in self.site.faults.items():
            if self.path.endswith(ending) and statuses:
                self._fail(statuses.pop(0))
                return
        wanted = self.headers.get("Range")
        file = Path(self.translate_path(self.path))
        if wanted is None or not self.site.has_ranges or not file.is_file():
            super().do_GET()
            return
        data = file.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start:stop])

    def _fail(self, status: int) -> None:
        if status != HANG_UP:
            self.send_error(status)
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64  # of five at once, others would knock again a second later

    def handle_error(self, *args: Any) -> None:
        """Say nothing: who has seen enough of an answer hangs up."""


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is reached directly, whatever the environment says."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site(tmp_path: Path, no_proxy: None) -> Iterator[Site]:
    pytest.importorskip("obstore", reason="reads addresses; comes with the extra 'remote'")
    site = Site(tmp_path, "")
    server = _Server(("127.0.0.1", 0), functools.partial(_Handler, site=site))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_array_is_read_over_http(site: Site, kind: Any) -> None:
    pixels = make_pixels("zyx", "uint16")
    write_array(site.folder / "array", pixels, axes="zyx", kind=kind)
    volume = open_volume(f"{site.url}/array")
    np.testing.assert_array_equal(read_all(volume)[0, 0], pixels)
    window = {"z": Interval(1, 4), "y": Interval(7, 21), "x": Interval(5, 6)}
    np.testing.assert_array_equal(read_all(volume, **window)[0, 0], pixels[1:4, 7:21, 5:6])
    assert volume.info.path == f"{site.url}/array"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_is_the_same_as_from_the_disk(site: Site, version: Any) -> None:
    path = write_image(site.folder / "my cells.ome.zarr", make_pixels("czyx", "uint8"), axes="czyx", version=version)
    for level in (0, 1):
        local = open_volume(path, level=level)
        volume = open_volume(Path(f"{site.url}/my cells.ome.zarr"), level=level)
        assert (volume.info.axes, volume.info.levels) == (local.info.axes, local.info.levels)
        assert volume.info.name == "test"
        np.testing.assert_array_equal(read_all(volume), read_all(local))
        payload = pickle.dumps(volume)
        assert len(payload) < 2000
        again = pickle.loads(payload)
        assert again.info == volume.info
        np.testing.assert_array_equal(read_all(again), read_all(local))
    bare = open_volume(f"{site.url}/my cells.ome.zarr/1")  # a level by its own path has the axes of its image
    assert bare.info.axes == "czyx"


def test_images_are_listed_by_the_metadata_alone(site: Site) -> None:
    write_plate(site.folder / "plate.zarr")
    write_series(site.folder / "series.zarr", (0, 1, 2))
    fields = list_images(f"{site.url}/plate.zarr")
    assert [entry.name for entry in fields] == ["A/1/0", "A/1/1", "A/2/0", "A/2/1"]
    assert fields[3].path == f"{site.url}/plate.zarr/A/2/1"
    assert (read_all(open_volume(f"{site.url}/plate.zarr", image="A/2/1")) == 11).all()
    assert [entry.name for entry in list_images(f"{site.url}/series.zarr")] == ["0", "1", "2"]
    with pytest.raises(SeveralImagesError, match="holds several images, one was expected") as caught:
        open_volume(f"{site.url}/series.zarr")
    assert caught.value.fix.endswith(f"give its path: {site.url}/series.zarr/0 (in Python: image='0')")


def test_nothing_at_the_address(site: Site) -> None:
    with pytest.raises(VolumeNotFoundError, match=r"there is no Zarr metadata at http://.*, or it may not") as caught:
        open_volume(f"{site.url}/nothing.zarr")
    assert caught.value.fix == "check the address"
    write_array(site.folder / "secret", make_pixels("yx", "uint8"), axes="yx", kind=KIND["v2-zstd"])
    site.faults = {"": [403] * 20}
    with pytest.raises(VolumeNotFoundError, match="or it may not be read"):
        open_volume(f"{site.url}/secret")


def test_absent_chunks_read_as_the_fill_value_and_a_vanished_volume_does_not(site: Site) -> None:
    pixels = make_pixels("zyx", "uint8")
    path = write_array(site.folder / "array", pixels, axes="zyx", kind=KIND["v3-zstd"], fill_value=7)
    file = path / "c" / "0" / "0" / "0"
    file.unlink()
    volume = open_volume(f"{site.url}/array")
    read = read_all(volume)[0, 0]
    assert (read[:2, :8, :7] == 7).all()
    np.testing.assert_array_equal(read[2:], pixels[2:])
    path.rename(site.folder / "elsewhere")
    with pytest.raises(ReadError, match=r"array/zarr\.json is no longer there"):
        read_all(volume)
    with pytest.raises(ReadError, match="nothing is there now"):
        pickle.loads(pickle.dumps(volume))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_twice_is_asked_again(site: Site, status: int) -> None:
    pixels = make_pixels("zyx", "uint8")
    write_array(site.folder / "array", pixels, axes="zyx", kind=KIND["v2-zstd"])
    site.faults = {".zarray": [status] * 2, "1/1/1": [status] * 2}
    np.testing.assert_array_equal(read_all(open_volume(f"{site.url}/array"))[0, 0], pixels)
    assert sum(path.endswith("1/1/1") for path in site.asked) == 3


def test_a_connection_that_breaks_twice_is_made_again(site: Site) -> None:
    pixels = make_pixels("zyx", "uint8")
    write_array(site.folder / "array", pixels, axes="zyx", kind=KIND["v2-zstd"])
    site.faults = {".zarray": [HANG_UP] * 2, "1/1/1": [HANG_UP] * 2}
    np.testing.assert_array_equal(read_all(open_volume(f"{site.url}/array"))[0, 0], pixels)
    site.faults = {"1/1/1": [HANG_UP] * 99}
    with pytest.raises(ReadError, match="the window z 2:4, y 0:21, x 0:19 cannot be read"):
        read_all(open_volume(f"{site.url}/array"), z=Interval(2, 4))


@pytest.mark.parametrize("status", [500, 403])
def test_a_chunk_that_cannot_be_had_is_an_error_with_its_window(site: Site, status: int) -> None:
    write_array(site.folder / "array", make_pixels("zyx", "uint8"), axes="zyx", kind=KIND["v2-zstd"])
    volume = open_volume(f"{site.url}/array")
    site.faults = {"1/1/1": [status] * 99}
    with pytest.raises(ReadError, match="the window z 2:4, y 0:21, x 0:19 cannot be read") as caught:
        read_all(volume, z=Interval(2, 4))
    assert caught.value.details[0] == f"in {site.url}/array"
    assert str(status) in str(caught.value) or "privileges" in str(caught.value)


def test_metadata_that_cannot_be_had_is_not_taken_for_absent(site: Site) -> None:
    write_array(site.folder / "array", make_pixels("zyx", "uint8"), axes="zyx", kind=KIND["v2-zstd"])
    site.faults = {"zarr.json": [500] * 99}
    with pytest.raises(ReadError, match=r"the metadata cannot be read\n  in http://.*zarr\.json\n  .*500") as caught:
        open_volume(f"{site.url}/array")
    assert caught.value.fix == "check the address, the network and the server"


def test_metadata_beyond_its_bound_is_not_fetched(site: Site) -> None:
    with (site.folder / ".zattrs").open("wb") as stream:
        stream.truncate(16 * 2**20 + 1)
    with pytest.raises(UnboundedMetadataError, match="the metadata is larger than 16,777,216 bytes"):
        open_volume(site.url)


def test_a_cut_chunk_is_an_error(site: Site) -> None:
    path = write_array(site.folder / "array", make_pixels("zyx", "uint8"), axes="zyx", kind=KIND["v3-sharded"])
    volume = open_volume(f"{site.url}/array")
    for file in chunk_files(path):
        file.write_bytes(b"")
    with pytest.raises(ReadError, match="cannot be read"):
        read_all(volume)


def test_a_chunk_that_is_far_too_long_is_not_fetched(site: Site) -> None:
    path = write_array(site.folder / "array", make_pixels("zyx", "uint8"), axes="zyx", kind=KIND["v3-zstd"])
    with chunk_files(path)[0].open("r+b") as stream:
        stream.truncate(2**30)
    with pytest.raises(ReadError, match=r"1,073,741,824 bytes would be read, at most [0-9,]+ were expected"):
        read_all(open_volume(f"{site.url}/array"))


def test_shards_need_a_server_that_sends_parts(site: Site) -> None:
    write_array(site.folder / "array", make_pixels("zyx", "uint8"), axes="zyx", kind=KIND["v3-sharded"])
    site.has_ranges = False
    volume = open_volume(f"{site.url}/array")
    with pytest.raises(ReadError, match="Range request not supported"):
        read_all(volume, z=Interval(0, 1), y=Interval(0, 3), x=Interval(0, 3))


def test_no_server_at_all(site: Site) -> None:
    address = site.url.replace("127.0.0.1", "127.0.0.2")  # the port is listened at on another address only
    with pytest.raises(ReadError, match="the metadata cannot be read"):
        open_volume(f"{address}/array")


# S3, by moto's server on this machine.


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, no_proxy: None) -> Iterator[Any]:
    pytest.importorskip("obstore", reason="reads addresses; comes with the extra 'remote'")
    moto = pytest.importorskip("moto.server", reason="stands for S3; pip install 'moto[server,s3]'")
    boto3 = pytest.importorskip("boto3", reason="fills the bucket; comes with moto")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket=f"cells-{port}")
    yield client, f"cells-{port}"
    server.stop()


def upload(bucket: Any, folder: Path, prefix: str) -> str:
    client, name = bucket
    for file in folder.rglob("*"):
        if file.is_file():
            client.put_object(
                Bucket=name, Key=f"{prefix}/{file.relative_to(folder).as_posix()}", Body=file.read_bytes()
            )
    return f"s3://{name}/{prefix}"


@pytest.mark.filterwarnings("ignore")  # botocore's and moto's own
def test_a_bucket_is_read(tmp_path: Path, bucket: Any) -> None:
    pixels = make_pixels("zyx", "uint16")
    image = write_image(tmp_path / "image", pixels, axes="zyx", version="0.5", sharded=True)
    url = upload(bucket, image, "data/image.ome.zarr")
    volume = open_volume(url)
    np.testing.assert_array_equal(read_all(volume)[0, 0], pixels)
    payload = pickle.dumps(volume)
    assert b"testing" not in payload  # no credentials on the way
    np.testing.assert_array_equal(read_all(pickle.loads(payload), z=Interval(1, 2))[0, 0], pixels[1:2])
    plate = upload(bucket, write_plate(tmp_path / "plate"), "plate.zarr")
    assert (read_all(open_volume(plate, image="A/2/1")) == 11).all()
    (tmp_path / "group" / "deep").mkdir(parents=True)
    write_image(tmp_path / "group" / "deep" / "b", pixels, axes="zyx", version="0.4")
    write_image(tmp_path / "group" / "a", pixels, axes="zyx", version="0.4")
    group = upload(bucket, tmp_path / "group", "group")
    assert [entry.name for entry in list_images(group)] == ["a", "deep/b"]  # a bucket can be looked into
    with pytest.raises(VolumeNotFoundError, match="there is no Zarr metadata at s3://") as caught:
        open_volume(f"s3://{bucket[1]}/nothing")
    assert "AWS_SKIP_SIGNATURE=true" in caught.value.fix
    with pytest.raises(VolumeNotFoundError, match="there is no Zarr metadata at s3://no-such-bucket"):
        open_volume("s3://no-such-bucket/a")
