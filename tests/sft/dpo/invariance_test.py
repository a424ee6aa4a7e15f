"""Loss, metrics and gradients do not depend on how a step is split, padded, packed or sharded."""

import pytest

from tests import virtual_devices
from tests.sft import toys
from tests.sft.dpo import arrangements, helpers, invariance_run
from tunix.sft import loss_output


def one_layer(seed):
    return arrangements.OneLayer(seed=seed)


def worst_difference(trainer, batches):
    """Between the first arrangement and each other one, by array."""
    first, *others = batches
    want = arrangements.step(trainer, batches[first])
    return {
        f"{name}: {key}": value
        for name in others
        for key, value in arrangements.differences(
            want, arrangements.step(trainer, batches[name])
        ).items()
    }


@pytest.mark.parametrize("objective", arrangements.OBJECTIVES)
def test_a_step_does_not_depend_on_its_arrangement(objective):
    trainer = arrangements.OBJECTIVES[objective](one_layer)
    batches = arrangements.arrangements_of(objective)
    if objective not in ("mix", "kto"):  # the others share the layouts of "mix"
        batches = {name: batches[name] for name in ("unequal micro-batches", "packed")}
    found = worst_difference(trainer, batches)
    assert max(found.values()) < 1e-5, found


def test_the_side_of_the_padding_changes_no_bit():
    trainer = arrangements.OBJECTIVES["orpo"](one_layer)
    left, right = (
        trainer.model_input(helpers.as_ids(arrangements.PAIRS, left=side))["batch"]
        for side in (True, False)
    )
    toys.assert_bit_identical(left, right)
    laid_out = helpers.padded(arrangements.PAIRS, length=64)
    toys.assert_bit_identical(left, trainer.model_input(laid_out)["batch"])


def test_a_trainer_that_averages_averages_fails():
    trainer = arrangements.OBJECTIVES["sigmoid"](one_layer)

    def mean(model, batch):
        return loss_output.LossOutput.from_scalar(
            trainer.objective.loss(model, batch).finalize()["loss"]
        )

    trainer.with_loss_fn(mean)
    batches = arrangements.pair_arrangements()
    chosen = {name: batches[name] for name in ("one batch", "unequal micro-batches")}
    assert max(worst_difference(trainer, chosen).values()) > 1e-2


def test_aot_without_its_pass_over_the_step_would_differ():
    trainer = arrangements.OBJECTIVES["mix"](one_layer)
    batches = arrangements.pair_arrangements()["unequal micro-batches"]
    inputs = [trainer.model_input(batch) for batch in batches]
    coupled = arrangements.step(trainer, batches)["loss"]
    alone = trainer._stepper.step(1, inputs, 0.0)["loss"]
    assert abs(float(coupled) - float(alone)) > 1e-3


def check_matrix(devices, objective):
    found = virtual_devices.run("tests.sft.dpo.invariance_run", devices, objective, devices=8)
    layouts = 2 if objective == "kto" else 3
    assert len(found["found"]) == layouts * 2 * (1 + devices.count(","))
    worst = max(found["found"], key=found["found"].get)
    print(f"worst: {worst}: {found['found'][worst]}")
    assert found["found"][worst] < 1e-5, found["found"]
    return found["mean of means"]


def test_no_layout_split_or_number_of_devices_changes_a_step_of_a_decoder():
    wrong = check_matrix("1,4", "reward")
    assert wrong["reward"] > 1e-2, "a wrong trainer would not be noticed"


@pytest.mark.slow
@pytest.mark.parametrize("objective", invariance_run.OBJECTIVES)
def test_nor_one_of_any_objective(objective):
    check_matrix("1,2,4,8", objective)
