import numpy as np
import pytest

from tunix.rl.collecting import prompt_batch


def test_columns_become_lists():
    columns = prompt_batch.check({"answer": np.array([1, 2]), "prompts": ("a", "b")})
    assert columns == {"prompts": ["a", "b"], "answer": [1, 2]}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        pytest.param(
            {"prompt": ["a"]}, "no column 'prompts'; there are ['prompt']", id="no prompts"
        ),
        pytest.param({"prompts": []}, "column 'prompts' is empty", id="empty"),
        pytest.param(
            {"prompts": ["a"], "x": [1, 2]}, "column 'x' has 2 values for 1 prompts", id="ragged"
        ),
        pytest.param(
            {"prompts": ["a"], "finish_reasons": ["x"]},
            "would hide the rollout's own",
            id="reserved",
        ),
        pytest.param({"prompts": "ab"}, "one text, not a list: write ['ab']", id="text"),
        pytest.param(["a"], "got a list", id="not a mapping"),
    ],
)
def test_a_batch_that_cannot_be_used_says_why(batch, message):
    with pytest.raises(prompt_batch.PromptBatchError) as caught:
        prompt_batch.check(batch)
    assert message in str(caught.value)


def test_batches_are_joined_whatever_their_sizes():
    joined = prompt_batch.concatenate(
        [{"prompts": ["a", "b"], "x": [1, 2]}, {"x": [3], "prompts": ["c"]}]
    )
    assert joined == {"prompts": ["a", "b", "c"], "x": [1, 2, 3]}


def test_rows_with_different_columns_cannot_be_joined():
    with pytest.raises(prompt_batch.PromptBatchError, match="row 1 has the columns"):
        prompt_batch.from_rows([{"prompts": "a"}, {"prompts": "b", "x": 1}])


def test_nothing_cannot_be_joined():
    with pytest.raises(prompt_batch.PromptBatchError, match="no rows"):
        prompt_batch.concatenate([])


def test_values_are_repeated_next_to_each_other():
    assert prompt_batch.repeated(["a", "b"], 2) == ["a", "a", "b", "b"]
