"""DPO runs that move onto twice as many devices, as JSON.

Run as ``python -m tests.sft.dpo.sharded_run DIRECTORY DEVICES ...``: for every number of devices, a
run on it and one that starts there and goes on, from its checkpoint, on twice as many.
"""

import json
import sys

import jax
import numpy as np

from tests.sft import sharded_run
from tests.sft.dpo import helpers
from tunix.sft.dpo import dpo_trainer


def trainer_for(mesh, **settings):
    """Policy and live reference are split over the mesh; the loss couples the step's pairs."""
    config = dpo_trainer.DPOTrainingConfig(loss_type=("sigmoid", "aot"), **settings)
    policy, reference = (
        sharded_run.sharded_decoder(mesh, seed=seed, num_layers=1) for seed in (0, 1)
    )
    return dpo_trainer.DPOTrainer(policy, reference, sharded_run.OPTIMIZER, config)


def distance(one, other):
    return float(np.linalg.norm(np.subtract(one, other)) / np.linalg.norm(one))


def main(directory, counts):
    data = [helpers.padded(helpers.pairs(8, seed=seed)) for seed in range(8)]
    found = {}
    for count in counts:
        runs = [
            sharded_run.moved(f"{directory}/{count}_{end}", data, trainer_for, (count, end))
            for end in (count, 2 * count)
        ]
        losses = [losses for losses, _ in runs]
        states = [trainer.state for _, trainer in runs]
        assert len(losses[0]) == len(losses[1]) == 4
        found[f"{count} to {2 * count}"] = {
            "losses": distance(*losses),
            "parameters": distance(*(flat(state.params) for state in states)),
            "momentum": distance(*(flat(state.opt_state) for state in states)),
        }
    print(json.dumps(found))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


if __name__ == "__main__":
    main(sys.argv[1], [int(count) for count in sys.argv[2:]])
