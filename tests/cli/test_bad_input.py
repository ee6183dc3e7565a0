"""Every bad input ends with its exit code, says what came, what was expected and the fix, and writes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zarr
from onnx import TensorProto, helper

from tests.conftest import Outcome
from tests.foreign_graphs import monai_like
from tests.tiny import (
    edit_card,
    make_pixels,
    read_arrays,
    read_provenance,
    snapshot,
    write_array,
    write_huge,
    write_image,
)
from unet_deploy import errors
from unet_deploy.card_json import card_to_object, parse_card
from unet_deploy.errors import UnetDeployError

Cli = Callable[..., Outcome]
EXIT_CODES = {
    cls.code: cls.exit_code
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, UnetDeployError)
}


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A command that must be refused.

    `make` prepares the folder it gets, where `model.onnx` is a good artifact and `v.zarr` a good volume, and returns
    the arguments; `says` and `fix` are parts of the message.
    """

    code: str
    make: Callable[[Path], tuple[str, ...]]
    says: tuple[str, ...]
    fix: str


CASES: dict[str, Bad] = {}


def bad(
    code: str, *says: str, fix: str
) -> Callable[[Callable[[Path], tuple[str, ...]]], Callable[[Path], tuple[str, ...]]]:
    """Add a case named like the function."""

    def add(make: Callable[[Path], tuple[str, ...]]) -> Callable[[Path], tuple[str, ...]]:
        CASES[make.__name__] = Bad(code=code, make=make, says=says, fix=fix)
        return make

    return add


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- volumes


@bad("volume-not-found", "there is nothing at vv.zarr", fix="did you mean")
def no_such_path(folder: Path) -> tuple[str, ...]:
    return "segment", "vv.zarr"


@bad(
    "volume-not-found", "gs: came, an address with http, https, s3 or a local path was", fix="copy or mount the volume"
)
def an_address_of_another_kind(folder: Path) -> tuple[str, ...]:
    return "segment", "gs://bucket/v.zarr"


@bad("usage", "an address with ?, # or a user's name came, a plain one was expected", fix="AWS_ACCESS_KEY_ID")
def an_address_with_a_secret(folder: Path) -> tuple[str, ...]:
    return "segment", "https://example.org/v.zarr?signature=1"


@bad("not-a-volume", "notes.txt is a file, the directory of a Zarr array or OME-Zarr image was expected", fix="convert")
def a_file(folder: Path) -> tuple[str, ...]:
    (folder / "notes.txt").write_text("nothing to see")
    return "segment", "notes.txt"


@bad("not-a-volume", "is a directory without Zarr metadata", "it holds no array", fix="check the path")
def a_directory_without_zarr(folder: Path) -> tuple[str, ...]:
    (folder / "pictures").mkdir()
    (folder / "pictures" / "1.png").write_bytes(b"")
    return "segment", "pictures"


@bad("not-a-volume", "is a Zarr group without an OME-Zarr image", "arrays found inside:", "raw", fix="group.zarr/raw")
def a_group_without_an_image(folder: Path) -> tuple[str, ...]:
    zarr.create_group(folder / "group.zarr").create_array("raw", shape=(8, 8), dtype="uint8")
    return "segment", "group.zarr"


@bad("several-images", "holds several images, one was expected", "\n  a\n", "\n  b\n", fix="two.zarr/a")
def several_images(folder: Path) -> tuple[str, ...]:
    zarr.create_group(folder / "two.zarr")
    for name in "ab":
        write_image(folder / "two.zarr" / name, make_pixels((1, 8, 8)))
    return "segment", "two.zarr"


@bad("unsupported-axes", "axes y, x, z came, a subset of t, c, z, y, x in this order", fix="--axes zyx")
def axes_in_another_order(folder: Path) -> tuple[str, ...]:
    write_array(folder / "odd.zarr", make_pixels((8, 8, 4)), names="yxz")
    return "segment", "odd.zarr"


@bad("unsupported-axes", "an array of 4 axes without names came", fix="--axes czyx, --axes tzyx or --axes tcyx")
def axes_that_are_ambiguous(folder: Path) -> tuple[str, ...]:
    write_array(folder / "odd.zarr", make_pixels((2, 3, 8, 8)))
    return "plan", "odd.zarr"


@bad("unsupported-axes", "axes q, y, x came", "in --axes", fix="--axes zyx")
def axes_that_do_not_exist(folder: Path) -> tuple[str, ...]:
    write_array(folder / "odd.zarr", make_pixels((2, 8, 8)))
    return "segment", "odd.zarr", "--axes", "qyx"


@bad("unsupported-dtype", "data type 'int64' came, one of uint8, uint16, int16, float16, float32", fix="convert")
def a_dtype(folder: Path) -> tuple[str, ...]:
    write_array(folder / "odd.zarr", np.zeros((2, 8, 8), np.int64))
    return "segment", "odd.zarr"


@bad("unsupported-codec", "codec 'made.by.nobody' came", fix="write the array again with the codec zstd")
def a_codec(folder: Path) -> tuple[str, ...]:
    file = folder / "v.zarr" / "0" / "zarr.json"
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "made.by.nobody"}]
    edit(file, codecs=codecs)
    return "segment", "v.zarr"


@bad("unsupported-metadata", "the metadata is not valid JSON", fix="write the array again")
def broken_metadata(folder: Path) -> tuple[str, ...]:
    (folder / "v.zarr" / "0" / "zarr.json").write_text('{"zarr_format": 3, ')
    return "segment", "v.zarr"


@bad("read-failed", "the metadata cannot be read", fix="check the file's permissions and the disk")
def unreadable_metadata(folder: Path) -> tuple[str, ...]:
    (folder / "odd.zarr" / "zarr.json").mkdir(parents=True)
    return "segment", "odd.zarr"


@bad("unbounded-metadata", "bytes each, at most 2,147,483,648 were expected", fix="chunks of about 1 MiB")
def a_chunk_of_a_terabyte(folder: Path) -> tuple[str, ...]:
    write_array(folder / "odd.zarr", make_pixels((8, 8)))
    grid = {"name": "regular", "configuration": {"chunk_shape": [2**20, 2**20]}}
    edit(folder / "odd.zarr" / "zarr.json", shape=[2**20, 2**20], chunk_grid=grid)
    return "segment", "odd.zarr"


@bad("usage", "level 3 came, levels 0 to 0 were expected", fix="--level 0")
def a_level_that_does_not_exist(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--level", "3"


@bad(
    "channel", "the model takes 1 channel(s) (grey), the volume has 3", "0 (DAPI), 1 (GFP), 2 (RFP)", fix="--channel 0"
)
def more_channels_than_the_model_takes(folder: Path) -> tuple[str, ...]:
    write_image(folder / "c.zarr", make_pixels((3, 8, 8)), axes="cyx", channel_names=("DAPI", "GFP", "RFP"))
    return "segment", "c.zarr"


@bad("channel", "the volume has no channel 'CFP'", fix="--channel 0")
def a_channel_that_does_not_exist(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--channel", "CFP"


@bad("channel", "the model takes 1 channel(s) (grey), 2 were chosen", fix="--channel 0")
def too_many_channels_chosen(folder: Path) -> tuple[str, ...]:
    write_array(folder / "c.zarr", make_pixels((3, 8, 8)), names="cyx")
    return "segment", "c.zarr", "--channel", "0", "--channel", "2"


@bad("value-range", "the volume is uint16, the model was trained on uint8 in 0..255", fix="--input-range 0:65535")
def another_value_range(folder: Path) -> tuple[str, ...]:
    write_image(folder / "deep.zarr", make_pixels((2, 40, 40)).astype(np.uint16) * 16)
    return "segment", "deep.zarr"


# ---- flags


@bad(
    "tile-not-legal",
    "tile side 250 on axis y is not 4·k with at least 44",
    "nearest legal sides: 248, 252",
    fix="--tile 252",
)
def an_illegal_tile(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--tile", "250"


@bad("tile-not-legal", "tile side 16 on axis x", "nearest legal sides: 44", fix="--tile 44")
def a_tile_without_a_core(folder: Path) -> tuple[str, ...]:
    return "plan", "v.zarr", "--tile", "252,16"


@bad("tile-not-legal", "--tile big came, a side or two sides y,x in pixels were expected", fix="--tile 572,700")
def a_tile_that_is_no_number(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--tile", "big"


@bad("configuration", "--input-range bright came, LOW:HIGH was expected", fix="--input-range 0:4095")
def an_input_range_that_is_none(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--input-range", "bright"


@bad("configuration", "nan:nan", fix="--input-range 0:4095")
def an_input_range_of_no_numbers(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--input-range", "nan:nan"


@bad("configuration", "0:inf", fix="--input-range 0:4095")
def an_input_range_without_an_end(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--input-range", "0:inf"


@bad("configuration", "input range 255:0 is empty", fix="--input-range 0:255")
def an_input_range_upside_down(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--input-range", "255:0"


@bad(
    "configuration",
    "results to write: masks came, labels, probabilities or instances was expected",
    fix="--write labels",
)
def an_unknown_result(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--write", "masks"


@bad("configuration", "a process of 10 MiB does not hold this run", "the process alone takes", fix="--max-memory")
def memory_that_holds_no_tile(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--max-memory", "10MiB"


@bad(
    "configuration",
    "--max-memory 4 came, a size with its unit was expected",
    "units are B, kB, MB, GB and TB, or KiB, MiB, GiB and TiB",
    fix="--max-memory 4GB",
)
def memory_without_a_unit(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--max-memory", "4"


@bad("unknown-name", "unknown device: 'gpu'", "known: auto, cpu, cuda", fix="did you mean 'cpu'?")
def an_unknown_device(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--device", "gpu"


@bad("device", "GPU", fix="--device c")  # there is none, or none of that number
def cuda(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--device", "cuda:9999"


@bad(
    "unknown-name",
    "unknown engine: 'openvino-cpu'",
    "known: onnxruntime-cpu, onnxruntime-cuda, openvino, tensorrt, tensorrt-rtx",
    fix="did you mean ",
)
def an_unknown_engine(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--engine", "openvino-cpu"


@bad("unknown-name", "unknown engine: 'openvno'", fix="did you mean 'openvino'?")
def an_unknown_engine_to_plan_with(folder: Path) -> tuple[str, ...]:
    return "plan", "v.zarr", "--no-probe", "--engine", "openvno"


@bad("usage", "engine openvino runs on cpu, and device cuda was asked for", fix="--device cpu, or leave --engine out")
def an_engine_of_another_device(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--device", "cuda", "--engine", "openvino"


@bad("device", "GPU", fix="--device c")  # there is none, or none of that number
def cuda_to_plan_with(folder: Path) -> tuple[str, ...]:
    return "plan", "v.zarr", "--device", "cuda:9999"


@bad("scheduler", "no Dask scheduler answers at here", "missing port number", fix="dask scheduler")
def a_scheduler_that_is_no_address(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--scheduler", "here"


@bad("scheduler", "no Dask scheduler answers at tcp://127.0.0.1:9", fix="leave --scheduler out to run in this process")
def a_scheduler_that_does_not_answer(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--scheduler", "tcp://127.0.0.1:9"


@bad(
    "adoption",
    "other.onnx cannot be tiled without seams: it has 3 InstanceNormalization",
    "so that every tile would be normalised by itself",
    fix="train the network with batch normalisation",
)
def a_network_that_normalises_each_tile(folder: Path) -> tuple[str, ...]:
    (folder / "other.onnx").write_bytes(monai_like(norm="instance").SerializeToString())
    return "adopt", "other.onnx", "--mean", "0", "--std", "255"


# ---- places


@bad(
    "usage",
    "two places came to write to: out.zarr, and the volume's own labels cells",
    fix="leave out --output or --into-labels",
)
def two_places(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--output", "out.zarr", "--into-labels", "cells"


@bad("output-exists", "the output out.zarr exists", fix="--overwrite")
def an_output_that_exists(folder: Path) -> tuple[str, ...]:
    (folder / "out.zarr").mkdir()
    return "segment", "v.zarr", "--output", "out.zarr"


@bad(
    "output-path",
    "is no segmentation written by unet-deploy, so --overwrite does not delete it",
    fix="another --output",
)
def overwriting_a_volume(folder: Path) -> tuple[str, ...]:
    write_image(folder / "precious.zarr", make_pixels((1, 8, 8)))
    return "segment", "v.zarr", "--output", "precious.zarr", "--overwrite"


@bad("output-path", "is no segmentation written by unet-deploy", fix="another --output")
def overwriting_a_folder(folder: Path) -> tuple[str, ...]:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter1.tex").write_text("In the beginning")
    return "segment", "v.zarr", "--output", "thesis", "--overwrite"


@bad("output-path", "is no segmentation written by unet-deploy", fix="another --output")
def overwriting_a_file(folder: Path) -> tuple[str, ...]:
    (folder / "thesis.tex").write_text("In the beginning")
    return "segment", "v.zarr", "--output", "thesis.tex", "--overwrite"


@bad("output-path", "lie inside each other", "writing there would change or delete the input", fix="--output ")
def an_output_inside_the_input(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--output", "v.zarr/labels2"


@bad("output-path", "lie inside each other", fix="--output ")
def an_output_inside_the_input_by_a_detour(folder: Path) -> tuple[str, ...]:
    (folder / "detour").mkdir()
    return "segment", "v.zarr", "--output", "detour/../v.zarr/0", "--overwrite"


@bad("output-path", "lie inside each other", fix="--output ")
def an_input_inside_the_output(folder: Path) -> tuple[str, ...]:
    zarr.create_group(folder / "all.zarr", attributes={"unet_deploy": {}})
    shutil.move(folder / "v.zarr", folder / "all.zarr" / "v.zarr")
    return "segment", "all.zarr/v.zarr", "--output", "all.zarr", "--overwrite"


@bad("output-path", "lie inside each other", fix="--output ")
def an_output_that_is_the_input(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--output", "v.zarr", "--overwrite"


@bad("output-path", "lie inside each other", fix="--output ")
def an_output_in_the_image_of_the_array_given(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr/0", "--output", "v.zarr/0/out.zarr"


@bad("output-path", "the folder of the output", "does not exist", fix="create it, or choose another --output")
def an_output_in_no_folder(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--output", "no/such/place.zarr"


@bad("no-space", "the result may take", "GB are free", fix="--write labels")
def no_space(folder: Path) -> tuple[str, ...]:
    write_huge(folder / "huge.zarr", (10**6, 2**20, 2**20))
    return "segment", "huge.zarr"


@bad("output-exists", "model.onnx exists", "nothing was written", fix="--overwrite")
def an_export_onto_something(folder: Path) -> tuple[str, ...]:
    return "export", "tiny.pt", "--output", "model.onnx"


@bad("output-path", "the folder of no/model.onnx does not exist", fix="create it")
def an_export_into_no_folder(folder: Path) -> tuple[str, ...]:
    return "export", "tiny.pt", "--output", "no/model.onnx"


@bad("output-exists", "old holds an earlier demo", fix="--overwrite")
def a_demo_onto_a_demo(folder: Path) -> tuple[str, ...]:
    (folder / "old" / "volume.ome.zarr").mkdir(parents=True)
    return "demo", "--output", "old"


@bad("output-path", "thesis is not the folder of an earlier demo", fix="another --output")
def a_demo_onto_something(folder: Path) -> tuple[str, ...]:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter1.tex").write_text("In the beginning")
    return "demo", "--output", "thesis", "--overwrite"


@bad("output-path", "the folder of no/demo does not exist", fix="another --output")
def a_demo_in_no_folder(folder: Path) -> tuple[str, ...]:
    return "demo", "--output", "no/demo"


# ---- models


@bad("model-not-found", "no model file at modle.onnx", fix="unet-deploy export model.pt")
def no_such_model(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--model", "modle.onnx"


@bad(
    "model-not-found",
    "no model file at membranes, and no bundled network of that name",
    "bundled with unet-deploy: membrane",
    fix="did you mean --model membrane?",
)
def no_such_bundled_network(folder: Path) -> tuple[str, ...]:
    return "segment", "v.zarr", "--model", "membranes"


@bad(
    "not-an-artifact", "is an ONNX file, but none of ours: it has no model card", "'somebody'", fix="unet-deploy export"
)
def a_foreign_onnx(folder: Path) -> tuple[str, ...]:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, "y", "x"])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1, "y", "x"])
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["logits"])], "g", [image], [result])
    onnx.save(helper.make_model(graph, producer_name="somebody"), folder / "foreign.onnx")
    return "segment", "v.zarr", "--model", "foreign.onnx"


@bad("not-an-artifact", "is not an ONNX file, or is damaged", fix="a truncated copy looks like this")
def a_truncated_onnx(folder: Path) -> tuple[str, ...]:
    file = folder / "model.onnx"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    return "segment", "v.zarr"


@bad("not-an-artifact", "is not an ONNX file, or is damaged", "0 bytes came", fix="copy or export the file again")
def an_empty_onnx(folder: Path) -> tuple[str, ...]:
    (folder / "model.onnx").write_bytes(b"")
    return "plan", "v.zarr"


@bad("not-an-artifact", "is not an ONNX file, or is damaged", fix="copy or export the file again")
def a_text_for_a_model(folder: Path) -> tuple[str, ...]:
    (folder / "readme.onnx").write_text("# A model\n\nSee elsewhere.\n")
    return "inspect", "readme.onnx"


@bad("card", "do not belong together", "graph_sha256", fix="export or copy it again")
def a_flipped_byte_in_a_weight(folder: Path) -> tuple[str, ...]:
    model = onnx.load(folder / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "head.weight")
    data = bytearray(weight.raw_data)
    data[0] ^= 1  # the least significant bit of one weight
    weight.raw_data = bytes(data)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return "segment", "v.zarr"


@bad("unsafe-model", "lies in another file", fix="do not trust this file")
def weights_outside_the_file(folder: Path) -> tuple[str, ...]:
    model = onnx.load(folder / "model.onnx")
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return "segment", "v.zarr"


@bad("test-tensor", "does not compute what the model's parent computed", "model: tiny", fix="--device cpu")
def an_edited_normalisation(folder: Path) -> tuple[str, ...]:
    edited(folder, lambda card: card["normalisation"].update(mean=[100.0]))
    return "segment", "v.zarr"


@bad("card", "colour: #rrggbb was expected", "opacity: unknown key", fix="export the model again")
def an_edited_card_that_cannot_be(folder: Path) -> tuple[str, ...]:
    edited(folder, lambda card: card["classes"][0].update(colour="red", opacity=0.5))
    return "segment", "v.zarr"


@bad("card", "model card version 2 came, this release reads version 1", fix="use the unet-deploy release")
def a_card_of_the_future(folder: Path) -> tuple[str, ...]:
    edited(folder, lambda card: card.update(card_version=2))
    return "inspect", "model.onnx"


@bad("card", "test_tensor.logits", fix="export the model again")
def an_edited_depth(folder: Path) -> tuple[str, ...]:
    geometry = {"divisor": 2, "context": 8, "crop_margins": [4]}
    edited(folder, lambda card: (card["network"].update(depth=1), card.update(geometry=geometry)))
    return "segment", "v.zarr"


@bad("card", "do not belong together", fix="export or copy it again")
def an_edited_width(folder: Path) -> tuple[str, ...]:
    edited(folder, lambda card: card["network"].update(base_width=512))
    return "segment", "v.zarr"


@bad("card", "do not belong together", "the card is one of a checkpoint", fix="export or copy it again")
def a_card_without_its_test(folder: Path) -> tuple[str, ...]:
    edited(folder, lambda card: card.update(test_tensor=None))
    return "segment", "v.zarr"


@bad("checkpoint", "a checkpoint of `unet-deploy train` was expected", fix="unet-deploy train")
def a_foreign_checkpoint(folder: Path) -> tuple[str, ...]:
    (folder / "weights.pt").write_bytes(b"\x89HDF\r\n\x1a\n")
    return "export", "weights.pt", "--output", "new.onnx"


@bad("checkpoint", "is truncated or damaged", fix="copy the file again, or train again")
def a_truncated_checkpoint(folder: Path) -> tuple[str, ...]:
    file = folder / "tiny.pt"
    file.write_bytes(file.read_bytes()[:-100])
    return "export", "tiny.pt", "--output", "new.onnx"


@bad("model-not-found", "there is no checkpoint file gone.pt", fix="check the path")
def no_such_checkpoint(folder: Path) -> tuple[str, ...]:
    return "export", "gone.pt", "--output", "new.onnx"


@bad("usage", "int8 needs data to calibrate on, and none were given", fix="--calibrate VOLUME.zarr, or a folder of")
def int8_without_data(folder: Path) -> tuple[str, ...]:
    return "export", "tiny.pt", "--output", "new.onnx", "--precision", "fp32", "--precision", "int8"


@bad("usage", "fp32 needs no calibration", fix="add --precision int8")
def data_that_fp32_does_not_need(folder: Path) -> tuple[str, ...]:
    return "export", "tiny.pt", "--output", "new.onnx", "--calibrate", "v.zarr"


@bad("unknown-name", "unknown precision: 'fp61'", "known: fp16, fp32, int8", fix="did you mean 'fp16'?")
def a_precision_that_is_none(folder: Path) -> tuple[str, ...]:
    return "export", "tiny.pt", "--output", "new.onnx", "--precision", "fp61"


@bad("volume-not-found", "gone.zarr", fix="")
def data_to_calibrate_on_that_are_not_there(folder: Path) -> tuple[str, ...]:
    return "export", "tiny.pt", "--output", "new.onnx", "--precision", "int8", "--calibrate", "gone.zarr"


@bad("not-a-volume", "holds no PNG or TIFF files, and is no Zarr volume", fix="--calibrate VOLUME.zarr")
def a_folder_of_nothing_to_calibrate_on(folder: Path) -> tuple[str, ...]:
    (folder / "empty").mkdir()
    return "export", "tiny.pt", "--output", "new.onnx", "--precision", "int8", "--calibrate", "empty"


@bad("value-range", "every tile drawn from flat.zarr has one grey value", fix="--calibrate a volume or images")
def a_volume_that_shows_nothing(folder: Path) -> tuple[str, ...]:
    write_array(folder / "flat.zarr", np.zeros((30, 40), np.uint8))
    return "export", "tiny.pt", "--output", "new.onnx", "--precision", "int8", "--calibrate", "flat.zarr"


# ---- training

TRAIN = ("train", "images", "labels", "--depth", "1", "--width", "2", "--tile", "28", "--steps", "1")


def annotate(folder: Path, images: dict[str, Any], labels: dict[str, Any]) -> None:
    """Write pictures by file name; bytes as they are."""
    imsave = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed").imsave
    for part, pictures in (("images", images), ("labels", labels)):
        (folder / part).mkdir()
        for name, picture in pictures.items():
            if isinstance(picture, bytes):
                (folder / part / name).write_bytes(picture)
            else:
                imsave(folder / part / name, picture, check_contrast=False)


def grey(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape or (30, 40), np.uint8)


def mask(*shape: int) -> Any:
    return (grey(*shape) > 128).astype(np.uint8)


@bad("training-data", "there is no folder", fix="")
def training_on_nothing(folder: Path) -> tuple[str, ...]:
    return TRAIN


@bad("training-data", "images: no .png", "labels: no .png", fix="correct these files")
def training_on_empty_folders(folder: Path) -> tuple[str, ...]:
    annotate(folder, {}, {})
    return TRAIN


@bad(
    "training-data",
    "1: the image is (30, 40), its label (30, 41)",
    "2: an image without a label",
    "3: a label without an image",
    fix="leave an image out with --exclude STEM",
)
def labels_of_another_size_and_count(folder: Path) -> tuple[str, ...]:
    pictures = {"0.png": grey(), "1.png": grey(), "2.png": grey()}
    annotate(folder, pictures, {"0.png": mask(), "1.png": mask(30, 41), "3.png": mask()})
    return TRAIN


@bad("training-data", "1.tif is float32; an integer type was expected", fix="correct these files")
def labels_that_are_no_whole_numbers(folder: Path) -> tuple[str, ...]:
    labels = {"0.png": mask(), "1.tif": mask() + np.float32(0.5)}
    annotate(folder, {"0.png": grey(), "1.png": grey()}, labels)
    return TRAIN


@bad("training-data", "1.png has shape (30, 40, 3)", fix="correct these files")
def training_on_colours(folder: Path) -> tuple[str, ...]:
    annotate(folder, {"0.png": grey(), "1.png": grey(30, 40, 3)}, {"0.png": mask(), "1.png": mask()})
    return TRAIN


@bad("training-data", "1.png cannot be read", fix="correct these files")
def training_on_a_broken_file(folder: Path) -> tuple[str, ...]:
    annotate(folder, {"0.png": grey(), "1.png": b"\x89PNG\r\n\x1a\n and no more"}, {"0.png": mask(), "1.png": mask()})
    return TRAIN


@bad(
    "configuration",
    "tile_side: 92 is larger than 0, 30 px, mirrored once on either side (88 px); 88 would fit",
    fix="correct the settings",
)
def a_training_tile_larger_than_the_mirrored_image(folder: Path) -> tuple[str, ...]:
    annotate(folder, {"0.png": grey(), "1.png": grey()}, {"0.png": mask(), "1.png": mask()})
    return *TRAIN, "--tile", "92"


@bad(
    "configuration",
    "6 problem(s) with the recipe",
    "preset: 'papr' is none of paper, small, membranes, nuclei; did you mean 'paper'?",
    "data.labels: missing",
    "data.imges: unknown; did you mean data.images?",
    'training.optimiser: "sdg" (text) came, one of sgd, adam was expected',
    "training.stepz: unknown; did you mean training.steps?",
    "augmentation.flip: 2 (whole number) came, true or false was expected",
    "in the recipe r.toml and the settings given",
    fix="correct the settings named above",
)
def a_recipe_with_everything_wrong(folder: Path) -> tuple[str, ...]:
    (folder / "r.toml").write_text("preset = 'papr'\n[data]\nimges = 'i'\n[augmentation]\nflip = 2\n")
    return "train", "images", "--recipe", "r.toml", "--optimiser", "sdg", "--set", "training.stepz=4"


@bad("usage", "--set 'training.steps' is not KEY=VALUE", fix="--set training.steps=4000")
def a_setting_without_a_value(folder: Path) -> tuple[str, ...]:
    return *TRAIN, "--set", "training.steps"


@bad("output-exists", "model.pt and model.run exist already", "an earlier training wrote there", fix="--resume")
def a_training_that_stands_there(folder: Path) -> tuple[str, ...]:
    (folder / "model.pt").write_bytes(b"precious")
    (folder / "model.run").mkdir()
    (folder / "model.run" / "state.pt").write_bytes(b"precious")
    return TRAIN


@bad("model-not-found", "there is no training to resume: ", fix="train without --resume")
def nothing_to_resume(folder: Path) -> tuple[str, ...]:
    return "train", "--resume", "-o", "new.pt"


@bad("checkpoint", "state.pt is damaged", fix="copy the file again")
def a_training_state_that_is_cut_short(folder: Path) -> tuple[str, ...]:
    annotate(folder, {"0.png": grey(), "1.png": grey()}, {"0.png": mask(), "1.png": mask()})
    (folder / "model.run").mkdir()
    (folder / "model.run" / "state.pt").write_bytes((folder / "tiny.pt").read_bytes()[:1000])
    return *TRAIN, "--resume"


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the card of the folder's model."""
    edit_card(folder / "model.onnx", folder / "model.onnx", change)


# ---- the tests

ELSEWHERE = {
    "device-memory": "tests/unit/test_tensorrt.py: it takes a device, or one made up, that runs out of memory",
    "interrupted": "tests/unit/test_training_command.py: it takes a training and a user who breaks it off",
    "journal": "tests/unit/test_journal.py, tests/faults/test_resumed_run.py: it takes a run that was broken off",
    "output-busy": "tests/unit/test_journal.py, tests/faults/test_resumed_run.py: it takes two runs",
    "missing-dependency": "tests/unit/test_training_command.py and others, which hide a package",
    "parity": "tests/parity: no file on disk can bring it about",
    "partial-result": "below: something is written",
    "shape-mismatch": "tests/cli/test_evaluate.py: it takes a prediction and a truth",
}
GROUPS = {"unet-deploy", "input-data", "model", "requirement"}


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, tiny_checkpoint: Path) -> Path:
    """The current folder, with a good model, checkpoint and volume."""
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    shutil.copy(tiny_checkpoint, tmp_path / "tiny.pt")
    write_image(tmp_path / "v.zarr", make_pixels((2, 100, 90)))
    return tmp_path


SLOW = {"a_scheduler_that_does_not_answer"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_bad_input(name: str, folder: Path, cli: Cli) -> None:
    case = CASES[name]
    arguments = case.make(folder)
    before = snapshot(folder)
    outcome = cli(*arguments)
    assert f"error[{case.code}]: " in outcome.err, outcome.err
    message = outcome.err[outcome.err.index("error[") :]
    assert outcome.code == EXIT_CODES[case.code]
    assert [part for part in case.says if part not in message] == [], message
    *_, last = message.splitlines()
    assert last.startswith("  fix: "), message
    assert case.fix in last
    assert outcome.out == ""
    assert snapshot(folder) == before


def test_every_code_has_a_case() -> None:
    assert set(EXIT_CODES) - {case.code for case in CASES.values()} == GROUPS | set(ELSEWHERE)
    assert {case.code for case in CASES.values()} <= set(EXIT_CODES)


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [("no_such_path", 3), ("an_illegal_tile", 2), ("a_truncated_onnx", 4), ("cuda", 5), ("an_output_that_exists", 3)],
)
def test_the_program_itself_ends_so(name: str, exit_code: int, folder: Path) -> None:
    """As a user has it: another process, exit code and streams of the operating system."""
    case = CASES[name]
    arguments = case.make(folder)
    before = snapshot(folder)
    done = subprocess.run(
        [sys.executable, "-m", "unet_deploy", *arguments],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PYTHONUTF8": "1"},
        check=False,
        timeout=120,
    )
    assert done.returncode == exit_code, done.stderr
    assert f"error[{case.code}]: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["segmnt", "v.zarr"], "No such command 'segmnt'"),
        (["segment", "v.zarr", "--overwritte"], "No such option: --overwritte"),
        (["segment"], "volume"),
        (["segment", "v.zarr", "w.zarr"], "w.zarr"),
        (["segment", "v.zarr", "--tile"], "--tile"),
        (["segment", "v.zarr", "--batch", "0"], "greater than or equal to 1"),
        (["plan", "v.zarr", "--batch", "many"], "integer"),
        (["segment", "v.zarr", "--level", "-1"], "greater than or equal to 0"),
        (["demo", "--size", "1"], "64"),
        (["train", "images"], "labels"),
        (["train"], "data.images: missing"),
        (["train", "images", "labels", "--steps", "many"], "integer"),
    ],
)
def test_usage(arguments: list[str], says: str, folder: Path, cli: Cli) -> None:
    before = snapshot(folder)
    outcome = cli(*arguments)
    assert outcome.code == 2, outcome.err
    assert says.lower() in outcome.err.lower()
    assert "error[bug]" not in outcome.err
    assert outcome.out == ""
    assert snapshot(folder) == before


def test_no_verb_shows_the_help(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code in (0, 2)
    assert "segment" in outcome.out + outcome.err
    assert "error[bug]" not in outcome.err


def test_the_fix_for_another_value_range_works(folder: Path, cli: Cli) -> None:
    """16 bit that hold 8 bit times 257 are the same picture, so the labels are the same."""
    same = write_image(folder / "deep.zarr", make_pixels((2, 100, 90)).astype(np.uint16) * 257)
    refused = cli("segment", same)
    assert refused.code == 3
    fix = re.search(r"--input-range (\S+)", refused.err)
    assert fix is not None
    assert cli("segment", same, "--input-range", fix[1]).code == 0
    assert cli("segment", "v.zarr").code == 0
    came, expected = (read_arrays(folder / f"{name}_segmentation.ome.zarr") for name in ("deep", "v"))
    assert 0 < expected["labels/segmentation/0"].mean() < 1
    assert np.abs(came["0"].astype(int) - expected["0"]).max() <= 1
    assert (came["labels/segmentation/0"] != expected["labels/segmentation/0"]).mean() < 1e-3


def test_the_fix_for_an_illegal_tile_works(folder: Path, cli: Cli) -> None:
    refused = cli("segment", "v.zarr", "--tile", "250")
    fix = re.search(r"fix: (--tile) (\d+)", refused.err)
    assert fix is not None
    assert cli("segment", "v.zarr", *fix.groups()).code == 0


def test_a_precision_that_no_engine_here_runs(folder: Path, cli: Cli) -> None:
    edited(folder, lambda card: card.update(precision="fp16"))
    before = snapshot(folder)
    outcome = cli("segment", "v.zarr")
    assert "error[bug]" not in outcome.err, outcome.err
    assert outcome.code in (4, 5)
    assert "fp16" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("  fix: ")
    assert snapshot(folder) == before


def test_what_is_not_a_number_fails_its_block_and_is_listed(folder: Path, cli: Cli, tiny_model: Path) -> None:
    model = edit_card(tiny_model, folder / "float.onnx", as_float)
    pixels = make_pixels((3, 100, 90)).astype(np.float32)
    pixels[1, 50, 60] = np.nan
    write_image(folder / "nan.zarr", pixels)
    outcome = cli("segment", "nan.zarr", "--model", model)
    assert outcome.code == 6
    assert "error[partial-result]: 1 of 3 blocks failed; they are 0 in nan_segmentation.ome.zarr" in outcome.err
    assert "block 1: ValueRangeError: the network's output is not a number there" in outcome.err
    assert outcome.err.splitlines()[-1] == "  fix: mend the cause, then give the same command with --retry-failed"
    assert outcome.out == ""
    said = read_provenance(folder / "nan_segmentation.ome.zarr")
    assert said["status"] == "partial"
    (failed,) = said["failed_blocks"]
    assert failed["block"] == 1
    assert "plane z 1, y 0:100, x 0:90" in failed["reason"]
    assert "the volume holds NaN or infinity there" in failed["reason"]
    probabilities = read_arrays(folder / "nan_segmentation.ome.zarr")["0"]
    assert not probabilities[:, 1].any()
    assert (probabilities[:, [0, 2]].sum(axis=0) >= 254).all()


def as_float(data: dict[str, Any]) -> None:
    """Say that the model was trained on floating-point images; its test image is converted with it."""
    card = parse_card(json.dumps(data), source="here")
    assert card.test_tensor is not None
    tensor = replace(card.test_tensor, image=card.test_tensor.image.astype(np.float32))
    data.update(card_to_object(replace(card, input=replace(card.input, dtype="float32"), test_tensor=tensor)))
