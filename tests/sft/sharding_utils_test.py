"""Training on several devices is the same training."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests import virtual_devices
from tunix.sft import sharding_utils


def trained_on(num_devices, directory):
    return virtual_devices.run_with_stderr(
        "tests.sft.sharded_run", num_devices, directory, devices=num_devices
    )


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    return trained_on(1, tmp_path_factory.mktemp("one"))[0]


@pytest.mark.parametrize("num_devices", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_losses_gradients_and_evaluation_do_not_depend_on_the_devices(
    num_devices, on_one_device, tmp_path
):
    result, log = trained_on(num_devices, tmp_path)
    for name in ("losses", "grad_norms", "eval_loss"):
        np.testing.assert_allclose(result[name], on_one_device[name], rtol=1e-5)
    assert result["devices"] == [num_devices]
    assert result["sharded"] > 10
    assert result["compiles"] == []
    assert "input_mask has 3 rows, which mesh axes ['fsdp']" in log
    # From a checkpoint of two devices onto all of them.
    np.testing.assert_allclose(result["moved"], on_one_device["losses"], rtol=1e-5)
    on_host, whole = result["offloaded"]
    assert on_host == whole, "arrays on every device are kept once"
    uneven, axis = result["errors"]
    assert f"tokens has 3 rows, which mesh axes ['fsdp'] of size {num_devices}" in uneven
    assert "change the batch size" in uneven
    assert "data_sharding_axis ['data'] is not an axis of the mesh, which has ['fsdp']" in axis


def test_without_a_mesh_batches_stay_where_they_are():
    batch = {"x": np.zeros((3, 2))}
    assert sharding_utils.shard_input(batch, ("fsdp",)) is batch


def test_a_mesh_of_one_device_is_no_mesh():
    mesh = Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    assert sharding_utils.active_mesh() is None
    with jax.set_mesh(mesh):
        assert sharding_utils.active_mesh() is None
