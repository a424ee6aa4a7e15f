"""``tunix ppo``: train a model by proximal policy optimisation."""

import sys
from collections.abc import Sequence

from tunix.cli import command, errors
from tunix.cli.loading import python_files
from tunix.cli.running import rl_run
from tunix.cli.schemas import ppo_schema
from tunix.rl.ppo import ppo_learner


def main(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` describes; ``argv[0]`` is the name of the program."""
    request = command.parse(
        argv,
        ppo_schema.PpoRun,
        "Train a model by reinforcement with a critic (PPO).",
        prepare=python_files.load_before_checks,
    )
    return rl_run.train(request, ppo_learner.PPOLearner)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
