"""The code of the guides runs as it is printed."""

import re

import pytest

from tests.repo import source

GUIDES = source.ROOT / "docs" / "how-to"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(name, model):
    """Run the blocks of a guide one after the other and return their names."""
    found: dict = {}
    for block in BLOCK.findall((GUIDES / name).read_text()):
        exec(compile(block.replace("path/to/model", model), name, "exec"), found)
    return found


def test_the_guide_to_data(tiny_model):
    found = run("data.md", tiny_model)
    assert found["report"].rows == 2
    assert [account.rows for account in found["reports"]] == [4, 6]
    assert next(iter(found["batches"]))["input_tokens"].shape == (2, 64)


def test_the_guide_to_generation(tiny_model, capsys):
    found = run("generation.md", tiny_model)
    assert len(found["found"]) == 4
    assert [1 <= len(reply.token_ids) <= 8 for reply in found["replies"]] == [True, True]
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_guide_to_evaluation(tiny_model):
    found = run("evaluation.md", tiny_model)["found"]
    assert found["generation/ends_with_the_answer"] >= found["generation/exact_match"]
    assert 1 <= found["generation/completion_length"] <= 8


@pytest.mark.slow
def test_the_guide_to_custom_training(tiny_model):
    found = run("custom_training.md", tiny_model)
    assert found["losses_seen"][-1] < found["losses_seen"][0]
    assert found["of_average"] > 0
    assert found["trainer"].train_steps == 2
