"""Roles on meshes of their own compute what they do together on one."""

import numpy as np
import pytest

from tests import virtual_devices


def assert_alike(run, other, rtol):
    assert max(run["mismatch_max"] + other["mismatch_max"]) < 1e-5
    for name, values in run.items():
        if name in ("mismatch_max", "bytes_synced", "devices", "rollout_devices"):
            continue
        if name == "weights":
            for a, b in zip(values, other[name], strict=True):
                np.testing.assert_allclose(b, a, atol=1e-5, rtol=0)
        else:
            np.testing.assert_allclose(other[name], values, rtol=rtol, atol=1e-7, err_msg=name)


def test_split_roles_compute_what_colocated_ones_do_and_move_no_byte_too_many():
    found = virtual_devices.run("tests.rl.split_run", "grpo", devices=8)
    for name, one in found["reshardings"].items():
        assert one["equal"] and one["placed"], name
        assert one["moved"] == one["lacking"] == one["least"], name
    by_name = found["reshardings"]
    assert by_name["where it is"]["moved"] == 0
    assert by_name["one device"]["moved"] == by_name["one device"]["size"]
    for name in ("same devices, other shape", "other devices, other axes", "more devices"):
        # The largest target shard of all weights is half of them; an all-gather would be all.
        assert by_name[name]["share_on_one_device"] < 0.75, name

    adapters = found["adapters"]
    assert adapters["sent"] == adapters["least"]
    assert adapters["adapters"] <= adapters["sent"] <= 2 * adapters["adapters"]
    assert adapters["sent"] < adapters["weights"] / 4

    together, apart = found["runs"]["colocated"], found["runs"]["split"]
    assert set(together["devices"]["reference"]) == set(together["rollout_devices"]) == {0, 1, 2, 3}
    assert apart["devices"] == {"actor": [0, 1, 2, 3], "reference": [6]}
    assert apart["rollout_devices"] == [4, 5]
    assert together["bytes_synced"] == 0 < apart["bytes_synced"]
    assert_alike(together, apart, rtol=1e-5)


@pytest.mark.slow
def test_a_critic_of_its_own_and_models_in_host_memory_change_nothing():
    runs = virtual_devices.run("tests.rl.split_run", "ppo", devices=8)["runs"]
    assert runs["split"]["devices"]["critic"] == [7]
    assert_alike(runs["colocated"], runs["split"], rtol=1e-5)
    for name in ("colocated", "split"):
        assert runs[name] == runs[f"{name}, offloaded"]


@pytest.mark.slow
def test_a_resumed_run_samples_with_the_restored_weights_from_its_first_step(tmp_path):
    found = virtual_devices.run("tests.rl.split_resume_run", str(tmp_path), devices=2)
    assert found["from_trained"] == 0.0
    assert found["from_untrained"] > 1e-3
