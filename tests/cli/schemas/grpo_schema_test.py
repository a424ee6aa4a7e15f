import dataclasses

import pytest

from tunix.cli import command
from tunix.cli.schemas import grpo_schema, ppo_schema
from tunix.rl.grpo import dapo_learner, gspo_learner
from tunix.utils import config

BASE = "task: larger_number\nnum_train_epochs: 1\nmodel_config: {model_id: x}\n"


@pytest.fixture
def parse(tmp_path):
    """Return a function from YAML and overrides to the run that they describe."""

    def parsed(text, *overrides, run_class=grpo_schema.GrpoRun, choose=grpo_schema.run_class):
        path = tmp_path / "run.yaml"
        path.write_text(BASE + text)
        return command.parse(["tunix", str(path), *overrides], run_class, "", choose=choose)

    return parsed


@pytest.mark.parametrize("name", list(grpo_schema.ALGORITHMS))
def test_an_algorithm_has_the_defaults_of_its_own_config(parse, name, tmp_path):
    request = parse(f"algorithm: {name}")
    assert isinstance(request.run, grpo_schema.GrpoRun)
    assert request.run.algo_config == grpo_schema.ALGORITHMS[name]()
    assert request.run.algorithm_name == name
    # What was resolved says everything and leads to the same run.
    path = tmp_path / "resolved.yaml"
    path.write_text(request.resolved_yaml)
    again = command.parse(
        ["tunix", str(path)], grpo_schema.GrpoRun, "", choose=grpo_schema.run_class
    )
    assert again.resolved_yaml == request.resolved_yaml
    assert again.run.algo_config == request.run.algo_config


def test_the_block_changes_what_the_algorithm_chose(parse):
    request = parse("algorithm: gspo\ngrpo_config: {epsilon: 0.01}", "grpo_config.num_iterations=2")
    expected = gspo_learner.GSPOConfig(epsilon=0.01, num_iterations=2)
    assert request.run.algo_config == expected


def test_dapo_without_its_buffer(parse):
    run = parse("algorithm: dapo\ngrpo_config: {overlong_buffer: null}").run
    assert run.algo_config == dapo_learner.DAPOConfig(overlong_buffer=None)


def problems_of(parse, text, **options):
    with pytest.raises(config.ConfigError) as caught:
        parse(text, **options)
    return list(caught.value.problems)


def test_an_unknown_algorithm_is_reported_with_the_rest(parse):
    first, second = problems_of(parse, "algorithm: dapoo\ngrpo_config: {epsilom: 0.1}")
    assert first.startswith("algorithm must be one of 'grpo', 'dapo'") and "'dapoo'" in first
    assert second == "unknown key 'grpo_config.epsilom' (did you mean 'epsilon'?)"


def test_only_ppo_has_a_critic(parse):
    text = "rl_training_config: {critic_optimizer_config: {learning_rate: 1.0e-3}}"
    (problem,) = problems_of(parse, text)
    assert problem.endswith("only `tunix ppo` trains a critic; remove it")
    run = parse(text, run_class=ppo_schema.PpoRun, choose=None).run
    assert run.critic_optimizer.learning_rate == 1e-3
    own = dataclasses.replace(run.rl_training_config, critic_optimizer_config=None)
    assert dataclasses.replace(run, rl_training_config=own).critic_optimizer == (
        own.actor_optimizer_config
    )


def test_an_update_cannot_have_more_prompts_than_a_rollout(parse):
    text = "batch_size: 4\nrl_training_config: {mini_batch_size: 8}"
    (problem,) = problems_of(parse, text)
    assert problem.startswith("rl_training_config.mini_batch_size 8 is more than the 4 prompts")
    assert parse(text, "batch_size=8").run.batch_size == 8
