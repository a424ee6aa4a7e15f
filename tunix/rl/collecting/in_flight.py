"""Rollouts that are sampled and not trained on yet, as a checkpoint holds them.

The weights that sampled them are gone when a run resumes, so what the engine returned is kept.
All the rest (prompts, rewards, advantages) follows from the data and is made again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tunix.generate import completion
from tunix.rl.collecting import partial_rollout, ragged_json, rollout_state
from tunix.rl.rollout import base_rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class InFlight:
    """Where a rollout began, and what was sampled for it."""

    step: int
    """Rollouts before it, in the whole run."""
    batches: int
    """Batches drawn before it."""
    data_state: Mapping[str, Any]
    """Position in the data before it, see ``TrainData.state``."""
    observed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Metrics of what the data observed just before it."""
    carried: Sequence[partial_rollout.Group] = ()
    """Groups that rollouts before it have left unfinished."""
    sampled: Sequence[rollout_state.Sampled] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the same as something that JSON can hold."""
        return {
            "step": self.step,
            "batches": self.batches,
            "data_state": dict(self.data_state),
            "observed": dict(self.observed),
            "carried": [partial_rollout.to_json(group) for group in self.carried],
            "sampled": [_sampled_to_json(one) for one in self.sampled],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "InFlight":
        """Return what :meth:`to_json` was called on."""
        carried = tuple(partial_rollout.from_json(group) for group in saved["carried"])
        sampled = tuple(_sampled_from_json(one) for one in saved["sampled"])
        return cls(**{**saved, "carried": carried, "sampled": sampled})


def _sampled_to_json(one: rollout_state.Sampled) -> dict[str, Any]:
    output = one.output
    return {
        "policy_version": one.policy_version,
        "prompts": list(output.prompts),
        "text": list(output.text),
        "has_logprobs": output.has_logprobs,
        "finish_reasons": [done.finish_reason for done in output.completions],
        "prompt_tokens": ragged_json.encode(output.prompt_tokens),
        "token_ids": ragged_json.encode([done.token_ids for done in output.completions]),
        "logps": ragged_json.encode([done.logps for done in output.completions]),
        "sampled_logps": ragged_json.encode([done.sampled_logps for done in output.completions]),
    }


def _sampled_from_json(saved: Mapping[str, Any]) -> rollout_state.Sampled:
    rows = zip(
        ragged_json.decode(saved["token_ids"]),
        ragged_json.decode(saved["logps"]),
        ragged_json.decode(saved["sampled_logps"]),
        saved["finish_reasons"],
        strict=True,
    )
    output = base_rollout.RolloutOutput(
        prompts=saved["prompts"],
        prompt_tokens=ragged_json.decode(saved["prompt_tokens"]),
        completions=[
            completion.Completion(
                token_ids=ids, logps=logps, sampled_logps=sampled_logps, finish_reason=reason
            )
            for ids, logps, sampled_logps, reason in rows
        ],
        text=saved["text"],
        has_logprobs=saved["has_logprobs"],
    )
    return rollout_state.Sampled(output=output, policy_version=saved["policy_version"])
