"""A reinforcement learning run from its first line to its last, whatever the algorithm."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from tunix.cli import command, console
from tunix.cli.loading import baseline, build, rl_data, rl_models
from tunix.cli.report import report
from tunix.cli.running import rl_notes, run_plan, run_settings, run_text
from tunix.cli.schemas import rl_schema, role_meshes
from tunix.data import fingerprint
from tunix.rl import rl_cluster, rl_learner
from tunix.rl.cluster import memory
from tunix.rl.monitoring import evaluation
from tunix.sft import memory_estimate, run_directory
from tunix.sft.metrics import plots
from tunix.utils import json_lines

_OUT = console.OUT

RunT = TypeVar("RunT", bound=rl_schema.RLRun)

LearnerFn = Callable[..., rl_learner.RLLearner[Any]]
"""``fn(cluster, algo_config, reward_fns)``: a learner class."""


def train(request: command.Request[RunT], learner_class: LearnerFn) -> int:
    """Do the job that was asked for; return the exit code of the command.

    The policy is measured on the held-out questions before and after, and everything the run
    writes is in its directory.
    """
    started = time.perf_counter()
    if request.only_print:
        print(request.resolved_yaml, end="")
        return 0
    run = request.run
    with run_settings.opened(request, run.task or run.algorithm_name) as directory:
        cluster, data = rl_models.make_cluster(run, directory)
        try:
            learner = learner_class(cluster, run.algo_config, data.reward_fns)
            _print_header(run, directory, learner, data)
            build.report_memory(memory.estimate(learner), _OUT, memory_estimate.RL_REMEDIES)
            before, after = _train_and_measure(learner, run, directory, data)
            steps = cluster.actor_trainer.train_steps
        finally:
            cluster.close()
        seconds = time.perf_counter() - started
        _report(run, directory, data, before, after, steps=steps, seconds=seconds)
    return 0


def measure(
    learner: rl_learner.RLLearner[Any],
    eval_ds: Sequence[rl_data.Batch],
    options: rl_schema.EvaluationOptions,
) -> dict[str, Any]:
    """Return how the current policy answers the held-out questions, greedily and sampled."""
    cluster = learner.rl_cluster
    step = cluster.actor_trainer.train_steps
    found = []
    for call, (temperature, num_samples) in enumerate(
        ((0.0, 1), (None, options.samples_per_question))
    ):
        found.append(
            evaluation.evaluate(
                cluster,
                eval_ds,
                learner.reward_manager,
                key=cluster.sampling_key(rl_cluster.Mode.EVAL, step, call),
                temperature=temperature,
                num_samples=num_samples,
            )
        )
    return report.measurement(*found)


def _train_and_measure(
    learner: rl_learner.RLLearner[Any],
    run: rl_schema.RLRun,
    directory: run_directory.RunDirectory,
    data: rl_data.RLData,
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the measurements of the untrained and the trained policy, None without questions."""
    trainer = learner.rl_cluster.actor_trainer
    first = trainer.train_steps
    eval_ds = [] if data.eval_batch is None else [data.eval_batch]
    before = None
    if data.eval_batch is not None:
        before = baseline.measured_once(
            directory,
            lambda: measure(learner, eval_ds, run.evaluation),
            step=first,
            content=fingerprint.of_row(data.eval_batch),
        )
    learner.train(data.train_ds, eval_ds or None)
    if trainer.train_steps == first:
        planned = rl_models.plan(run, data)
        notes = planned.ended_early(first)
        run_settings.require_unfinished(directory, first, planned.steps, notes)
    return before, measure(learner, eval_ds, run.evaluation) if eval_ds else None


def _report(
    run: rl_schema.RLRun,
    directory: run_directory.RunDirectory,
    data: rl_data.RLData,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    *,
    steps: int,
    seconds: float,
) -> None:
    """Write the summary and the picture, and print both in words."""
    rows = json_lines.read(directory.metrics)
    notes = list(rl_models.plan(run, data).ended_early(steps))
    if before and after and before.get("accuracy_function") != after["accuracy_function"]:
        before = None
        notes.append(f"{directory.baseline.name} is about another accuracy_function: no comparison")
    summary = report.summarize(before, after, rows, steps=steps, seconds=seconds)
    directory.write_summary(summary)
    picture = directory.path / "reward.png"
    title = f"{run.algorithm_name.upper()} on {run.task or run.data_path}, "
    title += run.model_config.model_id
    try:
        plots.save_curves(picture, report.curves(rows, before, after), title=title, ylabel="reward")
    except ImportError as error:  # the numbers are in metrics.jsonl
        picture = f"not drawn: {error}"
    if data.eval_batch is not None and before is not None and after is not None:
        questions = [rl_data.question_of(p) for p in data.eval_batch["prompts"]]
        report.print_comparison(_OUT, before, after)
        report.print_replies(_OUT, questions, before, after, run.evaluation.num_shown)
    _print_lines(
        *(f"note       {note}" for note in notes),
        f"{run_plan.in_words(steps)} in {seconds:.0f} s; {summary['tokens_per_second']} tokens/s "
        "in training",
        f"plot       {picture}",
        f"run        {directory.path}",
    )


def _print_header(
    run: rl_schema.RLRun,
    directory: run_directory.RunDirectory,
    learner: rl_learner.RLLearner[Any],
    data: rl_data.RLData,
) -> None:
    cluster = learner.rl_cluster
    total, trained = build.count_parameters(cluster.actor_trainer.model)
    step, planned = cluster.actor_trainer.train_steps, rl_models.plan(run, data)
    places = role_meshes.in_words(cluster.config.role_to_mesh, run.used_roles)
    _print_lines(
        f"model      {run.model_config.model_id}  ({total:,} parameters, {trained:,} trained)",
        *([f"devices    {places}"] if places is not None else []),
        f"algorithm  {run.algorithm_name}",
        f"task       {run.task or run.data_path}",
        *(f"data       {account}" for account in data.reports),
        f"rollouts   {run.batch_size} prompts x {run.algo_config.num_generations} completions, "
        f"up to {data.max_tokens_to_generate} tokens each",
        *rl_notes.lines(run, data, learner.reward_manager),
        *run_text.record(
            directory, data.reports[:1], remedy="set system_prompt or give lists of messages"
        ),
        *(f"note       {note}" for note in _plan_notes(run, data)),
        f"run        {directory.path}",
        *([f"continuing from step {step}"] if 0 < step < planned.steps else []),
    )


def _plan_notes(run: rl_schema.RLRun, data: rl_data.RLData) -> Iterator[str]:
    loop, critic = run.rl_training_config, run.critic_optimizer
    rates = [loop.actor_optimizer_config, *([] if critic is None else [critic])]
    has_evaluation = data.eval_batch is not None
    yield from rl_models.plan(run, data).notes(loop, *rates, has_evaluation=has_evaluation)


def _print_lines(*lines: str) -> None:
    for line in lines:
        _OUT.print(line)
