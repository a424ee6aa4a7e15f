"""``role_to_mesh`` divides the devices, and says what does not fit."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tunix.cli.schemas import grpo_schema, role_meshes, schema, structure
from tunix.rl import rl_cluster
from tunix.utils import config as config_lib

Role = rl_cluster.Role


@dataclasses.dataclass(eq=False)
class SomeMesh:
    """What a mesh says of itself."""

    devices: np.ndarray
    shape: dict


def run_of(**settings):
    raw = {
        "model_config": {"model_id": "m"},
        "task": "multiplication",
        "rl_training_config": {"max_steps": 1},
    }
    return structure.structure(grpo_schema.GrpoRun, raw | settings, notes={}, source="x")


@pytest.fixture
def eight(monkeypatch):
    devices = [types.SimpleNamespace(id=i, platform="cpu") for i in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    # Real meshes want real devices.
    monkeypatch.setattr(role_meshes, "Mesh", lambda places, names: (places, names))
    return devices


def test_each_role_has_its_devices_and_the_others_those_of_the_actor(eight):
    run = run_of(
        role_to_mesh={
            "actor": {"shape": [2, 2], "axis_names": ["fsdp", "tp"]},
            "rollout": {"shape": [3], "axis_names": ["tp"], "first_device": 5},
        }
    )
    meshes = role_meshes.make_meshes(run.role_to_mesh, None)
    assert meshes.keys() == set(Role)
    for role, (places, names) in meshes.items():
        ids = [device.id for device in np.ravel(places)]
        if role is Role.ROLLOUT:
            assert (ids, places.shape, names) == ([5, 6, 7], (3,), ("tp",))
        else:
            assert (ids, places.shape, names) == ([0, 1, 2, 3], (2, 2), ("fsdp", "tp"))


def test_all_devices_that_are_missing_are_named_at_once(eight):
    actor = {"shape": [9], "axis_names": ["fsdp"]}
    rollout = {"shape": [2], "axis_names": ["tp"], "first_device": 7}
    options = run_of(role_to_mesh={"actor": actor, "rollout": rollout}).role_to_mesh
    options = dataclasses.replace(options, critic=options.rollout, reference=options.rollout)
    with pytest.raises(config_lib.ConfigError) as caught:
        role_meshes.make_meshes(options, None)
    assert len(caught.value.problems) == 4  # those that are named
    assert "actor wants devices 0 to 8, but there are 8 cpu devices" in str(caught.value)
    assert "rollout wants devices 7 to 8" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"rollout": {"shape": [1], "axis_names": ["tp"]}}, "actor", id="no actor"),
        pytest.param(
            {"actor": {"shape": [1, 1], "axis_names": ["tp"]}}, "shape has 2 axes", id="axes"
        ),
        pytest.param(
            {"actor": {"shape": [1], "axis_names": ["tp"], "first_device": -1}},
            "must not be negative",
            id="device",
        ),
        pytest.param({"actor": {"shape": [], "axis_names": []}}, "shape names no axis", id="none"),
        pytest.param(
            {"actor": {"shape": [1, 1], "axis_names": ["tp", "tp"]}},
            "axis_names must differ",
            id="twice",
        ),
        pytest.param({"sampler": {}}, "sampler", id="unknown role"),
    ],
)
def test_mistakes_are_errors(settings, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        run_of(role_to_mesh=settings)


def test_a_mesh_of_a_role_that_the_run_has_not_is_refused():
    mesh = {"shape": [1], "axis_names": ["fsdp"]}
    meshes = dict.fromkeys(("actor", "critic", "reference", "reward", "rollout"), mesh)
    with pytest.raises(config_lib.ConfigError) as caught:
        run_of(role_to_mesh=meshes, grpo_config={"beta": 0.0})
    reasons = {
        "critic": "there is no critic beside the actor",
        "reference": "with beta 0 there is no reference",
        "reward": "without reward_model_config there is none",
    }
    assert list(caught.value.problems) == [
        f"role_to_mesh.{role} is not read: {reason}; remove it" for role, reason in reasons.items()
    ]
    meshes = {"actor": mesh, "reference": mesh}
    run = run_of(role_to_mesh=meshes, grpo_config={"beta": 0.1})
    assert run.used_roles == (Role.ACTOR, Role.REFERENCE, Role.ROLLOUT)


def test_the_devices_of_a_run_are_told(eight):
    used = (Role.ACTOR, Role.ROLLOUT)
    assert role_meshes.in_words({}, used) == (
        "1 of 8; role_to_mesh or model_config.mesh would use the others"
    )
    places = np.asarray(eight).reshape(4, 2)
    together, apart = (
        SomeMesh(devices=places, shape={"fsdp": 4, "tp": 2}),
        SomeMesh(devices=places[3:, :1], shape={"tp": 1}),
    )
    meshes = dict.fromkeys(Role, together)
    assert role_meshes.in_words(meshes, used) == "actor, rollout: 0-7 (fsdp 4 x tp 2)"
    meshes[Role.ROLLOUT] = apart
    assert role_meshes.in_words(meshes, used) == "actor: 0-7 (fsdp 4 x tp 2); rollout: 6 (tp 1)"


def test_a_single_device_is_not_worth_a_word(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None])
    assert role_meshes.in_words({}, Role) is None


def test_one_mesh_or_several_but_not_both():
    mesh = {"shape": [1], "axis_names": ["fsdp"]}
    with pytest.raises(config_lib.ConfigError, match="set either role_to_mesh or"):
        run_of(role_to_mesh={"actor": mesh}, model_config={"model_id": "m", "mesh": mesh})


def test_without_any_mesh_nothing_is_placed():
    assert role_meshes.make_meshes(None, None) == {}
    shared = role_meshes.make_meshes(
        None, schema.MeshOptions(shape=(jax.device_count(),), axis_names=("fsdp",))
    )
    assert shared.keys() == set(Role)
    assert len(set(shared.values())) == 1
    assert isinstance(shared[Role.ACTOR], Mesh)
