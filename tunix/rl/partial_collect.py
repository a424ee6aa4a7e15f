"""A learner's rollout of which the slow completions are carried over to later steps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from tunix.generate import completion
from tunix.rl import (
    dynamic_sampling,
    partial_rollout,
    prompt_batch,
    roles,
    rollout_text,
    trajectory,
)
from tunix.rl.rollout import base_rollout, completion_check

if TYPE_CHECKING:
    from tunix.rl import rl_learner, rollout_turn

Columns = Mapping[str, Sequence[Any]]


def collect(
    learner: "rl_learner.RLLearner[Any]",
    batch: Columns,
    draw: Callable[[], Columns | None],
) -> dynamic_sampling.Collected:
    """Return as many groups as ``batch`` has prompts: those that are finished first.

    A batch more than that is under way; so the first step draws two, and the last ones, when
    the data has ended and ``batch`` is empty, finish what is left.
    """
    wanted = len(batch[prompt_batch.PROMPTS]) if batch else len(learner.carried)
    pool = [*learner.carried, *_groups(learner, batch)]
    if batch and not learner.carried and (more := draw()) is not None:
        pool += _groups(learner, more)

    turn, config = learner.turns.current, learner.rollout_config
    assert turn is not None  # collect is called in one
    taken, carried = partial_rollout.finish(
        pool,
        lambda prompts, count, call: _generate(learner, turn, prompts, count, call),
        wanted=wanted,
        limit=config.max_tokens_to_generate,
    )
    learner.carried = carried
    turn.leave_engine()
    columns = {name: [group.row[name] for group in taken] for name in taken[0].row}
    samples = [sample for group in taken for sample in group.samples]
    done = [sample.completion for sample in samples]
    output = base_rollout.RolloutOutput(
        prompts=[group.prompt for group in taken],
        prompt_tokens=[group.prompt_ids for group in taken],
        completions=done,
        text=[rollout_text.completion_text(learner.rl_cluster.tokenizer, one) for one in done],
    )
    versions = [sample.versions for sample in samples]
    groups = learner.score(turn, output, columns, policy_version=turn.policy_version)
    return dynamic_sampling.Collected(
        groups=_with_versions(groups, versions),
        metrics={
            "carried_groups": float(len(carried)),
            "carried_tokens": float(
                sum(len(sample.token_ids) for group in carried for sample in group.samples)
            ),
        },
    )


def _groups(learner: "rl_learner.RLLearner[Any]", batch: Columns) -> list[partial_rollout.Group]:
    """Return the prompts of a batch as groups without tokens."""
    if not batch:
        return []
    columns = prompt_batch.check(batch)
    learner.reward_manager.check_columns([*columns, *prompt_batch.ROLLOUT_COLUMNS])
    encoded = rollout_text.encode_prompts(
        learner.rl_cluster.tokenizer,
        columns[prompt_batch.PROMPTS],
        apply_chat_template=False,
        max_prompt_length=learner.rollout_config.max_prompt_length,
    )
    return [
        partial_rollout.Group(
            prompt=one.text,
            prompt_ids=one.token_ids,
            row={name: values[i] for name, values in columns.items()},
            samples=(partial_rollout.Sample.empty(),) * learner.num_generations,
        )
        for i, one in enumerate(encoded)
    ]


def _generate(
    learner: "rl_learner.RLLearner[Any]",
    turn: "rollout_turn.Turn",
    prompts: Sequence[Int[np.ndarray, " T"]],
    num_samples: int,
    call: int,
) -> tuple[Sequence[completion.Completion], int]:
    """Return the next stretch of each sample, and the version of the policy that drew it."""
    cluster = learner.rl_cluster
    stretch = learner.algo_config.partial_rollout_tokens
    assert stretch is not None  # else nothing is carried over
    config = dataclasses.replace(learner.rollout_config, max_tokens_to_generate=stretch)

    def generate() -> base_rollout.RolloutOutput:
        with cluster.perf.span("rollout"):
            key = cluster.sampling_key(roles.Mode.TRAIN, turn.step, call)
            with cluster.on_device(roles.Role.ROLLOUT):
                completions = cluster.rollout.generate(
                    [ids.tolist() for ids in prompts], config, key=key, num_samples=num_samples
                )
        completion_check.check(
            completions,
            engine=type(cluster.rollout).__name__,
            count=len(prompts) * num_samples,
            longest=stretch,
        )
        return base_rollout.RolloutOutput(
            prompts=[""] * len(prompts),
            prompt_tokens=prompts,
            completions=completions,
            text=[""] * len(completions),
        )

    sampled = turn.sample(generate, [""] * len(prompts))
    return sampled.output.completions, sampled.policy_version


def _with_versions(
    groups: Sequence[trajectory.Group], versions: Sequence[Int[np.ndarray, " T"]]
) -> list[trajectory.Group]:
    """Return the groups with the version of every token."""
    rows = iter(versions)

    def known(one: trajectory.Trajectory) -> trajectory.Trajectory:
        own = next(rows)
        prompt, sampled = one.spans
        return dataclasses.replace(one, spans=(prompt, dataclasses.replace(sampled, versions=own)))

    return [
        dataclasses.replace(group, trajectories=[known(one) for one in group.trajectories])
        for group in groups
    ]
