"""Every setting of every objective changes the loss, and what is not read is refused."""

import dataclasses

import numpy as np
import optax
import pytest

from tests.sft.dpo import arrangements, helpers
from tunix.sft.dpo import (
    cpo_trainer,
    dpo_config,
    dpo_trainer,
    kto_objective,
    kto_trainer,
    preference_losses,
    simpo_trainer,
)
from tunix.utils import config as config_lib

LOOP = arrangements.LOOP
RNG = np.random.default_rng(0)
PAIRS = preference_losses.Pairs(
    *(-RNG.uniform(1, 9, (4, 5)).astype(np.float32)), *RNG.integers(1, 6, (2, 5)).astype(np.float32)
)


def loss_of(config):
    """The summed loss of five pairs."""
    modules = {
        dpo_trainer.DPOTrainingConfig: dpo_trainer,
        simpo_trainer.SimPOTrainingConfig: simpo_trainer,
        cpo_trainer.CPOTrainingConfig: cpo_trainer,
    }
    objective = modules[type(config)].make_objective(config)
    return float(sum(term.losses(PAIRS, None) for term in objective.terms).sum())


def dpo(**settings):
    return dpo_trainer.DPOTrainingConfig(**LOOP, **settings)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"beta": 0.2}),
        ({}, {"label_smoothing": 0.1}),
        ({}, {"loss_type": "hinge"}),
        ({}, {"rpo_alpha": 0.5}),
        ({}, {"algorithm": "orpo"}),
        ({"loss_type": ("sigmoid", "ipo")}, {"loss_weights": (0.5, 2.0)}),
        ({"loss_type": "discopop"}, {"discopop_tau": 0.5}),
        ({"algorithm": "orpo"}, {"lambda_orpo": 0.3}),
    ],
    ids=str,
)
def test_a_setting_of_dpo_changes_the_loss(base, change):
    assert loss_of(dpo(**base)) != loss_of(dpo(**{**base, **change}))


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (
            simpo_trainer.SimPOTrainingConfig,
            {"beta": 1.0, "simpo_gamma": 0.2, "label_smoothing": 0.1},
        ),
        (cpo_trainer.CPOTrainingConfig, {"beta": 1.0, "cpo_alpha": 0.0, "label_smoothing": 0.1}),
    ],
)
def test_a_setting_of_simpo_and_cpo_changes_the_loss(config, changes):
    base = config(**LOOP)
    for name, value in changes.items():
        assert loss_of(base) != loss_of(dataclasses.replace(base, **{name: value})), name


def test_a_setting_of_kto_reaches_the_objective():
    settings = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}
    models = (arrangements.OneLayer(seed=seed) for seed in (0, 1))
    config = kto_trainer.KTOTrainingConfig(**LOOP, **settings)
    trainer = kto_trainer.KTOTrainer(*models, optax.sgd(0.1), config)
    assert trainer.objective == kto_objective.KTOObjective(**settings)


def test_a_mix_is_the_weighted_sum_of_its_losses():
    parts = [loss_of(dpo(loss_type=name)) for name in ("sigmoid", "ipo")]
    mixed = loss_of(dpo(loss_type=("sigmoid", "ipo"), loss_weights=(0.3, 2.0), rpo_alpha=0.5))
    nll = float((-PAIRS.chosen / PAIRS.chosen_length).sum())
    assert mixed == pytest.approx(0.3 * parts[0] + 2.0 * parts[1] + 0.5 * nll, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"loss_type": "sigmiod"}, "(did you mean 'sigmoid'?)"),
        ({"loss_type": "simpo"}, "loss_type 'simpo' is not one of"),
        ({"algorithm": "orop"}, "(did you mean 'orpo'?)"),
        ({"loss_type": ()}, "loss_type names no loss"),
        ({"loss_weights": (1.0, 2.0)}, "loss_weights has 2 entries, loss_type 1"),
        ({"loss_type": "exo_pair"}, "'exo_pair' is infinite without label_smoothing"),
        ({"label_smoothing": 0.5}, "label_smoothing must lie in [0, 0.5), got 0.5"),
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"rpo_alpha": 0.0}, "rpo_alpha must be positive or None, got 0.0"),
        ({"max_prompt_length": 0}, "max_prompt_length must be at least 1 or None, got 0"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing is not read by"),
        ({"discopop_tau": 0.1}, "discopop_tau is not read by loss_type 'sigmoid'"),
        ({"lambda_orpo": 0.2}, "lambda_orpo is not read by loss_type 'sigmoid'"),
        ({"algorithm": "orpo", "beta": 0.2}, "beta is not read by algorithm 'orpo'"),
        ({"algorithm": "orpo", "offload_reference": True}, "offload_reference is not read by"),
        ({"algorithm": "orpo", "loss_type": "ipo"}, "loss_type is not read by algorithm 'orpo'"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_or_is_not_read_is_refused(settings, problem):
    with pytest.raises(config_lib.ConfigError) as error:
        dpo(**settings)
    assert any(problem in found for found in error.value.problems), error.value.problems


def test_the_names_of_the_reference_are_kept():
    assert dpo_trainer.ORPOTrainer is dpo_trainer.DpoTrainer is dpo_trainer.DPOTrainer
    assert dpo_trainer.ORPOTrainingConfig is dpo_trainer.DPOTrainingConfig
    assert {"sigmoid", "aot", "aot_pair", "aot_unpaired", "sft"} <= set(dpo_config.LOSS_TYPES)
    assert helpers.trainer().config.beta == 0.1
