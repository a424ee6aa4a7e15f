import numpy as np
import pytest

from tunix.rl.reward_fns import formats, json_schema, maths, texts
from tunix.rl.scoring import rewards

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
}


def test_json_is_judged_by_its_schema():
    pytest.importorskip("jsonschema")
    replies = [
        '{"age": 3}',
        'Sure:\n```json\n{"age": 3}\n```\nBye.',
        '{"age": -3}',
        '{"age": NaN}',
        "age: 3",
        "[" * 100_000,
    ]
    score = json_schema.JsonSchema(parses=0.25)
    assert score(replies, [SCHEMA] * 6) == [1.0, 1.0, 0.25, 0.0, 0.0, 0.0]
    assert score(['{"age": 1}'], ['{"required": ["name"]}']) == [0.25]
    with pytest.raises(ValueError, match="no JSON schema"):
        score(["1"], [{"type": "number-ish"}])


def test_a_schema_fetches_nothing():
    pytest.importorskip("jsonschema")
    manager = rewards.RewardManager(json_schema.JsonSchema())
    remote = {"$ref": "http://192.0.2.1/schema.json"}
    with pytest.raises(rewards.RewardError, match="Unresolvable"):
        manager(["?"], ["1"], {"schema": [remote]})


def test_the_last_closed_block_is_what_counts():
    assert texts.last_block("a\n```py\n1\n```\nb\n```\n2\n3\n```") == "2\n3\n"
    assert texts.last_block("no block") == "no block"
    assert texts.last_block("```py\nunclosed") == "```py\nunclosed"


def test_a_pattern_must_match_the_whole_reply():
    replies = [
        "<think>\nhm\n</think>\n42",
        "<think>hm</think>",
        "so <think>hm</think> 42",
        "<think>a</think><think>b</think> 42",
    ]
    assert formats.THINK_AND_ANSWER(replies) == [1.0, 0.0, 0.0, 0.0]


def test_length_counts_tokens_and_falls_outside_of_its_range():
    score = formats.LengthWithin(least=2, most=4, slack=4)
    rows = [np.arange(n) for n in (0, 1, 2, 4, 6, 9)]
    assert score(rows) == [0.5, 0.75, 1.0, 1.0, 0.5, 0.0]


def test_maths_is_judged_by_the_answer_of_the_solution():
    manager = rewards.RewardManager(maths.right_answer)
    replies = [r"So \boxed{\frac{1}{2}}", "The answer is 0.5.", "1, 2, 3", "none"]
    answers = ["1/2", 0.5, "steps\n#### 3", "1"]
    assert manager(["?"] * 4, replies, {"answer": answers}).total.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_math_verify_agrees_where_both_can_say(capfd):
    pytest.importorskip("math_verify")
    manager = rewards.RewardManager(maths.math_verify_reward(workers=1))
    replies = [r"So $\boxed{\frac{1}{2}}$", r"$\boxed{3}$"]
    assert manager(["?"] * 2, replies, {"answer": ["0.5", "4"]}).total.tolist() == [1.0, 0.0]
    manager.close()
    assert "Timeout" not in capfd.readouterr().err


def test_a_row_without_a_schema_is_not_judged_and_one_that_is_none_is_refused():
    pytest.importorskip("jsonschema")
    score = json_schema.JsonSchema()
    assert score(['{"age": 3}'] * 2, [SCHEMA, None]) == [1.0, None]
    for wrong in ("{age", "3", 3):
        with pytest.raises(ValueError, match=r"this is no JSON schema: .*(mapping|age)"):
            score(["1"], [wrong])
