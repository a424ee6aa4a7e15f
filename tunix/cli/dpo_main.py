"""``tunix dpo``: train a model on preferences."""

import sys
from collections.abc import Sequence
from typing import Any

import optax
from flax import nnx

from tunix.cli import command, errors
from tunix.cli.loading import build, preference_loading
from tunix.cli.running import run_settings, run_text, training_run
from tunix.cli.schemas import dpo_schema, optimizers
from tunix.data.preference import preference_batches
from tunix.models import lora
from tunix.sft import run_directory, training_config
from tunix.sft.dpo import (
    cpo_trainer,
    dpo_trainer,
    kto_trainer,
    precompute,
    preference_trainer,
    simpo_trainer,
)

_SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "logps/accuracies")
Dataset = preference_loading.Dataset


def main(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` describes; ``argv[0]`` is the name of the program."""
    request = command.parse(argv, dpo_schema.DpoRun, "Train a model on preferences.")
    if request.only_print:
        print(request.resolved_yaml, end="")
        return 0
    with run_settings.opened(request, "dpo") as directory:
        _train(request.run, directory)
    return 0


def _train(run: dpo_schema.DpoRun, directory: run_directory.RunDirectory) -> None:
    mesh = build.make_mesh(run.model_config.mesh)
    model, path = build.make_model(run.model_config, mesh)
    tokenizer = run_text.make_tokenizer(run.tokenizer_config, model, path, directory)
    data, held_out = preference_loading.load_data(run, tokenizer)
    reports = [dataset.report for dataset in (data, held_out) if dataset is not None]
    training_run.print_header(run.model_config, model, reports, directory)
    length = preference_loading.longest(data, held_out)
    build.report_context(path, model, length, "max_prompt_length or max_response_length")
    train_ds, eval_ds = make_batches(run, model, directory, data, held_out)
    planned = training_run.plan(run.training_config, run.optimizer_config, train_ds, eval_ds)
    optimizer = optimizers.make_optimizer(run.optimizer_config, planned.steps)
    reference = None
    if run.reference != "precomputed" and not lora.is_lora_enabled(model):
        reference, _ = build.make_model(run.model_config, mesh)
    trainer = make_trainer(model, reference, optimizer, make_config(run, directory))
    row_length = preference_batches.row_length(data.examples, run.data)
    build.report_memory(trainer.memory_estimate(run.batch_size, row_length), training_run.OUT)
    training_run.train(trainer, train_ds, eval_ds, directory, planned=planned, shown=_SHOWN)


def make_batches(
    run: dpo_schema.DpoRun,
    model: nnx.Module,
    directory: run_directory.RunDirectory,
    data: Dataset,
    held_out: Dataset | None,
) -> tuple[Any, Any]:
    """Return batches to train and to evaluate on.

    They hold the reference's log-probabilities, unless those are asked for live. The reference is
    the model before training, which is what a run starts from, resumed or not.
    """
    is_precomputed = run.has_reference and run.reference == "precomputed"
    batches: Any = preference_batches.pair_batches
    if run.is_rated:
        batches = preference_batches.rating_batches
    made = []
    for name, dataset, settings in (
        ("train", data, run.data),
        ("eval", held_out, run.eval_data),
    ):
        if dataset is None:
            made.append(None)
            continue
        examples = dataset.examples
        if is_precomputed:
            examples = precompute.with_reference_logps(
                examples,
                model,
                batch_size=run.batch_size,
                cache_file=directory.path / f"reference_{name}.npz",
            )
        made.append(batches(examples, settings))
    return made[0], made[1]


def make_config(
    run: dpo_schema.DpoRun, directory: run_directory.RunDirectory
) -> training_config.TrainingConfig:
    """Return the trainer's settings."""
    places = training_run.places(run.training_config, directory)
    return run.objective(pbar_description=run.objective_name, **places)


def make_trainer(
    model: nnx.Module,
    reference: nnx.Module | None,
    optimizer: optax.GradientTransformation,
    config: training_config.TrainingConfig,
) -> preference_trainer.PreferenceTrainer:
    """Return the trainer of an objective; ``reference`` is asked where batches say nothing."""
    match config:
        case simpo_trainer.SimPOTrainingConfig():
            return simpo_trainer.SimPOTrainer(model, optimizer, config)
        case cpo_trainer.CPOTrainingConfig():
            return cpo_trainer.CPOTrainer(model, optimizer, config)
        case kto_trainer.KTOTrainingConfig():
            return kto_trainer.KTOTrainer(model, reference, optimizer, config)
        case dpo_trainer.DPOTrainingConfig():
            return dpo_trainer.DPOTrainer(model, reference, optimizer, config)
    raise TypeError(f"no trainer takes a {type(config).__name__}")


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
