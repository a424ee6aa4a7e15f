"""Devices of the roles of a reinforcement learning run, as its settings divide them."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from tunix.cli.loading import build
from tunix.cli.schemas import schema
from tunix.rl import roles
from tunix.utils import config as config_lib

Role = roles.Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleMeshOptions(schema.MeshOptions):
    """``role_to_mesh.ROLE``: devices of a role and how they are arranged."""

    first_device: int = 0
    """Where they begin among the devices that there are."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the mesh."""
        yield from super().problems()
        if self.first_device < 0:
            yield f"first_device must not be negative, got {self.first_device}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleMeshes(config_lib.Config):
    """``role_to_mesh``: roles with equal meshes share devices, others split them."""

    actor: RoleMeshOptions
    """The model that is trained."""

    critic: RoleMeshOptions | None = None
    """With the actor when unset."""

    reference: RoleMeshOptions | None = None
    """With the actor when unset."""

    reward: RoleMeshOptions | None = None
    """The reward model; with the actor when unset."""

    rollout: RoleMeshOptions | None = None
    """The copy of the actor that samples; with it when unset."""


def make_meshes(
    role_to_mesh: RoleMeshes | None, mesh: schema.MeshOptions | None
) -> dict[Role, Mesh]:
    """Return the mesh of every role; none at all for a single device.

    Args:
        role_to_mesh: Meshes by role.
        mesh: Without them, the mesh of all roles.

    Raises:
        ConfigError: If a mesh has places for devices that there are not.
    """
    if role_to_mesh is None:
        shared = build.make_mesh(mesh)
        return {} if shared is None else dict.fromkeys(Role, shared)
    given = {
        Role.ACTOR: role_to_mesh.actor,
        Role.CRITIC: role_to_mesh.critic,
        Role.REFERENCE: role_to_mesh.reference,
        Role.REWARD: role_to_mesh.reward,
        Role.ROLLOUT: role_to_mesh.rollout,
    }
    devices, problems = jax.devices(), []
    meshes: dict[Role, Mesh] = {}
    for role, options in given.items():
        if options is None:
            continue
        end = options.first_device + math.prod(options.shape)
        if end > len(devices):
            problems.append(
                f"{role.value} wants devices {options.first_device} to {end - 1}, but there are "
                f"{len(devices)} {devices[0].platform} devices, counted from 0"
            )
            continue
        places = np.asarray(devices[options.first_device : end]).reshape(options.shape)
        meshes[role] = Mesh(places, options.axis_names)
    if problems:
        raise config_lib.ConfigError("role_to_mesh", problems)
    return {role: meshes.get(role, meshes[Role.ACTOR]) for role in Role}


def in_words(meshes: Mapping[Role, Mesh], used: Iterable[Role]) -> str | None:
    """Return which roles are on which devices, or ``None`` if there is but one device.

    Args:
        meshes: What :func:`make_meshes` returned.
        used: The roles that the run has.
    """
    count = len(jax.devices())
    if not meshes:
        hint = "role_to_mesh or model_config.mesh would use the others"
        return f"1 of {count}; {hint}" if count > 1 else None
    by_mesh: dict[Mesh, list[str]] = {}
    for role in used:
        by_mesh.setdefault(meshes[role], []).append(role.value)
    return "; ".join(f"{', '.join(roles)}: {_places(mesh)}" for mesh, roles in by_mesh.items())


def _places(mesh: Mesh) -> str:
    ids = sorted(device.id for device in mesh.devices.flat)
    span = str(ids[0]) if len(ids) == 1 else f"{ids[0]}-{ids[-1]}"
    return f"{span} ({' x '.join(f'{name} {size}' for name, size in mesh.shape.items())})"
