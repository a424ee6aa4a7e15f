"""What ``tunix sft`` and ``tunix dpo`` do alike: say what is trained, measure, train, sum up."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import rich.console
from flax import nnx

from tunix.cli import baseline, build, schema, sft_schema
from tunix.data import report, sources
from tunix.sft import nonfinite, peft_trainer, profiler, run_directory

OUT = rich.console.Console(highlight=False, soft_wrap=True)

Trainer = peft_trainer.PeftTrainer
Summary = dict[str, Any]


def split_rows(
    rows: Sequence[sources.Row], fraction: float
) -> tuple[Sequence[sources.Row], Sequence[sources.Row]]:
    """Return the rows to train on, at least one, and those that ``train_fraction`` holds out."""
    cut = max(1, round(len(rows) * fraction))
    return rows[:cut], rows[cut:]


def print_header(
    options: schema.ModelOptions,
    model: nnx.Module,
    reports: Iterable[report.DataReport],
    directory: run_directory.RunDirectory,
) -> None:
    """Say what is trained, on which data, and where the run is kept."""
    total, trained = build.count_parameters(model)
    OUT.print(f"model      {options.model_id}  ({total:,} parameters, {trained:,} trained)")
    for account in reports:
        OUT.print(f"data       {account}", markup=False)
    OUT.print(f"run        {directory.path}")


def loop_settings(
    options: sft_schema.SftTrainingOptions, directory: run_directory.RunDirectory
) -> dict[str, Any]:
    """Return what ``training_config`` says of a trainer's ``TrainingConfig``."""
    return {
        **build.loop_settings(options, directory),
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "profiler_options": _profiler_options(options.profiler_options, directory),
        "max_inflight_computations": options.max_inflight_computations,
    }


def total_steps(options: sft_schema.SftTrainingOptions, train_ds: Iterable[Any]) -> int:
    """Return how many optimizer steps the run takes: what learning-rate schedules refer to."""
    batches_per_step = options.gradient_accumulation_steps
    return options.max_steps or -(-operator.length_hint(train_ds) // batches_per_step)


def train(
    trainer: Trainer,
    train_ds: Iterable[Any],
    eval_ds: Iterable[Any] | None,
    directory: run_directory.RunDirectory,
    *,
    shown: Sequence[str],
    finish: Callable[[], Summary] = dict,
) -> None:
    """Train, evaluating before and after, and write the summary.

    Args:
        trainer: Closed at the end, whatever happens.
        train_ds: Batches to train on.
        eval_ds: Batches to evaluate on, if there are any.
        directory: Where the summary goes.
        shown: Metrics of the evaluation that are printed, before and after; ``NAME/`` stands for
            all that begin so.
        finish: Returns what else belongs into the summary, while the trainer is still open.
    """
    if trainer.train_steps:
        OUT.print(f"continuing from step {trainer.train_steps}")
    try:
        before = after = None
        if eval_ds is not None:
            before = baseline.measured_once(
                directory, lambda: trainer.evaluate(eval_ds), step=trainer.train_steps
            )
            if before is not None:
                _require_finite(before, "before training")
        trainer.train(train_ds, eval_ds)
        if eval_ds is not None:
            after = trainer.evaluate(eval_ds)
        summary = {"steps": trainer.train_steps, "eval_before": before, "eval_after": after}
        summary |= finish()
    finally:
        trainer.close()
    directory.write_summary(summary)
    if after is not None:
        _require_finite(after, f"after step {summary['steps']}")
    if before is not None and after is not None:
        families = tuple(name for name in shown if name.endswith("/"))
        for name in after:
            if name in before and (name in shown or name.startswith(families)):
                OUT.print(f"held-out {name}  {before[name]:.4f} -> {after[name]:.4f}")
    OUT.print(f"finished after step {summary['steps']}; everything is in {directory.path}")


def _require_finite(evaluation: Mapping[str, float], when: str) -> None:
    """Raise if a model finds the held-out data impossible: it is no result, whatever was learned.

    Raises:
        DivergedError: Says when.
    """
    if not math.isfinite(loss := evaluation["loss"]):
        raise nonfinite.DivergedError(
            f"the loss on held-out data is {loss} {when}; look at that data and at the model's "
            "weights, and lower the learning rate if both are sound"
        )


def _profiler_options(
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
