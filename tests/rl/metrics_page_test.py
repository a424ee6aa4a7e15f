"""The page about metrics names all that are logged, and nothing else."""

import re

import pytest

from tests.repo import source
from tests.rl import helpers, process_rewards
from tests.rl.ppo import ppo_learner_test
from tunix.rl.collecting import curriculum
from tunix.rl.ppo import ppo_learner
from tunix.rl.scoring import rewards

PAGE = source.ROOT / "docs" / "reference" / "rl_metrics.md"
TABLE = re.compile(r"^\| `(train|eval)/\.\.\.` .*\n(?:\|.*\n)+", re.MULTILINE)
NAME = re.compile(r"^\| `([^`]+)`", re.MULTILINE)
OFF_POLICY = re.compile(r"`(off_policy_\w+)`")
FUNCTIONS = ("share_of_fives", "sometimes", "lazily")
ROWS = [{"prompts": text} for text in helpers.PROMPTS]


def sometimes(prompt, completion):
    """Applies to some completions only."""
    return None if len(set(completion)) % 2 else 0.5


def documented():
    """Return every metric that the page's tables name."""
    page = PAGE.read_text()
    names = set()
    for table in TABLE.finditer(page):
        found = NAME.findall(table.group(0))[1:]
        names |= {f"{table.group(1)}/{name}" for name in found}
        if table.group(1) == "eval":
            names |= {f"eval/greedy/{name}" for name in found}
    measured_later = set(OFF_POLICY.findall(page)) - {"off_policy_steps"}
    return names | {f"train/{name}" for name in measured_later}


def logged(cluster):
    """Return the names a cluster has logged, functions replaced by a word."""
    history = cluster.actor_trainer.metrics_logger._history
    pattern = re.compile("|".join(FUNCTIONS))
    return {pattern.sub("FUNCTION", name) for name in history}


@pytest.fixture(scope="module")
def of_grpo():
    """A run with everything that logs something where sampler and trainer take turns."""
    cluster = helpers.make_cluster(reference=helpers.tiny_decoder(7), eval_every_n_steps=1)
    learner = helpers.make_learner(
        cluster,
        [
            helpers.share_of_fives,
            sometimes,
            rewards.Reward(fn=process_rewards.lazily, run_in="process"),
        ],
        beta=0.05,
        log_entropy=True,
        epsilon_c=3.0,
        rollout_correction="truncated-token",
        advantage_estimator="grpo",
        dynamic_sampling=True,
    )
    data = curriculum.Curriculum(
        ROWS, curriculum.CurriculumConfig(), batch_size=2, num_batches=2, seed=0
    )
    learner.train(data, [{"prompts": helpers.PROMPTS[:2]}])
    return logged(cluster)


@pytest.fixture(scope="module")
def of_ppo():
    """A run with a critic whose rollouts are made ahead, in stretches."""
    cluster = ppo_learner_test.make_cluster(reference=helpers.tiny_decoder(7))
    config = ppo_learner.PPOConfig(
        num_generations=2, beta=0.1, off_policy_steps=1, partial_rollout_tokens=3
    )
    learner = ppo_learner.PPOLearner(cluster, config, [helpers.share_of_fives, sometimes])
    learner.train([{"prompts": helpers.PROMPTS[:2]}] * 4)
    cluster.close()
    return logged(cluster)


def test_every_metric_is_on_the_page(of_grpo, of_ppo):
    assert sorted((of_grpo | of_ppo) - documented()) == []


def test_everything_on_the_page_is_logged(of_grpo, of_ppo):
    assert sorted(documented() - of_grpo - of_ppo) == []


def test_the_page_says_of_every_metric_what_it_is():
    for table in TABLE.finditer(PAGE.read_text()):
        for row in table.group(0).splitlines()[2:]:
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert len(cells) == 4, row
