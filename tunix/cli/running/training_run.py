"""What ``tunix sft`` and ``tunix dpo`` do alike: say what is trained, measure, train, sum up."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from tunix.cli import console
from tunix.cli.loading import baseline, build
from tunix.cli.running import run_plan, run_settings, run_text
from tunix.cli.schemas import optimizers, schema, sft_schema
from tunix.data import errors, report, sources
from tunix.sft import peft_trainer, profiler, run_directory
from tunix.sft.loop import nonfinite

OUT = console.OUT

Trainer = peft_trainer.PeftTrainer
Summary = dict[str, Any]


def split_rows(
    rows: Sequence[sources.Row], fraction: float, *, name: str
) -> tuple[Sequence[sources.Row], Sequence[sources.Row]]:
    """Return the rows to train on and those that ``train_fraction`` holds out.

    At least one of each, unless the fraction is 1.

    Raises:
        DataError: If there is one row, and some should be held out.
    """
    if fraction == 1.0:
        return rows, []
    if len(rows) < 2:
        problem = f"train_fraction {fraction} needs two rows or more, and there is {len(rows)}"
        raise errors.DataError(name, [f"{problem}; add rows, or set eval_data_path instead"])
    cut = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    return rows[:cut], rows[cut:]


def print_header(
    options: schema.ModelOptions,
    model: nnx.Module,
    reports: Iterable[report.DataReport],
    directory: run_directory.RunDirectory,
) -> None:
    """Say what is trained, on which data, and where the run is kept."""
    reports = list(reports)
    total, trained = build.count_parameters(model)
    OUT.print(f"model      {options.model_id}  ({total:,} parameters, {trained:,} trained)")
    for account in reports:
        OUT.print(f"data       {account}")
    asked = [account for account in reports if account.trained_tokens is not None]
    for line in run_text.record(directory, asked):
        OUT.print(line)
    OUT.print(f"run        {directory.path}")


def places(
    options: sft_schema.BatchLoopOptions, directory: run_directory.RunDirectory
) -> dict[str, Any]:
    """Return what a trainer is told of the run's directory, traces of a profile included."""
    window = options.profiler_options
    traces = str(directory.tensorboard)  # where TensorBoard looks for them
    profile = window and profiler.ProfilerOptions.composed(window, log_dir=traces)
    return {**build.places(options, directory), "profiler_options": profile}


def plan(
    options: sft_schema.BatchLoopOptions,
    optimizer: optimizers.OptimizerOptions,
    train_ds: Iterable[Any],
    eval_ds: Iterable[Any] | None,
) -> run_plan.RunPlan:
    """Return how long the run will be, and say what it is too short for."""
    batches = operator.length_hint(train_ds)  # 0 of a stream
    data_steps = -(-batches // (options.gradient_accumulation_steps or 1)) or None
    made = run_plan.RunPlan(max_steps=options.max_steps, data_steps=data_steps)
    for note in made.notes(options, optimizer, has_evaluation=eval_ds is not None):
        OUT.print(f"note       {note}")
    profiler_options = options.profiler_options
    if profiler_options is not None and profiler_options.skip_first_n_steps >= made.steps:
        skipped = run_plan.in_words(profiler_options.skip_first_n_steps)
        problem = f"skips {skipped}, and the run has {made.steps}: nothing is recorded"
        OUT.print(f"note       profiler_options.skip_first_n_steps {problem}")
    return made


def train(
    trainer: Trainer,
    train_ds: Iterable[Any],
    eval_ds: Iterable[Any] | None,
    directory: run_directory.RunDirectory,
    *,
    planned: run_plan.RunPlan,
    shown: Sequence[str],
    finish: Callable[[], Summary] = dict,
) -> None:
    """Train, evaluating before and after, and write the summary.

    Args:
        trainer: Closed at the end, whatever happens.
        train_ds: Batches to train on.
        eval_ds: Batches to evaluate on, if there are any.
        directory: Where the summary goes.
        planned: How long the run should be.
        shown: Metrics of the evaluation that are printed, before and after; ``NAME/`` stands for
            all that begin so.
        finish: Returns what else belongs into the summary, while the trainer is still open.
    """
    first = trainer.train_steps
    try:
        has_stopped = trainer.stopping is not None and trainer.stopping.is_over
        if 0 < first < planned.steps and not has_stopped:
            OUT.print(f"continuing from step {first}")
        before = after = None
        if eval_ds is not None:
            before = baseline.measured_once(
                directory,
                lambda: trainer.evaluate(eval_ds),
                step=first,
                content=getattr(eval_ds, "content", None),
            )
            if before is not None:
                _require_finite(before, "before training")
        trainer.train(train_ds, eval_ds)
        if trainer.train_steps == first:
            notes = _end_notes(trainer, planned)
            run_settings.require_unfinished(directory, first, planned.steps, notes)
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
    for note in _end_notes(trainer, planned):
        OUT.print(f"note       {note}")
    OUT.print(f"finished after step {summary['steps']}; everything is in {directory.path}")


def _end_notes(trainer: Trainer, planned: run_plan.RunPlan) -> Iterator[str]:
    """Yield why the run is over, if that is not because it took its steps."""
    if trainer.stopping is not None and trainer.stopping.is_over:
        yield trainer.stopping.reason()
    else:
        yield from planned.ended_early(trainer.train_steps)


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
