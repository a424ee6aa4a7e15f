"""The ``tunix`` command: picks a subcommand and hands the rest of the line to it."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from tunix import version
from tunix.cli import errors
from tunix.sft.loop import interrupt

# Modules are imported when their command runs, so that help is instant.
COMMANDS = {
    "sft": ("tunix.cli.sft_main", "train on examples: conversations, prompts with answers, text"),
    "dpo": ("tunix.cli.dpo_main", "train on preferences: which of two answers is better"),
    "reward": ("tunix.cli.reward_main", "train a reward model on pairs of answers"),
    "grpo": ("tunix.cli.grpo_main", "train by reinforcement: sample, score, reinforce"),
    "ppo": ("tunix.cli.ppo_main", "train by reinforcement with a critic"),
    "checkpoints": ("tunix.cli.checkpoints_main", "list, verify and prune checkpoints"),
    "report": ("tunix.cli.report_main", "one HTML page about a run: curves, completions, alarms"),
    "generate": ("tunix.cli.generate_main", "sample from a model"),
    "export": ("tunix.cli.export_main", "write a trained model for transformers"),
}


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:12}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="tunix",
        usage="tunix COMMAND ...",
        description="Post-training of large language models in JAX and Flax NNX.",
        epilog=f"commands:\n{listing}\n\n`tunix COMMAND --help` explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tunix {version.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` is the line without the program's name.

    Returns:
        0 on success, 2 after a message about bad input, 130 when interrupted.
    """
    parser = _parser()
    line = sys.argv[1:] if argv is None else argv
    if not line:
        parser.print_help(sys.stderr)
        return errors.USAGE_ERROR
    arguments = parser.parse_args(line)

    def command(line: Sequence[str]) -> int:
        with interrupt.ending_at_once():
            module = importlib.import_module(COMMANDS[arguments.command][0])
        return module.main(line)

    return errors.run(command, [f"tunix {arguments.command}", *arguments.arguments])


if __name__ == "__main__":
    sys.exit(main())
