"""A reference that waits in host memory gives the same bits, and takes no device memory."""

import gc

import jax
import optax
import pytest
from flax import nnx

from tests.sft import toys
from tests.sft.dpo import arrangements, helpers
from tunix.data.preference import preference_batching
from tunix.models import lora
from tunix.sft.dpo import dpo_trainer, kto_trainer

PAIRS = [helpers.padded(arrangements.PAIRS[:4]), helpers.padded(arrangements.PAIRS[4:])]
RATINGS = [
    preference_batching.collate_ratings([[x] for x in part], num_rows=4, length=12)
    for part in (arrangements.RATINGS[:4], arrangements.RATINGS[4:])
]


def trainer_for(kind, **settings):
    config, trainer = {
        "dpo": (dpo_trainer.DPOTrainingConfig, dpo_trainer.DPOTrainer),
        "kto": (kto_trainer.KTOTrainingConfig, kto_trainer.KTOTrainer),
    }[kind]
    models = (arrangements.OneLayer(seed=seed) for seed in (0, 1))
    return trainer(*models, optax.sgd(0.1), config(**arrangements.LOOP, **settings))


def live_bytes():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.parametrize(("kind", "batches"), [("dpo", PAIRS), ("kto", RATINGS)])
def test_training_is_the_same_bit_for_bit_without_the_reference_on_the_device(kind, batches):
    taken, trainers = [], []
    for offload in (False, True):
        before = live_bytes()
        trainer = trainer_for(kind, offload_reference=offload)
        trainer.train(batches)
        trainers.append(trainer)
        taken.append(live_bytes() - before)
    live, offloaded = trainers
    toys.assert_bit_identical(offloaded.state, live.state)
    toys.assert_bit_identical(
        *(trainer.model_input(batches[0])["batch"] for trainer in (live, offloaded))
    )
    size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(arrangements.OneLayer(seed=1))))
    assert taken[0] - taken[1] == size
    estimates = [trainer.memory_estimate(1, 1).total for trainer in (live, offloaded)]
    assert estimates[0] - estimates[1] == size


def test_there_must_be_weights_to_move():
    model = toys.tiny_decoder(num_layers=1)
    lora.apply_lora(model, lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(1))
    config = dpo_trainer.DPOTrainingConfig(**arrangements.LOOP, offload_reference=True)
    with pytest.raises(ValueError, match="offload_reference moves the weights of ref_model"):
        dpo_trainer.DPOTrainer(model, None, optax.sgd(0.1), config)
