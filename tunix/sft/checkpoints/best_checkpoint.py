"""Keeps the checkpoints of the best evaluations beside the latest one, and brings the best back."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

    from tunix.sft import peft_trainer


def keep_best(
    options: "ocp.CheckpointManagerOptions",
    *,
    num: int = 1,
    metric: str = "loss",
    mode: Literal["min", "max"] = "min",
) -> "ocp.CheckpointManagerOptions":
    """Return ``options`` that keep the ``num`` best checkpoints, and the latest to resume from.

    A checkpoint has the metrics of the evaluation after the same step; those saved without an
    evaluation are no candidates. ``max_to_keep`` counts the latest ones, as before.

    Args:
        options: How often to save.
        num: How many of the best to keep.
        metric: A metric of the evaluation.
        mode: Whether smaller or larger is better.
    """
    import orbax.checkpoint as ocp

    policies = ocp.checkpoint_managers

    def value(metrics: Mapping[str, float]) -> float:
        if metric not in metrics:
            raise KeyError(f"the best checkpoint goes by {metric!r}; there is {sorted(metrics)}")
        return metrics[metric]

    best = policies.BestN(
        get_metric_fn=value, reverse=mode == "min", n=num, keep_checkpoints_without_metrics=False
    )
    return dataclasses.replace(
        options,
        best_fn=value,
        best_mode=mode,
        max_to_keep=None,
        preservation_policy=policies.AnyPreservationPolicy(
            [policies.LatestN(n=options.max_to_keep), best]
        ),
    )


def restore_best(trainer: "peft_trainer.PeftTrainer") -> int:
    """Give ``trainer`` and its model the parameters of the best checkpoint; return its step.

    For exporting or sampling them after training: the optimizer's state stays as it is.

    Raises:
        ValueError: If no checkpoint has metrics to go by.
    """
    manager = trainer.checkpoint_manager
    step = manager.best_step()
    if step is None:
        raise ValueError(
            "no checkpoint has metrics of an evaluation; use keep_best options, and save at "
            "steps that are evaluated"
        )
    like: dict[str, Any] = {"params": trainer.state.params}
    arrays, _ = manager.restore_state(step, like)
    trainer.replace_state(dataclasses.replace(trainer.state, params=arrays["params"]))
    return step
