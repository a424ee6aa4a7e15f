import json

import numpy as np

from tunix.generate import completion
from tunix.rl.collecting import in_flight, rollout_state
from tunix.rl.rollout import base_rollout


def test_what_was_sampled_comes_back_from_json_bit_for_bit():
    rng = np.random.default_rng(0)
    done = [
        completion.Completion(
            token_ids=rng.integers(0, 2**31 - 1, n).astype(np.int32),
            logps=rng.normal(size=n).astype(np.float32),
            sampled_logps=rng.normal(size=n).astype(np.float32),
            finish_reason=reason,
        )
        for n, reason in [(3, "length"), (1, "stop"), (2, "stop"), (3, "length")]
    ]
    output = base_rollout.RolloutOutput(
        prompts=["é\n", "B"],
        prompt_tokens=[np.asarray([5]), np.asarray([7, 8])],
        completions=done,
        text=["a", "", "\u0000", "d"],
    )
    flight = in_flight.InFlight(
        step=4,
        batches=5,
        data_state={"state": {"draws": 5}},
        observed={"curriculum_seen": 0.1},
        sampled=[rollout_state.Sampled(output=output, policy_version=3)],
    )
    back = in_flight.InFlight.from_json(json.loads(json.dumps(flight.to_json())))
    (sampled,) = back.sampled
    assert (back.step, back.batches, back.data_state, back.observed) == (
        *(4, 5, {"state": {"draws": 5}}),
        {"curriculum_seen": 0.1},
    )
    assert sampled.policy_version == 3
    assert sampled.output.prompts == output.prompts and sampled.output.text == output.text
    np.testing.assert_equal(sampled.output.prompt_tokens, output.prompt_tokens)
    for one, expected in zip(sampled.output.completions, done, strict=True):
        assert one.finish_reason == expected.finish_reason
        for name in ("token_ids", "logps", "sampled_logps"):
            found, wanted = getattr(one, name), getattr(expected, name)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)


def test_a_rollout_of_which_nothing_was_sampled_is_only_a_position():
    flight = in_flight.InFlight(step=1, batches=2, data_state={})
    assert in_flight.InFlight.from_json(json.loads(json.dumps(flight.to_json()))) == flight
