"""Trains on a mesh of virtual devices and prints what came out, as JSON.

Run as ``python -m tests.sft.sharded_run NUM_DEVICES DIRECTORY``; a process of its own, because the
number of devices is fixed when JAX starts.
"""

import json
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.sft import toys
from tunix.perf import compile_counter
from tunix.sft import host_offload, peft_trainer, sharding_utils

# Not Adam: its first steps are the signs of gradients, and turn rounding into whole steps.
OPTIMIZER = optax.sgd(1e-4, momentum=0.9)


def sharded_decoder(mesh, **changes):
    """A decoder whose matrices are split along their first dimension that divides."""
    model = toys.tiny_decoder(**changes)
    if mesh is not None:
        state = nnx.state(model)
        size = mesh.shape["fsdp"]

        def place(x):
            axes = ["fsdp" if n % size == 0 else None for n in x.shape]
            first = axes.index("fsdp") if "fsdp" in axes else None
            spec = [a if i == first else None for i, a in enumerate(axes)]
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

        nnx.update(model, jax.tree.map(place, state))
    return model


def run(num_devices, directory):
    devices = np.array(jax.devices()[:num_devices])
    mesh = Mesh(devices, ("fsdp",)) if num_devices > 1 else None
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=2,
        pbar_description=None,
        gradient_accumulation_steps=2,
        checkpoint_root_directory=f"{directory}/{num_devices}",
        checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=2),
    )
    model = sharded_decoder(mesh)
    trainer = peft_trainer.PeftTrainer(model, OPTIMIZER, config)
    data = [toys.token_batch(8, 8, seed=i) for i in range(8)]
    # The last evaluation batch does not divide by the devices.
    held_out = [toys.token_batch(8, 8, seed=100), toys.token_batch(3, 8, seed=101)]
    trainer.train(data[:4], held_out)
    with compile_counter.CompileCounter() as counter:
        trainer.train(data[4:])
    history = trainer.metrics_logger.get_metric_history
    result = {
        "losses": history("", "loss", "train").tolist(),
        "grad_norms": history("", "grad_norm", "train").tolist(),
        "eval_loss": trainer.evaluate(held_out)["loss"],
        "compiles": counter.names,
        "devices": sorted({len(x.sharding.device_set) for x in trainer.state.params.values()}),
        "sharded": sum(not x.is_fully_replicated for x in jax.tree.leaves(trainer.state)),
    }  # fmt: skip
    trainer.close()
    if mesh is not None:
        counts = (2, jax.device_count())
        result["moved"], _ = moved(f"{directory}/moved", data, sft_trainer, counts)
    again = peft_trainer.PeftTrainer(sharded_decoder(mesh), OPTIMIZER, config)
    toys.assert_bit_identical(again.state, trainer.state)
    shardings = [jax.tree.map(lambda x: x.sharding, t.state) for t in (again, trainer)]
    assert shardings[0] == shardings[1]
    if mesh is not None:
        result["errors"] = errors(mesh)
        result["offloaded"] = offloaded(mesh)
    return result


def sft_trainer(mesh, **settings):
    config = peft_trainer.TrainingConfig(**settings)
    return peft_trainer.PeftTrainer(sharded_decoder(mesh), OPTIMIZER, config)


def moved(directory, data, make_trainer, counts):
    """Losses of a run of four steps, and its trainer at their end.

    The run starts on the first number of devices and goes on, from its checkpoint, on the second.
    """
    losses = []
    for count, steps in zip(counts, (2, 4), strict=True):
        mesh = Mesh(np.array(jax.devices()[:count]), ("fsdp",)) if count > 1 else None
        trainer = make_trainer(
            mesh,
            eval_every_n_steps=9,
            max_steps=steps,
            pbar_description=None,
            gradient_accumulation_steps=2,
            checkpoint_root_directory=str(directory),
        )
        assert {len(x.sharding.device_set) for x in jax.tree.leaves(trainer.state)} == {count}
        assert trainer.train_steps == steps - 2
        trainer.train(data)
        losses += trainer.metrics_logger.get_metric_history("", "loss", "train").tolist()
        trainer.close()
    return losses, trainer


def offloaded(mesh):
    """Bytes on the host of a model that is split, and of its arrays; it returns as it was."""
    model = sharded_decoder(mesh)
    before = jax.tree.map(lambda x: x, nnx.state(model))
    offload = host_offload.HostOffload(model)
    offload.offload()
    sizes = [offload.nbytes, sum(x.nbytes for x in jax.tree.leaves(before))]
    offload.load()
    toys.assert_bit_identical(nnx.state(model), before)
    assert [x.sharding for x in jax.tree.leaves(nnx.state(model))] == [
        x.sharding for x in jax.tree.leaves(before)
    ]
    return sizes


def errors(mesh):
    """Messages about batches and axes that do not fit the mesh."""
    messages = []
    for rows, axis in ((3, "fsdp"), (8, "data")):
        try:
            sharding_utils.shard_input({"tokens": np.zeros((rows, 2))}, (axis,), mesh=mesh)
        except ValueError as error:
            messages.append(str(error))
    return messages


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), sys.argv[2])))
