"""The parser of GGUF files reads what the reference reader reads, and names damaged files."""

import struct

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


def write_by_hand(path, entries=(), tensors=(), data=b""):
    """Write a header of ``entries`` (key, kind, packed value) and ``tensors``, and ``data``."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    for key, kind, packed in entries:
        header += text(key) + struct.pack("<I", kind) + packed
    for name, shape, kind, offset in tensors:
        header += text(name) + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)


UINT32, FLOAT32, ARRAY = (
    gguf.GGUFValueType.UINT32,
    gguf.GGUFValueType.FLOAT32,
    gguf.GGUFValueType.ARRAY,
)
F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
ALIGNMENT = "general.alignment"


def test_a_file_written_by_hand_is_read(tmp_path):
    path = tmp_path / "hand.gguf"
    data = struct.pack("<16f", *range(16))
    tensors = [("b", (2,), F32, 32), ("a", (2, 3), F32, 0)]
    write_by_hand(path, [(ALIGNMENT, UINT32, struct.pack("<I", 32))], tensors, data)
    found = gguf_file.GGUFFile(path)
    assert found.read("a").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found.read("b").tolist() == [8, 9]


@pytest.mark.parametrize(
    ("entries", "tensors", "message"),
    [
        pytest.param(
            [(ALIGNMENT, UINT32, struct.pack("<I", 0))], [], "alignment must be", id="alignment 0"
        ),
        pytest.param(
            [(ALIGNMENT, FLOAT32, struct.pack("<f", 1.5))], [], "alignment must be", id="fraction"
        ),
        pytest.param(
            [(ALIGNMENT, ARRAY, struct.pack("<IQI", UINT32, 1, 32))],
            [],
            r"alignment must be a positive number, got \[32\]",
            id="alignment as list",
        ),
        pytest.param(
            [("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5000)], [], "header", id="lists in lists"
        ),
        pytest.param(
            [("a", ARRAY, struct.pack("<IQ", UINT32, 2**60))], [], "header", id="an endless list"
        ),
        pytest.param(
            [("a", ARRAY, struct.pack("<IQ", gguf.GGUFValueType.STRING, 2**60))],
            [],
            "header",
            id="an endless list of texts",
        ),
        pytest.param(
            [("a", UINT32, b"\1\0\0\0")] * 2, [], "metadata a stands in it twice", id="a key twice"
        ),
        pytest.param(
            [], [("a", (2,), F32, 0)] * 2, "tensor a stands in it twice", id="a tensor twice"
        ),
        pytest.param(
            [],
            [("a", (8,), F32, 0), ("b", (8,), F32, 16)],
            r"tensor b begins at byte \d+, inside a",
            id="tensors overlap",
        ),
        pytest.param(
            [], [("a", (30,), Q8_0, 0)], r"shape \(30,\), which Q8_0 cannot", id="part of a block"
        ),
        pytest.param([], [("a", (0, 4), F32, 0)], r"shape \(4, 0\)", id="a size of 0"),
        pytest.param([], [("a", (), F32, 0)], r"shape \(\)", id="no axis"),
        pytest.param([], [("a", (2**62, 4), F32, 0)], "header promises", id="an endless tensor"),
        pytest.param([], [("a", (4,), F32, 2**63)], "header promises", id="behind the file"),
    ],
)
def test_a_header_that_no_writer_makes_is_refused(entries, tensors, message, tmp_path):
    path = tmp_path / "hand.gguf"
    write_by_hand(path, entries, tensors, bytes(64))
    with pytest.raises(gguf_file.GGUFError, match=message) as error:
        gguf_file.GGUFFile(path)
    assert str(path) in str(error.value)
