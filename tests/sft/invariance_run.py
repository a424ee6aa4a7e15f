"""Loss, metrics and gradients of one step, over every way to lay out, split and shard its examples.

Run as ``python -m tests.sft.invariance_run NUM_DEVICES...`` with as many virtual devices; prints,
as JSON, how far each way is from sixteen rows padded on the right on one device.
"""

import functools
import itertools
import json
import operator
import sys

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.sft import toys
from tunix.sft import losses, sharding_utils
from tunix.sft.loop import train_state, train_step

ROWS, LENGTH = 16, 12
LAYOUTS = ("right", "left", "packed")
SPLITS = (1, 2)


def examples():
    """Sixteen examples of very different lengths and weights."""
    rng = np.random.default_rng(0)
    for i in range(ROWS):
        length = int(rng.integers(2, LENGTH // 2 + 1))
        weights = rng.uniform(0.1, 3.0, length) * (rng.random(length) < 0.3 + 0.04 * i)
        yield rng.integers(0, toys.VOCAB, length), weights.astype(np.float32)


def batch(layout):
    """The examples in sixteen rows; packed, two share a row and half of the rows are empty."""
    names = {"input_tokens": np.int32, "input_mask": np.float32}
    names |= {"positions": np.int32, "segment_ids": np.int32}
    arrays = {name: np.zeros((ROWS, LENGTH), dtype) for name, dtype in names.items()}
    arrays["input_tokens"][:] = 7  # what padding holds must not matter
    for i, (tokens, weights) in enumerate(examples()):
        start = LENGTH - len(tokens) if layout == "left" else 0
        row, segment = (i // 2, 1 + i % 2) if layout == "packed" else (i, 1)
        start += LENGTH // 2 if segment == 2 else 0
        where = slice(start, start + len(tokens))
        values = (tokens, weights, np.arange(len(tokens)), segment)
        for name, value in zip(arrays, values, strict=True):
            arrays[name][row, where] = value
    arrays["input_mask"][:, 0] = 0.0
    return arrays


@functools.cache
def functions(num_devices, loss):
    """The split model, its parameters and the step functions on a mesh."""
    model = toys.tiny_decoder(num_layers=1)
    split, params, variables = train_state.split_model(model)
    mesh = None
    if num_devices > 1:
        mesh = Mesh(np.array(jax.devices()[:num_devices]), ("fsdp",))
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    made = train_step.make_step_functions(split, loss, optax.sgd(0.1))
    return made, split, params, variables, mesh


def step(layout, num_parts, num_devices, loss=losses.next_token_loss):
    """The mean loss and metrics of the step, and its gradient in one array."""
    made, split, params, variables, mesh = functions(num_devices, loss)
    sums = None
    for part in range(num_parts):
        each = ROWS // num_parts
        micro = toys.rows(batch(layout), part * each, (part + 1) * each)
        micro = sharding_utils.shard_input(micro, ("fsdp",), mesh=mesh)
        if sums is None:
            sums = made.zeros(params, variables, split.frozen, micro)
        sums = made.accumulate(sums, params, split.frozen, micro)
    scalars = np.array([float(x) for x in sums.output.finalize().values()])
    flat = np.concatenate([np.asarray(sums.grads[name]).ravel() for name in sorted(sums.grads)])
    return scalars, flat / float(sums.output.weight_sum)


def mean_of_means(model, **inputs):
    """The usual mistake: every micro-batch is divided by its own weight."""
    output = losses.next_token_loss(model, **inputs)
    return operator.truediv(output.loss_sum, jax.numpy.maximum(output.weight_sum, 1e-8))


def distance(one, other):
    """The greater of the relative differences of scalars and of gradients."""
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(one, other, strict=True)
    )


def main(devices):
    expected = step("right", 1, 1)
    found = {
        f"{layout}, {parts} micro-batches, {num} devices": distance(
            expected, step(layout, parts, num)
        )
        for layout, parts, num in itertools.product(LAYOUTS, SPLITS, devices)
    }
    (_, whole), (_, parts) = (step("right", parts, 1, mean_of_means) for parts in SPLITS)
    wrong = float(np.linalg.norm(whole - parts) / np.linalg.norm(whole))
    print(json.dumps({"found": found, "mean of means": wrong}))


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
