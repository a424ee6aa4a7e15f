"""``tunix dpo``: train a model on preferences."""

import sys
from collections.abc import Sequence
from typing import Any

import optax
import rich.console
from flax import nnx

from tunix.cli import baseline, build, command, dpo_schema, errors, optimizers, sft_main
from tunix.data import preference_batches, preference_data, preference_fit, sources
from tunix.generate import tokenizer_adapter
from tunix.sft import run_directory, training_config
from tunix.sft.dpo import (
    cpo_trainer,
    dpo_trainer,
    kto_trainer,
    precompute,
    preference_trainer,
    simpo_trainer,
)

_OUT = rich.console.Console(highlight=False, soft_wrap=True)
_NO_REFERENCE = ("orpo", "simpo", "cpo")
Dataset = preference_fit.PreferenceDataset


def main(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` describes; ``argv[0]`` is the name of the program."""
    request = command.parse(argv, dpo_schema.DpoRun, "Train a model on preferences.")
    if request.only_print:
        print(request.resolved_yaml, end="")
        return 0
    run = request.run
    directory = build.make_run_directory(run.run_dir, "dpo")
    directory.write_config(request.resolved_yaml)
    model, path = build.make_model(run.model_config, build.make_mesh(run.model_config.mesh))
    tokenizer = build.make_tokenizer(run.tokenizer_config, path)
    data, held_out = load_data(run, tokenizer)
    total, trained = build.count_parameters(model)
    _OUT.print(
        f"model      {run.model_config.model_id}  ({total:,} parameters, {trained:,} trained)"
    )
    for dataset in filter(None, (data, held_out)):
        _OUT.print(f"data       {dataset.report}", markup=False)
    _OUT.print(f"run        {directory.path}")
    train_ds, eval_ds = make_batches(run, model, directory, data, held_out)
    config = make_config(run, directory)
    batches_per_step = run.training_config.gradient_accumulation_steps
    total_steps = config.max_steps or -(-len(train_ds) // batches_per_step)
    optimizer = optimizers.make_optimizer(run.optimizer_config, total_steps)
    trainer = make_trainer(model, optimizer, config)
    if trainer.train_steps:
        _OUT.print(f"continuing from step {trainer.train_steps}")
    try:
        before = after = None
        if eval_ds is not None:
            before = baseline.measured_once(
                directory, lambda: trainer.evaluate(eval_ds), step=trainer.train_steps
            )
        trainer.train(train_ds, eval_ds)
        if eval_ds is not None:
            after = trainer.evaluate(eval_ds)
        summary = {"steps": trainer.train_steps, "eval_before": before, "eval_after": after}
    finally:
        trainer.close()
    directory.write_summary(summary)
    if before is not None and after is not None:
        for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/accuracies"):
            if name in after:
                _OUT.print(f"held-out {name}  {before[name]:.4f} -> {after[name]:.4f}")
    _OUT.print(f"finished after step {summary['steps']}; everything is in {directory.path}")
    return 0


def load_data(
    run: dpo_schema.DpoRun, tokenizer: tokenizer_adapter.TokenizerAdapter
) -> tuple[Dataset, Dataset | None]:
    """Return examples to train and to evaluate on, with what became of every row.

    Raises:
        DataError: lists everything wrong with the files and their rows.
    """
    columns = run.data_config.columns or None
    rows = sources.read_rows(run.data_path, columns=columns)
    held_out: list[sources.Row] = []
    held_out_name = f"{run.data_path} (held out)"
    if run.eval_data_path is not None:
        held_out = sources.read_rows(run.eval_data_path, columns=columns)
        held_out_name = run.eval_data_path
    elif run.train_fraction < 1.0:
        cut = max(1, round(len(rows) * run.train_fraction))
        rows, held_out = rows[:cut], rows[cut:]
    is_kto = run.objective_name == "kto"
    read = preference_data.tokenize_ratings if is_kto else preference_data.tokenize_pairs
    data = read(rows, tokenizer, run.data, name=run.data_path)
    if not held_out:
        return data, None
    return data, read(held_out, tokenizer, run.eval_data, name=held_out_name)


def make_batches(
    run: dpo_schema.DpoRun,
    model: nnx.Module,
    directory: run_directory.RunDirectory,
    data: Dataset,
    held_out: Dataset | None,
) -> tuple[Any, Any]:
    """Return batches to train and to evaluate on, with the reference's log-probabilities.

    The reference is the model before training, which is what a run starts from, resumed or not.
    """
    is_kto = run.objective_name == "kto"
    batches: Any = preference_batches.rating_batches if is_kto else preference_batches.pair_batches
    made = []
    for name, dataset, settings in (
        ("train", data, run.data),
        ("eval", held_out, run.eval_data),
    ):
        if dataset is None:
            made.append(None)
            continue
        examples = dataset.examples
        if run.objective_name not in _NO_REFERENCE:
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
    options = run.training_config
    checkpointing = build.checkpointing_options(options.checkpointing_options)
    return run.objective(
        eval_every_n_steps=options.eval_every_n_steps,
        max_steps=options.max_steps,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        checkpoint_root_directory=None if checkpointing is None else str(directory.checkpoints),
        checkpointing_options=checkpointing,
        metrics_logging_options=build.metrics_options(options.metrics_logging_options, directory),
        profiler_options=sft_main.profiler_options(options.profiler_options, directory),
        data_sharding_axis=options.data_sharding_axis,
        max_inflight_computations=options.max_inflight_computations,
        pbar_description=run.objective_name,
    )


def make_trainer(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    config: training_config.TrainingConfig,
) -> preference_trainer.PreferenceTrainer:
    """Return the trainer of an objective, to be given batches with reference log-probabilities."""
    match config:
        case simpo_trainer.SimPOTrainingConfig():
            return simpo_trainer.SimPOTrainer(model, optimizer, config)
        case cpo_trainer.CPOTrainingConfig():
            return cpo_trainer.CPOTrainer(model, optimizer, config)
        case kto_trainer.KTOTrainingConfig():
            return kto_trainer.KTOTrainer(model, None, optimizer, config)
        case dpo_trainer.DPOTrainingConfig():
            return dpo_trainer.DPOTrainer(model, None, optimizer, config)
    raise TypeError(f"no trainer takes a {type(config).__name__}")


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
