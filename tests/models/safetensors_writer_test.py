"""What is written is what the safetensors library reads."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import torch as safetensors_torch

from tunix.models import safetensors_loader, safetensors_writer

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.brain": np.array([[1.5], [-2.0]], ml_dtypes.bfloat16),
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "ids": np.array([1, 2, 3], np.int64),
}
SPECS = {name: (array.shape, array.dtype) for name, array in TENSORS.items()}


def write(folder, tensors=TENSORS, specs=SPECS, limit=1000):
    safetensors_writer.write(folder, specs, tensors.items(), max_shard_bytes=limit)


def test_the_library_reads_every_tensor_and_the_mark_of_transformers(tmp_path):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    found = safetensors_torch.load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert tuple(found[name].shape) == array.shape
        np.testing.assert_array_equal(found[name].double().numpy(), array.astype(np.float64))
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_files_are_filled_in_order_up_to_the_limit(tmp_path):
    write(tmp_path, limit=30)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_parameters": 12, "total_size": 56},
        "weight_map": {
            "b": files[0],
            "a.brain": files[0],
            "scalar": files[1],
            "empty": files[1],
            "ids": files[1],
        },
    }
    directory = safetensors_loader.SafetensorsDirectory(tmp_path)
    assert directory.shapes == {name: array.shape for name, array in TENSORS.items()}


def test_a_tensor_larger_than_the_limit_has_a_file_of_its_own():
    assert safetensors_writer.plan(SPECS, 1) == [["b"], ["a.brain"], ["scalar"], ["empty"], ["ids"]]


def test_arrays_are_cast_to_the_announced_type_and_may_be_transposed_views(tmp_path):
    array = np.array([[1.0, 2.0, 3.0]], np.float32)
    specs = {"x": ((3, 1), np.dtype(ml_dtypes.bfloat16))}
    write(tmp_path, {"x": array.T}, specs)
    found = safetensors_loader.SafetensorsDirectory(tmp_path).read("x")
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, array.T)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b": TENSORS["b"]}, "expected tensor a.brain"),
        ({**TENSORS, "more": TENSORS["b"]}, "tensor more came"),
        ({**TENSORS, "b": TENSORS["b"].T}, r"expected tensor b \(2, 3\), got b \(3, 2\)"),
    ],
    ids=["too few", "too many", "another shape"],
)
def test_tensors_that_were_not_announced_are_an_error(tensors, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, tensors)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("200 MB", 2 * 10**8), ("1.5kb", 1500), (7, 7), ("7", 7), ("1TB", 10**12)],
)
def test_sizes_are_powers_of_ten(text, size):
    assert safetensors_writer.parse_size(text) == size


def test_numbers_that_are_none_are_written_only_if_asked_for(tmp_path):
    tensors = TENSORS | {"b": np.array([[1, 2, np.nan]] * 2, np.float32)}
    specs = SPECS | {"b": ((2, 3), np.dtype(np.float32))}
    with pytest.raises(safetensors_writer.NonFiniteError, match=r"1 of 5 tensors .* \(b\)"):
        write(tmp_path, tensors, specs, limit=30)
    safetensors_writer.write(
        tmp_path, specs, tensors.items(), max_shard_bytes=1000, allow_non_finite=True
    )
    found = safetensors_torch.load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(found["b"].numpy(), tensors["b"])


def test_a_number_that_overflows_in_the_dtype_of_the_file_is_none(tmp_path):
    tensors = {f"t{i}": np.full(2, 3.4e38, np.float32) for i in range(10)}
    specs = {name: ((2,), np.dtype(ml_dtypes.bfloat16)) for name in tensors}
    with pytest.raises(safetensors_writer.NonFiniteError) as error:
        safetensors_writer.write(tmp_path, specs, tensors.items(), max_shard_bytes=9)
    assert "10 of 10 tensors" in str(error.value)
    assert "(t0, t1, t2, t3, t4, t5, t6, t7 and 2 more)" in str(error.value)
