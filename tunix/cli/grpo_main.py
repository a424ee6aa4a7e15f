"""``tunix grpo``: train a model by group-relative policy optimisation."""

import sys
import time
from collections.abc import Sequence

import rich.console

from tunix.cli import (
    baseline,
    build,
    command,
    errors,
    grpo_schema,
    optimizers,
    report,
    rl_data,
)
from tunix.models import lora
from tunix.rl import evaluation, rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout
from tunix.sft import plots, run_directory

_OUT = rich.console.Console(highlight=False)


def main(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` describes; ``argv[0]`` is the name of the program."""
    started = time.perf_counter()
    request = command.parse(argv, grpo_schema.GrpoRun, "Train a model by reinforcement (GRPO).")
    if request.only_print:
        print(request.resolved_yaml, end="")
        return 0
    run = request.run
    directory = build.make_run_directory(run.run_dir, run.task or "grpo")
    directory.write_config(request.resolved_yaml)
    cluster, data = make_cluster(run, directory)
    try:
        learner = grpo_learner.GRPOLearner(cluster, run.grpo_config, data.reward_fns)
        step = cluster.actor_trainer.train_steps
        _print_header(run, directory, cluster, data)
        before = after = None
        eval_ds = None if data.eval_batch is None else [data.eval_batch]
        if eval_ds is not None:
            before = baseline.measured_once(
                directory, lambda: measure(learner, eval_ds, run.evaluation), step=step
            )
        learner.train(data.train_ds, eval_ds)
        if eval_ds is not None:
            after = measure(learner, eval_ds, run.evaluation)
        steps = cluster.actor_trainer.train_steps
    finally:
        cluster.close()

    rows = report.read_metrics(directory.metrics)
    seconds = time.perf_counter() - started
    summary = report.summarize(before, after, rows, steps=steps, seconds=seconds)
    directory.write_summary(summary)
    picture = directory.path / "reward.png"
    title = f"GRPO on {run.task or run.data_path}, {run.model_config.model_id}"
    plots.save_curves(picture, report.curves(rows, before, after), title=title, ylabel="reward")
    if data.eval_batch is not None and before is not None and after is not None:
        questions = [rl_data.question_of(p) for p in data.eval_batch["prompts"]]
        report.print_comparison(_OUT, before, after)
        report.print_replies(_OUT, questions, before, after, run.evaluation.num_shown)
    _print_lines(
        f"{steps} steps in {seconds:.0f} s; {summary['tokens_per_second']} tokens/s in training",
        f"plot       {picture}",
        f"run        {directory.path}",
    )
    return 0


def make_cluster(
    run: grpo_schema.GrpoRun, directory: run_directory.RunDirectory
) -> tuple[rl_cluster.RLCluster, rl_data.RLData]:
    """Return the models, ready to sample and train, and the questions to ask them."""
    mesh = build.make_mesh(run.model_config.mesh)
    actor, path = build.make_model(run.model_config, mesh)
    tokenizer = build.make_tokenizer(run.tokenizer_config, path)
    data = rl_data.load(run, tokenizer)
    reference = None
    if run.grpo_config.beta != 0.0 and not lora.is_lora_enabled(actor):
        reference, _ = build.make_model(run.model_config, mesh)
    cluster_config = rl_cluster.ClusterConfig(
        training_config=training_config(run, directory, data),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=data.max_tokens_to_generate,
            max_prompt_length=run.rollout_config.max_prompt_length,
            temperature=run.rollout_config.temperature,
            top_p=run.rollout_config.top_p,
            top_k=run.rollout_config.top_k,
            seed=run.seed,
        ),
        role_to_mesh={} if mesh is None else dict.fromkeys(rl_cluster.Role, mesh),
    )
    cluster = rl_cluster.RLCluster(
        actor=actor, reference=reference, tokenizer=tokenizer, cluster_config=cluster_config
    )
    return cluster, data


def training_config(
    run: grpo_schema.GrpoRun, directory: run_directory.RunDirectory, data: rl_data.RLData
) -> rl_cluster.RLTrainingConfig:
    """Return the trainer's settings."""
    options = run.rl_training_config
    checkpointing = build.checkpointing_options(options.checkpointing_options)
    return rl_cluster.RLTrainingConfig(
        actor_optimizer=optimizers.make_optimizer(
            options.actor_optimizer_config, total_steps(run, data)
        ),
        mini_batch_size=options.mini_batch_size,
        train_micro_batch_size=options.train_micro_batch_size,
        rollout_micro_batch_size=options.rollout_micro_batch_size,
        eval_every_n_steps=options.eval_every_n_steps,
        max_steps=options.max_steps,
        checkpoint_root_directory=None if checkpointing is None else str(directory.checkpoints),
        checkpointing_options=checkpointing,
        metrics_logging_options=build.metrics_options(options.metrics_logging_options, directory),
        data_sharding_axis=options.data_sharding_axis,
        alarms=options.alarms,
        pbar_description="grpo",
    )


def total_steps(run: grpo_schema.GrpoRun, data: rl_data.RLData) -> int:
    """Return how many optimizer steps the run takes: what learning-rate schedules refer to."""
    options = run.rl_training_config
    if options.max_steps is not None:
        return options.max_steps
    updates = -(-run.batch_size // (options.mini_batch_size or run.batch_size))
    return len(data.train_ds) * updates * run.grpo_config.num_iterations


def measure(
    learner: grpo_learner.GRPOLearner,
    eval_ds: Sequence[rl_data.Batch],
    options: grpo_schema.EvaluationOptions,
) -> dict:
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


def _print_header(
    run: grpo_schema.GrpoRun,
    directory: run_directory.RunDirectory,
    cluster: rl_cluster.RLCluster,
    data: rl_data.RLData,
) -> None:
    total, trained = build.count_parameters(cluster.actor_trainer.model)
    step = cluster.actor_trainer.train_steps
    _print_lines(
        f"model      {run.model_config.model_id}  ({total:,} parameters, {trained:,} trained)",
        f"task       {run.task or run.data_path}",
        *(f"data       {account}" for account in data.reports),
        f"rollouts   {run.batch_size} prompts x {run.grpo_config.num_generations} completions, "
        f"up to {data.max_tokens_to_generate} tokens each",
        f"run        {directory.path}",
        *([f"continuing from step {step}"] if step else []),
    )


def _print_lines(*lines: str) -> None:
    for line in lines:
        _OUT.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
