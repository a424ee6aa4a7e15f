"""What the first lines of a reinforcement learning run say about rewards and prompts."""

from collections.abc import Iterator

from tunix.cli.loading import rl_data
from tunix.cli.schemas import rl_schema
from tunix.rl import reward_manager
from tunix.rl.monitoring import evaluation


def lines(
    run: rl_schema.RLRun,
    data: rl_data.RLData,
    manager: reward_manager.AbstractRewardManager,
) -> Iterator[str]:
    """Yield which functions reward, and what is easily overlooked about the prompts."""
    if isinstance(manager, reward_manager.SequenceRewardManager):
        yield "rewards    " + ", ".join(
            name if weight == 1.0 else f"{weight:g} x {name}"
            for name, weight in manager.weights.items()
        )
        if data.eval_batch is not None:
            counted = run.evaluation.accuracy_function or manager.names[0]
            yield (
                f"accuracy   share of held-out replies with at least {evaluation.RIGHT:g} from "
                f"{counted} (evaluation.accuracy_function)"
            )
    yield from (f"note       {text}" for text in data.unused)
    rows = data.reports[0].rows
    if run.curriculum is None and rows % run.batch_size:
        yield (
            f"note       batch_size {run.batch_size} does not divide {rows} rows: every epoch "
            f"leaves out {rows % run.batch_size}, drawn anew each time"
        )
