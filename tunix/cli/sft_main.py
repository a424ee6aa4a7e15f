"""``tunix sft``: train a model on examples."""

import sys
from collections.abc import Sequence

import rich.console

from tunix.cli import baseline, build, command, errors, optimizers, sft_schema
from tunix.data import iterators, report, sft_data, sources
from tunix.generate import tokenizer_adapter
from tunix.sft import peft_trainer, profiler, run_directory

_OUT = rich.console.Console(highlight=False, soft_wrap=True)


def main(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` describes; ``argv[0]`` is the name of the program."""
    request = command.parse(argv, sft_schema.SftRun, "Train a model on examples.")
    if request.only_print:
        print(request.resolved_yaml, end="")
        return 0
    run = request.run
    directory = build.make_run_directory(run.run_dir, "sft")
    directory.write_config(request.resolved_yaml)
    model, path = build.make_model(run.model_config, build.make_mesh(run.model_config.mesh))
    tokenizer = build.make_tokenizer(run.tokenizer_config, path)
    train_ds, eval_ds, reports = load_data(run, tokenizer)
    total, trained = build.count_parameters(model)
    _OUT.print(
        f"model      {run.model_config.model_id}  ({total:,} parameters, {trained:,} trained)"
    )
    for account in reports:
        _OUT.print(f"data       {account}", markup=False)
    _OUT.print(f"run        {directory.path}")

    config = training_config(run, directory)
    batches_per_step = run.training_config.gradient_accumulation_steps
    total_steps = config.max_steps or -(-len(train_ds) // batches_per_step)
    optimizer = optimizers.make_optimizer(run.optimizer_config, total_steps)
    trainer = peft_trainer.PeftTrainer(model, optimizer, config)
    build.report_memory(
        trainer.memory_estimate(run.data.batch_size, run.data.max_target_length), _OUT
    )
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
        _OUT.print(f"held-out loss  {before['loss']:.4f} -> {after['loss']:.4f}")
    _OUT.print(f"finished after step {summary['steps']}; everything is in {directory.path}")
    return 0


def load_data(
    run: sft_schema.SftRun, tokenizer: tokenizer_adapter.TokenizerAdapter
) -> tuple[iterators.Batches, iterators.Batches | None, list[report.DataReport]]:
    """Return batches to train and to evaluate on, and what became of every row.

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
    examples, account = sft_data.tokenize_rows(rows, tokenizer, run.data, name=run.data_path)
    train_ds = sft_data.make_batches(examples, tokenizer, run.data)
    if not held_out:
        return train_ds, None, [account]
    examples, held_out_account = sft_data.tokenize_rows(
        held_out, tokenizer, run.eval_data, name=held_out_name
    )
    eval_ds = sft_data.make_batches(examples, tokenizer, run.eval_data)
    return train_ds, eval_ds, [account, held_out_account]


def training_config(
    run: sft_schema.SftRun, directory: run_directory.RunDirectory
) -> peft_trainer.TrainingConfig:
    """Return the trainer's settings."""
    options = run.training_config
    checkpointing = build.checkpointing_options(options.checkpointing_options)
    return peft_trainer.TrainingConfig(
        eval_every_n_steps=options.eval_every_n_steps,
        max_steps=options.max_steps,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        checkpoint_root_directory=None if checkpointing is None else str(directory.checkpoints),
        checkpointing_options=checkpointing,
        metrics_logging_options=build.metrics_options(options.metrics_logging_options, directory),
        profiler_options=profiler_options(options.profiler_options, directory),
        data_sharding_axis=options.data_sharding_axis,
        max_inflight_computations=options.max_inflight_computations,
        pbar_description="sft",
    )


def profiler_options(
    options: sft_schema.ProfilerOptions | None, directory: run_directory.RunDirectory
) -> profiler.ProfilerOptions | None:
    """Return the window to record; traces go where TensorBoard looks for them."""
    if options is None:
        return None
    return profiler.ProfilerOptions(
        log_dir=str(directory.tensorboard),
        skip_first_n_steps=options.skip_first_n_steps,
        profiler_steps=options.profiler_steps,
    )


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
