"""One optimizer step of every preference objective on the same examples, laid out in many ways."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tests.sft import toys
from tests.sft.dpo import helpers
from tunix.data.preference import preference_batching
from tunix.sft.dpo import cpo_trainer, dpo_trainer, kto_trainer, simpo_trainer

PAIRS, RATINGS = helpers.pairs(8), helpers.ratings(8)
LOOP = {"eval_every_n_steps": 100, "pbar_description": None}
# Its state is the gradient of the step.
GRADIENT = optax.trace(decay=0.0)


class OneLayer(nnx.Module):
    """A language model of one averaging layer: sees what the mask shows, and positions."""

    def __init__(self, *, seed):
        rng = np.random.default_rng(seed)
        self.embed = nnx.Param(jnp.asarray(rng.normal(size=(toys.VOCAB, 8)), jnp.float32))
        self.mix = nnx.Param(jnp.asarray(rng.normal(size=(8, 8)), jnp.float32))
        self.head = nnx.Param(jnp.asarray(rng.normal(size=(8, toys.VOCAB)), jnp.float32))

    def __call__(self, tokens, positions, cache, attention_mask):
        x = self.embed[...][tokens] * (1.0 + 0.1 * positions[..., None])
        weights = attention_mask / attention_mask.sum(axis=-1, keepdims=True)
        x = x + jnp.tanh(weights @ x @ self.mix[...])
        return x @ self.head[...], cache


def on_mesh(model, mesh):
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        nnx.update(model, jax.tree.map(lambda x: jax.device_put(x, everywhere), nnx.state(model)))
    return model


def dpo(make_model, **settings):
    config = dpo_trainer.DPOTrainingConfig(**LOOP, **settings)
    ref_model = None if settings.get("algorithm") == "orpo" else make_model(1)
    return dpo_trainer.DPOTrainer(make_model(0), ref_model, GRADIENT, config)


def kto(make_model):
    config = kto_trainer.KTOTrainingConfig(**LOOP, beta=0.3, undesirable_weight=0.7)
    return kto_trainer.KTOTrainer(make_model(0), make_model(1), GRADIENT, config)


OBJECTIVES = {
    "sigmoid": lambda make: dpo(make, label_smoothing=0.1),
    "mix": lambda make: dpo(
        make, loss_type=("ipo", "aot", "aot_unpaired"), loss_weights=(0.1, 1.0, 0.5), rpo_alpha=0.3
    ),
    "orpo": lambda make: dpo(make, algorithm="orpo", lambda_orpo=0.5),
    "simpo": lambda make: simpo_trainer.SimPOTrainer(
        make(0), GRADIENT, simpo_trainer.SimPOTrainingConfig(**LOOP)
    ),
    "cpo": lambda make: cpo_trainer.CPOTrainer(
        make(0), GRADIENT, cpo_trainer.CPOTrainingConfig(**LOOP)
    ),
    "kto": kto,
}

SPLIT = (slice(0, 3), slice(3, 4), slice(4, 8))


def pair_arrangements():
    collate = preference_batching.collate_pairs
    return {
        "one batch": [helpers.padded(PAIRS)],
        "unequal micro-batches": [helpers.padded(PAIRS[part], num_rows=4) for part in SPLIT],
        "packed": [collate([PAIRS[:3], PAIRS[3:6]], num_rows=2, length=40, pairs_per_row=3),
                   collate([PAIRS[6:]], num_rows=2, length=40, pairs_per_row=3)],
        "packed in one batch": [
            collate([PAIRS[:3], PAIRS[3:6], PAIRS[6:]], num_rows=3, length=40, pairs_per_row=3)
        ],
    }  # fmt: skip


def rating_arrangements():
    collate = preference_batching.collate_ratings
    rows = [[rating] for rating in RATINGS]
    return {
        "one batch": [collate(rows, num_rows=8, length=12)],
        "unequal micro-batches": [collate(rows[part], num_rows=4, length=12) for part in SPLIT],
        "packed": [collate([RATINGS[:4]], num_rows=1, length=32, answers_per_row=5),
                   collate([RATINGS[4:]], num_rows=1, length=32, answers_per_row=5)],
    }  # fmt: skip


def arrangements_of(objective):
    return rating_arrangements() if objective == "kto" else pair_arrangements()


def step(trainer, batches):
    """Loss, metrics and gradient of one step from where the trainer stands; it stays there."""
    start = jax.tree.map(jnp.copy, trainer.state)
    handle = trainer.step_on([trainer.model_input(batch) for batch in batches])
    skip = ("learning_rate", "skipped_steps", "status")
    metrics = {k: np.asarray(v) for k, v in handle.metrics.items() if k not in skip}
    # Rewards as one vector: their margin is a small difference, with the error of its terms.
    found = {k: v for k, v in metrics.items() if not k.startswith("rewards/")}
    if rewards := [v for k, v in metrics.items() if k.startswith("rewards/")]:
        found["rewards"] = np.array(rewards)
    gradient = trainer.state.opt_state.trace
    found["gradient"] = np.concatenate([np.ravel(gradient[name]) for name in sorted(gradient)])
    trainer._stepper.replace_state(start)
    return found


def differences(one, other):
    """The norm of each difference relative to the norm of the first, or to 1e-3."""
    assert one.keys() == other.keys()
    return {
        k: float(np.linalg.norm(one[k] - other[k]) / max(np.linalg.norm(one[k]), 1e-3)) for k in one
    }
