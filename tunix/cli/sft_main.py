"""``tunix sft``: train a model on examples."""

import operator
import sys
from collections.abc import Sequence

import rich.console

from tunix.cli import baseline, build, command, errors, optimizers, sft_loading, sft_schema
from tunix.sft import best_checkpoint, ema, neftune, peft_trainer, profiler, run_directory

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
    train_ds, eval_ds, reports = sft_loading.load_data(run, tokenizer)
    total, trained = build.count_parameters(model)
    _OUT.print(
        f"model      {run.model_config.model_id}  ({total:,} parameters, {trained:,} trained)"
    )
    for account in reports:
        _OUT.print(f"data       {account}", markup=False)
    _OUT.print(f"run        {directory.path}")

    config = training_config(run, directory)
    batches_per_step = run.training_config.gradient_accumulation_steps
    total_steps = config.max_steps or -(-operator.length_hint(train_ds) // batches_per_step)
    optimizer = optimizers.make_optimizer(run.optimizer_config, total_steps)
    if run.training_config.ema_decay is not None:
        optimizer = ema.with_ema(optimizer, run.training_config.ema_decay)
    if run.loss_config.neftune_alpha is not None:
        neftune.add_noise(model, run.loss_config.neftune_alpha, seed=run.seed)
    trainer = peft_trainer.PeftTrainer(model, optimizer, config).with_loss_fn(run.loss_config)
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
        if eval_ds is not None and run.training_config.ema_decay is not None:
            with ema.averaged(trainer):
                summary["eval_of_average"] = trainer.evaluate(eval_ds)
        if run.training_config.keep_best is not None:
            summary["best_step"] = trainer.checkpoint_manager.best_step()
    finally:
        trainer.close()
    directory.write_summary(summary)
    if before is not None and after is not None:
        _OUT.print(f"held-out loss  {before['loss']:.4f} -> {after['loss']:.4f}")
    _OUT.print(f"finished after step {summary['steps']}; everything is in {directory.path}")
    return 0


def training_config(
    run: sft_schema.SftRun, directory: run_directory.RunDirectory
) -> peft_trainer.TrainingConfig:
    """Return the trainer's settings."""
    options = run.training_config
    checkpointing = build.checkpointing_options(options.checkpointing_options)
    best = options.keep_best
    if checkpointing is not None and best is not None:
        checkpointing = best_checkpoint.keep_best(
            checkpointing, num=best.num, metric=best.metric, mode=best.mode
        )
    return peft_trainer.TrainingConfig(
        eval_every_n_steps=options.eval_every_n_steps,
        early_stopping=options.early_stopping,
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
