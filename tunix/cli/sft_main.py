"""``tunix sft``: train a model on examples."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from tunix.cli import command, errors
from tunix.cli.loading import build, sft_loading
from tunix.cli.running import run_plan, run_settings, run_text, sft_generation, training_run
from tunix.cli.schemas import optimizers, sft_schema
from tunix.sft import neftune, peft_trainer, run_directory
from tunix.sft.checkpoints import best_checkpoint
from tunix.sft.loop import ema, generation_eval
from tunix.utils import config as config_lib

_SHOWN = ("loss", generation_eval.PREFIX)


def main(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` describes; ``argv[0]`` is the name of the program."""
    request = command.parse(argv, sft_schema.SftRun, "Train a model on examples.")
    if request.only_print:
        print(request.resolved_yaml, end="")
        return 0
    with run_settings.opened(request, "sft") as directory:
        _train(request.run, directory)
    return 0


def _train(run: sft_schema.SftRun, directory: run_directory.RunDirectory) -> None:
    options = run.training_config
    model, path = build.make_model(run.model_config, build.make_mesh(run.model_config.mesh))
    tokenizer = run_text.make_tokenizer(run.tokenizer_config, model, path, directory)
    data = sft_loading.load_data(run, tokenizer)
    generation = None
    if run.evaluation.generation is not None and data.questions is not None:
        generation = sft_generation.make(
            run.evaluation.generation, data.questions, tokenizer, directory
        )
    training_run.print_header(run.model_config, model, data.reports, directory)
    build.report_context(path, model, sft_loading.longest(run, data), "max_target_length")
    planned = training_run.plan(options, run.optimizer_config, data.train_ds, data.eval_ds)
    _require_evaluations(options, planned.steps)
    trainer = make_trainer(run, model, directory, planned.steps).with_eval_metrics(generation)
    build.report_memory(
        trainer.memory_estimate(run.data.batch_size, run.data.max_target_length), training_run.OUT
    )

    def evaluate(name: str) -> Any:
        if generation is not None:
            place = directory.generations / name
            trainer.with_eval_metrics(dataclasses.replace(generation, directory=place))
        assert data.eval_ds is not None  # else it is not called
        return trainer.evaluate(data.eval_ds)

    training_run.train(
        trainer,
        data.train_ds,
        data.eval_ds,
        directory,
        planned=planned,
        shown=_SHOWN,
        finish=lambda: _other_weights(trainer, options, None if data.eval_ds is None else evaluate),
    )


def _other_weights(
    trainer: peft_trainer.PeftTrainer,
    options: sft_schema.SupervisedLoopOptions,
    evaluate: Callable[[str], Any] | None,
) -> training_run.Summary:
    """Return what the summary says of weights that are not the last.

    Args:
        trainer: Has the last weights, and afterwards perhaps the best.
        options: Say which others there are.
        evaluate: Evaluates those that the trainer has, under a name; ``None`` without data.
    """
    found: training_run.Summary = {}
    if evaluate is not None and options.ema_decay is not None:
        with ema.averaged(trainer):
            found["eval_of_average"] = evaluate("average")
    if options.keep_best is not None:
        found["best_step"] = trainer.checkpoint_manager.best_step()
        if evaluate is not None and options.keep_best.restore_best:
            best_checkpoint.restore_best(trainer)
            found["eval_of_best"] = evaluate("best")
    return found


def _require_evaluations(options: sft_schema.SupervisedLoopOptions, steps: int) -> None:
    """Raise if something goes by evaluations, of which the run has none.

    Raises:
        ConfigError: Says what, and why there are none.
    """
    every = options.eval_every_n_steps
    asked = {"early_stopping": options.early_stopping, "keep_best": options.keep_best}
    if every > steps and (names := [name for name, value in asked.items() if value is not None]):
        problem = (
            f"training_config.eval_every_n_steps {every} is more than the "
            f"{run_plan.in_words(steps)} of the run, so there is no evaluation for "
            f"{' and '.join(names)} to go by; set it to {steps} or less"
        )
        raise config_lib.ConfigError("the run's settings", [problem])


def make_trainer(
    run: sft_schema.SftRun,
    model: nnx.Module,
    directory: run_directory.RunDirectory,
    total_steps: int,
) -> peft_trainer.PeftTrainer:
    """Return the trainer, at the run's last checkpoint if it has one."""
    optimizer = optimizers.make_optimizer(run.optimizer_config, total_steps)
    if run.training_config.ema_decay is not None:
        optimizer = ema.with_ema(optimizer, run.training_config.ema_decay)
    if run.loss_config.neftune_alpha is not None:
        neftune.add_noise(model, run.loss_config.neftune_alpha, seed=run.seed)
    config = training_config(run, directory)
    return peft_trainer.PeftTrainer(model, optimizer, config).with_loss_fn(run.loss_config)


def training_config(
    run: sft_schema.SftRun, directory: run_directory.RunDirectory
) -> peft_trainer.TrainingConfig:
    """Return the trainer's settings."""
    options = run.training_config
    settings = training_run.places(options, directory)
    best, checkpointing = options.keep_best, settings["checkpointing_options"]
    if checkpointing is not None and best is not None:
        settings["checkpointing_options"] = best_checkpoint.keep_best(
            checkpointing, num=best.num, metric=best.metric, mode=best.mode
        )
    return peft_trainer.TrainingConfig.composed(run, options, pbar_description="sft", **settings)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
