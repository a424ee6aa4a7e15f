"""``tunix grpo``: train a model by group-relative policy optimisation or one of its relatives."""

import sys
from collections.abc import Sequence

from tunix.cli import command, errors
from tunix.cli.loading import python_files
from tunix.cli.running import rl_run
from tunix.cli.schemas import grpo_schema
from tunix.rl.grpo import grpo_learner
from tunix.utils import reference_names


def main(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` describes; ``argv[0]`` is the name of the program."""
    request = command.parse(
        argv,
        grpo_schema.GrpoRun,
        "Train a model by reinforcement (GRPO and its relatives, see `algorithm`).",
        choose=grpo_schema.run_class,
        prepare=python_files.load_before_checks,
    )
    return rl_run.train(request, grpo_learner.GRPOLearner)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))


__getattr__ = reference_names.hints(__name__)
