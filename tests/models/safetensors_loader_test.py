"""Files written by the safetensors library are read; damaged ones are named."""

import json
import os
import pickle
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import torch as safetensors_torch

from tunix.models import safetensors_loader as loader

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "b.brain": torch.tensor([[3.0], [1e30]], dtype=torch.bfloat16),
    "c.double": torch.tensor(0.1, dtype=torch.float64),
    "d.ids": torch.tensor([1, 2, 3]),
    "e.empty": torch.zeros(0, 4),
}


def write(path, tensors=TENSORS):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})


def write_sharded(folder):
    names = list(TENSORS)
    shards = {"one.safetensors": names[:2], "two.safetensors": names[2:]}
    for file, members in shards.items():
        write(folder / file, {name: TENSORS[name] for name in members})
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / loader.INDEX_NAME).write_text(json.dumps(index))


@pytest.mark.parametrize("layout", ["one file", "index", "no index"])
def test_every_tensor_comes_back_in_its_own_type(layout, tmp_path):
    if layout == "one file":
        write(tmp_path / loader.SINGLE_NAME)
    else:
        write_sharded(tmp_path)
        if layout == "no index":
            (tmp_path / loader.INDEX_NAME).unlink()
    directory = loader.SafetensorsDirectory(tmp_path)
    assert directory.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        found = directory.read(name)
        assert found.dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found.astype(np.float64), tensor.double().numpy())
    assert directory.read("b.brain").dtype == ml_dtypes.bfloat16


def test_a_file_of_no_tensors_is_empty(tmp_path):
    write(tmp_path / loader.SINGLE_NAME, {})
    assert loader.SafetensorsDirectory(tmp_path).shapes == {}


def error_of(folder):
    with pytest.raises(loader.CheckpointFileError) as error:
        loader.SafetensorsDirectory(folder)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    return str(error.value)


def test_a_missing_directory_says_what_was_expected(tmp_path):
    message = error_of(tmp_path / "nowhere")
    assert "nowhere: no such model directory" in message
    assert loader.INDEX_NAME in message


def test_a_directory_without_weights_lists_what_it_holds(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "found pytorch_model.bin" in error_of(tmp_path)


def test_files_that_the_index_names_but_are_not_there_are_listed(tmp_path):
    write_sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    assert "names files that are not there: two.safetensors" in error_of(tmp_path)


def test_an_index_that_disagrees_with_its_files_is_an_error(tmp_path):
    write_sharded(tmp_path)
    path = tmp_path / loader.INDEX_NAME
    index = json.loads(path.read_text())
    index["weight_map"]["z"] = "one.safetensors"
    del index["weight_map"]["d.ids"]
    path.write_text(json.dumps(index))
    message = error_of(tmp_path)
    assert "one.safetensors lacks z" in message
    assert "two.safetensors also holds d.ids" in message


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}', "5", "[]", "null", "\x00"])
def test_an_index_that_is_none_is_an_error(text, tmp_path):
    (tmp_path / loader.INDEX_NAME).write_text(text)
    assert "not a safetensors index" in error_of(tmp_path)


def test_a_tensor_in_two_files_is_an_error(tmp_path):
    write(tmp_path / "one.safetensors")
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert "more than one of ['one.safetensors', 'two.safetensors']" in error_of(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1], ids=str)
def test_a_truncated_file_is_named(keep, tmp_path):
    path = tmp_path / loader.SINGLE_NAME
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    message = error_of(tmp_path)
    assert str(path) in message
    assert "download it again" in message


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (b'"shape":[2,3]', b'"shape":[2,4]', "a of shape [2, 4] and type F32 takes 24 bytes"),
        (b'"dtype":"F16"', b'"dtype":"F8x"', "b.half has type 'F8x'"),
        (b'"dtype":"F16"', b'"dtipe":"F16"', "corrupt safetensors header"),
        (b'{"dtype"', b'{ dtype"', "corrupt safetensors header"),
    ],
)
def test_a_corrupt_header_is_named(before, after, expected, tmp_path):
    path = tmp_path / loader.SINGLE_NAME
    write(path)
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after, 1))
    assert expected in error_of(tmp_path)


def write_raw(path, header, num_bytes):
    """Write a file with this header, a dictionary or its text, and so many bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(num_bytes)))


def entry(start, end, **changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [start, end]} | changes


def test_tensors_may_lie_in_any_order_of_the_header(tmp_path):
    header = {"b": entry(8, 16), "empty": entry(8, 8, shape=[0]), "a": entry(0, 8)}
    write_raw(tmp_path / loader.SINGLE_NAME, header, 16)
    found = loader.SafetensorsDirectory(tmp_path)
    assert found.read("a").tobytes() == bytes(range(8))
    assert found.read("b").tobytes() == bytes(range(8, 16))
    assert found.read("empty").shape == (0,)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(
            {"a": entry(0, 8), "b": entry(4, 12)},
            "b begins at byte 4, inside a, which ends at 8",
            id="two overlap",
        ),
        pytest.param(
            {"a": entry(0, 8), "b": entry(0, 8)},
            "b begins at byte 0, inside a, which ends at 8",
            id="two share their bytes",
        ),
        pytest.param(
            {"a": entry(0, 16, shape=[4]), "b": entry(4, 12), "c": entry(16, 24)},
            "b begins at byte 4, inside a, which ends at 16",
            id="one lies inside another",
        ),
        pytest.param(
            {"a": entry(4, 12)}, "a begins at byte 4, behind 4 bytes of no tensor", id="shifted"
        ),
        pytest.param(
            {"a": entry(0, 8), "b": entry(12, 20)},
            "b begins at byte 12, behind 4 bytes of no tensor",
            id="a gap between two",
        ),
        pytest.param({"a": entry(-8, 0)}, "a has offsets [-8, 0]", id="inside the header"),
        pytest.param({"a": entry(8, 0)}, "takes -8 bytes", id="the end before the start"),
        pytest.param({"a": entry(0.0, 8.0)}, "a has offsets [0.0, 8.0]", id="fractions"),
        pytest.param({"a": entry(0, True)}, "a has offsets [0, True]", id="truth values"),
        pytest.param({"a": entry(0, "8")}, "a has offsets [0, '8']", id="text"),
        pytest.param(
            {"a": entry(0, 8, data_offsets=[0, 4, 8])}, "a has offsets [0, 4, 8]", id="three"
        ),
        pytest.param({"a": entry(0, 8, shape=[-2])}, "a has shape [-2]", id="negative size"),
        pytest.param({"a": entry(0, 8, shape=[-1, -2])}, "a has shape [-1, -2]", id="two negative"),
        pytest.param({"a": entry(0, 8, shape=2)}, "a has shape 2", id="a number as shape"),
        pytest.param(
            {"a": entry(0, 8, shape=[2] + [1] * 40)}, "a has shape [2, 1", id="too many axes"
        ),
        pytest.param({"a": entry(0, 8, dtype=["F32"])}, "a has type ['F32']", id="a list as type"),
        pytest.param({"a": 5}, "corrupt safetensors header", id="a number as entry"),
        pytest.param(b"5", "expected a JSON object, found int", id="a number as header"),
        pytest.param(b"[" * 5000 + b"]" * 5000, "nests more than", id="nested too deeply"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "header", id="a number of 5000 digits"),
        pytest.param(b'{"a": {}, "a": {}}', "has key 'a' twice", id="a name twice"),
        pytest.param(b'{"\xff": 1}', "not UTF-8", id="not UTF-8"),
    ],
)
def test_a_header_that_no_writer_makes_is_refused(header, expected, tmp_path):
    write_raw(tmp_path / loader.SINGLE_NAME, header, 24)
    message = error_of(tmp_path)
    assert str(tmp_path / loader.SINGLE_NAME) in message
    assert expected in message
    assert len(message) < 3000


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / loader.SINGLE_NAME)
    assert "not a file" in error_of(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../other/model.safetensors", "/etc/model.safetensors", "sub/one.safetensors", "..", "", 5],
    ids=str,
)
def test_an_index_names_files_beside_it_only(name, tmp_path):
    folder = tmp_path / "model"
    write(tmp_path / "other" / "model.safetensors")
    write_sharded(folder)
    index = json.loads((folder / loader.INDEX_NAME).read_text())
    index["weight_map"]["a"] = name
    (folder / loader.INDEX_NAME).write_text(json.dumps(index))
    message = error_of(folder)
    assert f"names files that are not beside it: {name!r}" in message
    assert str(folder / loader.INDEX_NAME) in message


def test_an_index_without_a_file_is_an_error(tmp_path):
    (tmp_path / loader.INDEX_NAME).write_text('{"weight_map": {}}')
    assert "names no file" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["x" * 100_000, "a\0b"], ids=["too long", "a zero byte"])
def test_names_that_no_file_can_have_are_refused_in_a_short_message(name, tmp_path):
    write_sharded(tmp_path)
    index = json.loads((tmp_path / loader.INDEX_NAME).read_text())
    index["weight_map"]["a"] = name
    (tmp_path / loader.INDEX_NAME).write_text(json.dumps(index))
    message = error_of(tmp_path)
    assert "names files that are not beside it" in message
    assert len(message) < 1_000


def test_a_file_beside_the_index_may_be_a_link_into_a_cache(tmp_path):
    write_sharded(tmp_path / "snapshot")
    blob = tmp_path / "blob"
    (tmp_path / "snapshot" / "one.safetensors").rename(blob)
    (tmp_path / "snapshot" / "one.safetensors").symlink_to(blob)
    assert set(loader.SafetensorsDirectory(tmp_path / "snapshot").shapes) == set(TENSORS)
