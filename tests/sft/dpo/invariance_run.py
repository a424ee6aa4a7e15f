"""Loss, metrics and gradient of one step of preference training over layouts, splits and devices.

Run as ``python -m tests.sft.dpo.invariance_run DEVICES OBJECTIVES`` (``1,2,4,8 ipo,kto``, or
``all``) with as many virtual devices; prints, as JSON, how far each way is from eight rows padded
on the right in one batch on one device. The model is a decoder of one layer, the reference another.
"""

import json
import sys

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from tests.sft import toys
from tests.sft.dpo import arrangements, helpers
from tunix.data.preference import preference_batching
from tunix.sft import loss_output
from tunix.sft.dpo import reward_model, reward_trainer

ROWS = 8
SPLITS = {"whole": (slice(0, 8),), "split": (slice(0, 3), slice(3, 4), slice(4, 8))}


def reward(make):
    config = reward_trainer.RewardTrainingConfig(**arrangements.LOOP)
    return reward_trainer.RewardTrainer(make(0, head=True), arrangements.GRADIENT, config)


OBJECTIVES = {
    "sigmoid": arrangements.OBJECTIVES["sigmoid"],
    "ipo": lambda make: arrangements.dpo(make, loss_type="ipo"),
    "apo_zero": lambda make: arrangements.dpo(make, loss_type="apo_zero"),
    "bco_and_sppo": lambda make: arrangements.dpo(make, loss_type=("bco_pair", "sppo_hard")),
    "aot": lambda make: arrangements.dpo(make, loss_type="aot"),
    **{name: make for name, make in arrangements.OBJECTIVES.items() if name != "sigmoid"},
    "reward": reward,
}


def layouts(objective):
    """The examples of a micro-batch, always in eight rows, by layout."""
    if objective == "kto":

        def ratings(part, per_row):
            rows = grouped(arrangements.RATINGS[part], per_row)
            return preference_batching.collate_ratings(
                rows, num_rows=ROWS, length=32, answers_per_row=5
            )

        return {"right": lambda part: ratings(part, 1), "packed": lambda part: ratings(part, 4)}

    def ids(part, *, left):
        found = helpers.as_ids(arrangements.PAIRS[part], left=left)
        missing = ROWS - len(found.prompt_ids)
        return jax.tree.map(lambda x: np.pad(x, ((0, missing), (0, 0))), found)

    def packed(part):
        return preference_batching.collate_pairs(
            grouped(arrangements.PAIRS[part], 3),
            num_rows=ROWS,
            length=64,
            pairs_per_row=3,
            with_last=objective == "reward",
        )

    return {
        "right": lambda part: ids(part, left=False),
        "left": lambda part: ids(part, left=True),
        "packed": packed,
    }


def grouped(examples, size):
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def trainer_for(objective, num_devices):
    """A trainer whose models are on so many devices, copied or split."""
    devices = np.array(jax.devices()[:num_devices])
    mesh = Mesh(devices, ("fsdp",)) if num_devices > 1 else None

    def make(seed, *, head=False):
        model = toys.tiny_decoder(seed=seed, num_layers=1)
        if head:
            model = reward_model.RewardModel(model, rngs=nnx.Rngs(2))
        return arrangements.on_mesh(model, mesh)

    trainer = OBJECTIVES[objective](make)
    sizes = {len(x.sharding.device_set) for x in trainer.state.params.values()}
    assert sizes == {num_devices}, sizes
    return trainer


def mean_of_means(trainer):
    """The usual mistake: every micro-batch is divided by its own weight."""

    def loss(model, batch):
        return loss_output.LossOutput.from_scalar(
            trainer.objective.loss(model, batch).finalize()["loss"]
        )

    return trainer.with_loss_fn(loss)


def cells(objective, num_devices, want):
    """How far every layout and split is from ``want``, and the step to compare with."""
    trainer, found = trainer_for(objective, num_devices), {}
    for layout, make in layouts(objective).items():
        for split, parts in SPLITS.items():
            got = arrangements.step(trainer, [make(part) for part in parts])
            want = got if want is None else want
            name = f"{objective}, {layout}, {split}, {num_devices} devices"
            found[name] = max(arrangements.differences(want, got).values())
    return found, want


def wrong(objective):
    """How far a mean of means is from itself on the other split."""
    trainer = mean_of_means(trainer_for(objective, 1))
    make = layouts(objective)["right"]
    whole, split = (
        arrangements.step(trainer, [make(part) for part in parts]) for parts in SPLITS.values()
    )
    return max(arrangements.differences(whole, split).values())


def main(devices, objectives):
    found, means = {}, {}
    for objective in objectives:
        want = None
        for count in devices:
            more, want = cells(objective, count, want)
            found |= more
            print(objective, count, max(more.values()), file=sys.stderr, flush=True)
        if objective in ("sigmoid", "reward"):
            means[objective] = wrong(objective)
    print(json.dumps({"found": found, "mean of means": means}))


if __name__ == "__main__":
    names = list(OBJECTIVES) if sys.argv[2] == "all" else sys.argv[2].split(",")
    main([int(count) for count in sys.argv[1].split(",")], names)
