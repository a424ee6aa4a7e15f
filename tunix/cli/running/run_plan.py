"""How many steps a run will take, and what the settings ask for that will not happen in them."""

import dataclasses
from collections.abc import Iterator

from tunix.cli.schemas import optimizers, schedules, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The length of a run, as far as it is known before."""

    max_steps: int | None
    """Where the settings end it."""

    data_steps: int | None
    """Where the data ends it; ``None`` of a stream, or of data that is repeated for ever."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the run: what learning-rate schedules refer to."""
        ends = [end for end in (self.max_steps, self.data_steps) if end is not None]
        assert ends, "the schema asks for one of them"
        return min(ends)

    def notes(
        self,
        loop: schema.LoopOptions,
        *rates: optimizers.OptimizerOptions,
        has_evaluation: bool,
    ) -> Iterator[str]:
        """Yield a sentence for everything that the run is too short for.

        Args:
            loop: Says how often there is an evaluation.
            *rates: How each model is trained.
            has_evaluation: Whether there is something to evaluate on.
        """
        steps = self.steps
        if self.max_steps is not None and steps < self.max_steps:
            yield (
                f"the data ends after {in_words(steps)}, before max_steps {self.max_steps}, and so "
                "does the schedule of the learning rate; raise num_train_epochs to train longer"
            )
        for options in rates:
            yield from _rate_notes(options, steps)
        if has_evaluation and loop.eval_every_n_steps > steps:
            yield (
                f"there is no evaluation while training, only before and after: "
                f"eval_every_n_steps {loop.eval_every_n_steps} is more than the {in_words(steps)}"
            )

    def ended_early(self, steps: int) -> Iterator[str]:
        """Yield a sentence if a run ended after ``steps``, for lack of data, before the plan."""
        if steps < self.steps:
            yield (
                f"the data ended after {steps} of {in_words(self.steps)}, before the schedule of "
                "the learning rate; set max_steps to what the data has"
            )


def in_words(steps: int) -> str:
    """Return a number of steps, as ``1 step``."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _rate_notes(options: optimizers.OptimizerOptions, steps: int) -> Iterator[str]:
    reads = schedules.SCHEDULES[options.schedule_type].reads
    warmup = schedules.warmup_steps(options, steps) if "warmup_steps" in reads else 0
    if warmup >= steps:
        yield (
            f"the learning rate is still warming up when the run ends: {in_words(warmup)} of "
            f"warm-up, {in_words(steps)} in all"
        )
    elif "decay_steps" in reads and options.decay_steps is not None and options.decay_steps > steps:
        yield (
            f"the learning rate is still decaying when the run ends: decay_steps is "
            f"{options.decay_steps}, and the run has {in_words(steps)}"
        )
