"""The data of a reinforcement learning run, as its settings ask for it."""

import pytest

from tunix.cli import command, grpo_schema, rl_data
from tunix.data import errors, prompts
from tunix.generate import tokenizer_adapter

CURRICULUM = "curriculum: {}"


@pytest.fixture
def load(tmp_path, tiny_model):
    """Return a function from YAML to the data of a built-in task."""
    tokenizer = tokenizer_adapter.load_tokenizer(tiny_model)

    def loaded(text, longest=500):
        path = tmp_path / "run.yaml"
        head = "task: larger_number\nnum_train_epochs: 1\nmodel_config: {model_id: x}\n"
        path.write_text(head + f"rollout_config: {{max_prompt_length: {longest}}}\n" + text)
        request = command.parse(["tunix", str(path)], grpo_schema.GrpoRun, "")
        return rl_data.load(request.run, tokenizer)

    return loaded


@pytest.mark.parametrize("text", ["", CURRICULUM])
def test_training_gets_every_batch_from_the_first_one_on(load, text):
    data = load(text)
    batches = list(data.train_ds)
    assert len(batches) == len(data.train_ds)
    first = batches[0][prompts.PROMPTS]
    assert first == next(iter(load(text).train_ds))[prompts.PROMPTS]


def test_a_curriculum_stands_at_its_first_draw(load):
    assert load(CURRICULUM).train_ds.get_state()["draws"] == 0


def test_training_and_held_out_prompts_have_names_of_their_own(load):
    names = [account.source for account in load("").reports]
    assert names == ["task larger_number", "task larger_number (held out)"]


def test_prompts_to_train_and_to_evaluate_on_are_all_read_before_anything_is_said(load):
    with pytest.raises(errors.DataError) as caught:
        load("", longest=1)
    assert caught.value.source == "task larger_number, task larger_number (held out)"
