"""Questions to train and to evaluate on, and the rewards of replies, as the settings ask."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tunix.cli.loading import reward_loading
from tunix.cli.schemas import rl_schema
from tunix.data import errors, iterators, prompts, report
from tunix.rl import tasks
from tunix.rl.collecting import curriculum, prompt_batch
from tunix.rl.scoring import rewards
from tunix.tokenizers import tokenizer_adapter

Batch = prompts.PromptBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLData:
    """What a run asks and how it judges."""

    train_ds: iterators.Batches[Batch] | curriculum.Curriculum
    eval_batch: Batch | None
    """All questions of the evaluation set."""
    reward_fns: Sequence[rewards.RewardFn]
    max_tokens_to_generate: int
    unused: Sequence[str]
    """Functions of reward files that are none, and why, in words."""
    reports: Sequence[report.DataReport]


def load(run: rl_schema.RLRun, tokenizer: tokenizer_adapter.TokenizerAdapter) -> RLData:
    """Return the data of a built-in task or of the user's files.

    Raises:
        DataError: lists everything wrong with the files and their rows.
        ConfigError: lists everything wrong with the reward files.
    """
    if run.task is not None:
        task = tasks.TASKS[run.task]
        train, held_out = task.split(seed=run.seed, held_out=run.evaluation.num_questions)
        steps = run.rollout_config.total_generation_steps or task.max_tokens_to_generate
    else:
        assert run.data_path is not None  # the schema has checked it
        assert run.rollout_config.total_generation_steps is not None
        train, held_out = run.data_path, run.eval_data_path
        reward_loading.load_reward_functions(run.reward_functions)  # faults come before long work
        steps = run.rollout_config.total_generation_steps
    settings = prompts.PromptDataConfig.composed(
        run,
        max_prompt_length=run.rollout_config.max_prompt_length,
        shuffle_seed=run.seed,
        num_epochs=run.num_train_epochs,
    )
    name = f"task {run.task}" if run.task is not None else str(run.data_path)
    faults, rows, eval_batch = errors.Faults(), None, None
    reports: list[report.DataReport] = []
    columns_of: dict[str, list[str]] = {}
    with faults.noted():
        rows, account = prompts.load_rows(train, tokenizer, settings, name=name)
        _require_a_batch(account, run.batch_size)
        reports.append(account)
        columns_of[name] = [*rows[0], *prompt_batch.ROLLOUT_COLUMNS]
    if held_out is not None:
        held_out_name = f"{name if run.eval_data_path is None else run.eval_data_path} (held out)"
        with faults.noted():
            eval_batch, account = _load_all(held_out, tokenizer, settings, name=held_out_name)
            reports.append(account)
            columns_of[held_out_name] = [*eval_batch, *prompt_batch.ROLLOUT_COLUMNS]
    reward_fns: list[rewards.RewardFn] = []
    if name in columns_of:
        reward_fns = _reward_functions(run, columns_of[name])
        _note_missing_columns(run, reward_fns, columns_of, faults)
    faults.check()
    assert rows is not None  # else there are faults
    return RLData(
        train_ds=_training_batches(run, rows, settings),
        eval_batch=eval_batch,
        reward_fns=reward_fns,
        max_tokens_to_generate=steps,
        unused=reward_loading.unused_functions(run.reward_functions, columns=columns_of[name]),
        reports=reports,
    )


def _reward_functions(run: rl_schema.RLRun, columns: Sequence[str]) -> list[rewards.RewardFn]:
    if run.task is not None:
        return [*tasks.TASKS[run.task].reward_fns]
    return reward_loading.load_reward_functions(run.reward_functions, columns=columns)


def _note_missing_columns(
    run: rl_schema.RLRun,
    reward_fns: Sequence[rewards.RewardFn],
    columns_of: Mapping[str, Sequence[str]],
    faults: errors.Faults,
) -> None:
    """Note what functions need and data do not have, before a model is made to answer.

    A reward manager with another idea of what is needed says so when it is asked.
    """
    check = getattr(run.algo_config.reward_manager_class, "check_columns", None)
    if not reward_fns or check is not rewards.RewardManager.check_columns:
        return
    manager = rewards.RewardManager(reward_fns)
    for source, columns in columns_of.items():
        try:
            manager.check_columns(columns)
        except rewards.RewardError as error:
            faults.note(errors.DataError(source, [f"{source}: {p}" for p in error.problems]))


def _training_batches(
    run: rl_schema.RLRun, rows: Sequence[Mapping[str, Any]], settings: prompts.PromptDataConfig
) -> iterators.Batches[Batch] | curriculum.Curriculum:
    """Return the prompts to train on, each once per epoch or by their solve rates."""
    if run.curriculum is None:
        return prompts.batches_of(rows, settings)
    epochs = run.num_train_epochs
    return curriculum.Curriculum(
        rows,
        run.curriculum,
        batch_size=run.batch_size,
        num_batches=None if epochs is None else epochs * (len(rows) // run.batch_size),
        seed=run.seed,
    )


def _require_a_batch(account: report.DataReport, batch_size: int) -> None:
    if account.rows < batch_size:
        problem = f"{account.rows} rows are no batch of batch_size {batch_size}"
        raise errors.DataError(account.source, [f"{problem}; give more, or a smaller batch_size"])


def _load_all(
    source: str | Sequence[dict[str, Any]],
    tokenizer: tokenizer_adapter.TokenizerAdapter,
    settings: prompts.PromptDataConfig,
    *,
    name: str,
) -> tuple[Batch, report.DataReport]:
    """Return a whole data set as one batch, in its order."""
    one_by_one = dataclasses.replace(
        settings,
        batch_size=1,
        shuffle_seed=None,
        num_epochs=1,
        last_batch="keep",
        solve_rate_column=None,
        min_solve_rate=0.0,
        max_solve_rate=1.0,
    )
    batches, account = prompts.load(source, tokenizer, one_by_one, name=name)
    rows = list(batches)
    return {name: [row[name][0] for row in rows] for name in rows[0]}, account


def question_of(prompt: str | Sequence[dict[str, Any]]) -> str:
    """Return a prompt in words: the text, or the last message of the conversation."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
