"""Trains with all roles on one mesh and with each on its own, of eight virtual devices.

Run as ``python -m tests.rl.split_run grpo|ppo``; a process of its own, because the number of
devices is fixed when JAX starts. Prints what came out as JSON.
"""

import json
import sys

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from tests.rl import helpers
from tunix.models import lora
from tunix.rl import reshard, rl_cluster
from tunix.rl.objectives import critic
from tunix.rl.ppo import ppo_learner

Role = rl_cluster.Role
METRICS = ("reward", "grad_norm", "loss", "kl", "completion_length", "mismatch_max")
CRITIC_METRICS = ("critic/loss", "critic/grad_norm")


def mesh(first, shape, *axes):
    count = int(np.prod(shape))
    return Mesh(np.array(jax.devices()[first : first + count]).reshape(shape), axes)


def colocated():
    return dict.fromkeys(Role, mesh(0, (2, 2), "fsdp", "tp"))


def split():
    """Four devices train, two sample, one is the reference, one the critic."""
    return {
        Role.ACTOR: mesh(0, (2, 2), "fsdp", "tp"),
        Role.ROLLOUT: mesh(4, (2,), "tp"),
        Role.REFERENCE: mesh(6, (1,), "fsdp"),
        Role.CRITIC: mesh(7, (1,), "fsdp"),
    }


def make_cluster(role_to_mesh, *, has_critic=False, is_lora=False, **settings):
    actor = helpers.tiny_decoder(vocab_size=64)
    if is_lora:
        lora.apply_lora(actor, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(1))
    return rl_cluster.RLCluster(
        actor=actor,
        critic=critic.create_critic_model(actor) if has_critic else None,
        reference=None if is_lora else helpers.tiny_decoder(vocab_size=64),
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                # Not Adam: its first steps are the signs of gradients.
                actor_optimizer=optax.sgd(0.3, momentum=0.9),
                eval_every_n_steps=1000,
                pbar_description=None,
                compute_logps_micro_batch_size=1,
            ),
            rollout_config=helpers.ROLLOUT,
            role_to_mesh=role_to_mesh,
            **settings,
        ),
    )


def train(cluster, *, is_ppo):
    """Return the logs of two steps, and where the actor ended."""
    if is_ppo:
        config = ppo_learner.PPOConfig(beta=0.05, num_generations=3)
        learner = ppo_learner.PPOLearner(cluster, config, helpers.share_of_odd_characters)
    else:
        learner = helpers.make_learner(
            cluster, helpers.share_of_odd_characters, num_generations=3, beta=0.05
        )
    # Three prompts: neither they nor their completions divide among the devices.
    learner.train([{"prompts": helpers.PROMPTS[:3]}] * 2)
    with cluster.on_device(Role.ROLLOUT):
        sampling = {d.id for x in jax.tree.leaves(cluster.rollout.weights()) for d in x.devices()}
    cluster.close()
    names = METRICS + (CRITIC_METRICS if is_ppo else ())
    models = [cluster.actor_trainer, *([cluster.critic_trainer] if is_ppo else [])]
    return {
        **{name: helpers.history(cluster, name).tolist() for name in names},
        "weights": [
            np.asarray(x).ravel().tolist() for m in models for x in m.state.params.values()
        ],
        "bytes_synced": cluster.bytes_synced,
        "devices": {
            role: sorted(d.id for d in place.devices)
            for role, place in (
                ("actor", cluster._actor.place),
                ("reference", cluster.inference_worker.places["reference"]),
                *([("critic", cluster._critic.place)] if is_ppo else []),
            )
        },
        "rollout_devices": sorted(sampling),
    }


def least_bytes(source, target):
    """Count, element by element, what the devices of ``target`` do not hold of ``source``."""
    total = 0
    for x, to in zip(jax.tree.leaves(source), jax.tree.leaves(target), strict=True):
        held = x.sharding.devices_indices_map(x.shape)
        for device, index in to.devices_indices_map(x.shape).items():
            lacks = np.zeros(x.shape, bool)
            lacks[index] = True
            if device in held:
                lacks[held[device]] = False
            total += int(lacks.sum()) * x.dtype.itemsize
    return total


class Peak:
    """Looks at the bytes that live on every device while arrays are moved."""

    def __init__(self):
        self.before = self.now()
        self.extra = 0

    def now(self):
        by_device = dict.fromkeys(jax.devices(), 0)
        seen = set()
        for x in jax.live_arrays():
            for shard in x.addressable_shards:
                pointer = shard.data.unsafe_buffer_pointer()
                if pointer not in seen:
                    seen.add(pointer)
                    by_device[shard.device] += shard.data.nbytes
        return by_device

    def look(self):
        now = self.now()
        self.extra = max(self.extra, *(now[d] - self.before[d] for d in now))


def reshardings():
    """Move a model between meshes of many shapes, and back."""
    model = helpers.tiny_decoder(vocab_size=64)
    here = nnx.state(reshard.reshard_model_to_mesh(model, mesh(0, (2, 2), "fsdp", "tp")))
    found = {}
    assembled = reshard._assembled
    for name, there in {
        "same devices, other shape": mesh(0, (4,), "fsdp"),
        "other devices, other axes": mesh(4, (2,), "tp"),
        "overlapping devices": mesh(2, (2, 2), "fsdp", "tp"),
        "more devices": mesh(0, (8,), "fsdp"),
        "copies": mesh(0, (8,), "other"),
        "one device": mesh(7, (1,), "fsdp"),
        "where it is": mesh(0, (2, 2), "fsdp", "tp"),
    }.items():
        targets = reshard.sharding_lib.state_shardings(here, there)
        peak = Peak()

        def watched(*args, peak=peak):
            joined = assembled(*args)
            peak.look()
            return joined

        reshard._assembled = watched
        moved, report = reshard.reshard_and_measure(here, targets)
        reshard._assembled = assembled
        size = sum(x.nbytes for x in jax.tree.leaves(here))
        back = reshard.reshard_pytree(moved, here)
        pairs = [(here, moved), (here, back)]
        found[name] = {
            "equal": all(
                np.array_equal(a, b)
                for pair in pairs
                for a, b in zip(*map(jax.tree.leaves, pair), strict=True)
            ),
            "placed": jax.tree.map(lambda x: x.sharding, moved) == targets,
            "moved": report.bytes_moved,
            "lacking": reshard.bytes_lacking(here, targets),
            "least": least_bytes(here, targets),
            "share_on_one_device": peak.extra / size,
            "size": size,
        }
        del moved, back, pairs
    return found


def adapters_only():
    """What a sync of a LoRA actor sends, against what its adapters and its weights take."""
    cluster = make_cluster(split(), is_lora=True, verify_weight_sync=True)
    for _, projection in lora.iter_projections(cluster.actor_trainer.model):
        projection.lora_b[...] = 1.0 + projection.lora_b[...]
    cluster.sync_weights()  # verified
    params = cluster.actor_trainer.state.params
    held = dict(nnx.to_flat_state(cluster.rollout.weights()))
    return {
        "sent": cluster.bytes_synced,
        "adapters": sum(x.nbytes for x in params.values()),
        "weights": sum(x.nbytes for x in jax.tree.leaves(nnx.state(cluster.actor_trainer.model))),
        "least": sum(
            shard.data.nbytes
            for path, leaf in held.items()
            if isinstance(leaf, nnx.LoRAParam)
            for shard in leaf.get_value().addressable_shards
        ),
    }


def compared(is_ppo):
    runs = {
        "colocated": train(make_cluster(colocated(), has_critic=is_ppo), is_ppo=is_ppo),
        "split": train(
            make_cluster(split(), has_critic=is_ppo, verify_weight_sync=True), is_ppo=is_ppo
        ),
    }
    if is_ppo:
        for name, meshes in (("colocated", colocated()), ("split", split())):
            cluster = make_cluster(meshes, has_critic=True, offload_to_cpu=True)
            runs[f"{name}, offloaded"] = train(cluster, is_ppo=True)
    return runs


if __name__ == "__main__":
    if sys.argv[1] == "ppo":
        print(json.dumps({"runs": compared(is_ppo=True)}))
    else:
        print(
            json.dumps(
                {
                    "reshardings": reshardings(),
                    "adapters": adapters_only(),
                    "runs": compared(is_ppo=False),
                }
            )
        )
