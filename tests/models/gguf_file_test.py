"""The parser of GGUF files reads what the reference reader reads, and names damaged files."""

import gguf
import numpy as np
import pytest

from tests.models import gguf_writer, hf_llama
from tunix.models import gguf_file

METADATA = {
    "a.uint8": (200, gguf.GGUFValueType.UINT8),
    "a.int8": (-3, gguf.GGUFValueType.INT8),
    "a.uint16": (60_000, gguf.GGUFValueType.UINT16),
    "a.int16": (-30_000, gguf.GGUFValueType.INT16),
    "a.uint32": (4_000_000_000, gguf.GGUFValueType.UINT32),
    "a.int32": (-5, gguf.GGUFValueType.INT32),
    "a.float32": (0.5, gguf.GGUFValueType.FLOAT32),
    "a.bool": (True, gguf.GGUFValueType.BOOL),
    "a.string": ("grüße", gguf.GGUFValueType.STRING),
    "a.uint64": (2**63, gguf.GGUFValueType.UINT64),
    "a.int64": (-(2**62), gguf.GGUFValueType.INT64),
    "a.float64": (0.1, gguf.GGUFValueType.FLOAT64),
    "a.numbers": ([1, 2, 3], gguf.GGUFValueType.ARRAY),
    "a.words": (["x", "", "yy"], gguf.GGUFValueType.ARRAY),
    "a.flags": ([True, False], gguf.GGUFValueType.ARRAY),
}


def add_metadata(writer):
    for key, (value, kind) in METADATA.items():
        writer.add_key_value(key, value, kind)


@pytest.fixture
def path(tmp_path):
    hf = hf_llama.make(hidden_size=64, intermediate_size=96)
    kind = gguf.GGMLQuantizationType.Q8_0
    gguf_writer.write(tmp_path / "tiny.gguf", hf, kind, extra=add_metadata)
    return tmp_path / "tiny.gguf"


def test_every_kind_of_metadata_is_read(path):
    metadata = gguf_file.GGUFFile(path).metadata
    for key, (value, _) in METADATA.items():
        assert metadata[key] == value, key
    assert metadata["general.architecture"] == "llama"


def test_metadata_and_tensors_are_those_of_the_reference_reader(path):
    ours, theirs = gguf_file.GGUFFile(path), gguf.GGUFReader(path)
    fields = {key: f.contents() for key, f in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == fields
    assert set(ours.shapes) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert ours.shapes[tensor.name] == expected.shape
        np.testing.assert_array_equal(ours.read(tensor.name), expected)


def test_a_file_of_another_format_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 not at all")
    with pytest.raises(gguf_file.GGUFError, match=r"model\.gguf: not a GGUF file"):
        gguf_file.GGUFFile(path)


@pytest.mark.parametrize("keep", [0, 4, 10, 60, 300, 1000, -40], ids=str)
def test_a_truncated_file_is_named(keep, path):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(gguf_file.GGUFError, match=r"tiny\.gguf"):
        gguf_file.GGUFFile(path)


def test_an_unknown_version_is_told(path):
    data = bytearray(path.read_bytes())
    data[4:8] = (9).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(gguf_file.GGUFError, match=r"version 9 is not one of \[2, 3\]"):
        gguf_file.GGUFFile(path)
