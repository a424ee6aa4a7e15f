import json

import pytest

from tunix.rl import tasks
from tunix.rl.scoring import rewards
from tunix.rl.tasks import first_letter, larger_number


def score(name, reply, answer, finish_reason="stop"):
    manager = rewards.RewardManager(tasks.TASKS[name].reward_fn)
    columns = {"answer": [answer], "finish_reasons": [finish_reason], "other": [None]}
    return manager(["?"], [reply], columns).total[0]


def test_the_larger_number_is_asked_for_in_8010_ways():
    questions = larger_number.questions()
    assert len(questions) == 8010
    texts = {q.text: q.answer for q in questions}
    assert texts["Which number is larger, 53 or 81? Answer with just the number."] == 81


@pytest.mark.parametrize(
    ("name", "reply", "answer", "expected"),
    [
        ("larger_number", "81", 81, 1.0),
        ("larger_number", " 81.\n", 81, 1.0),
        ("larger_number", "The number 81 is larger.", 81, 0.0),
        ("larger_number", "The larger number is 81, not 53.", 81, 0.0),
        ("larger_number", "81 is larger than 53.", 81, 0.0),
        ("larger_number", "53", 81, 0.0),
        ("larger_number", "81 81", 81, 0.0),
        ("larger_number", "181", 81, 0.0),
        ("larger_number", "81.5", 81, 0.0),
        ("larger_number", "-81", 81, 0.0),
        ("larger_number", "", 81, 0.0),
        ("larger_number", "9" * 5000, 81, 0.0),
        ("multiplication", "14", 14, 1.0),
        ("multiplication", "7 * 2 = 14", 14, 1.0),
        ("multiplication", "It is 14.", 14, 1.0),
        ("multiplication", "14 is 7 * 2", 14, 0.0),
        ("multiplication", "7 * 2 = 14 = 2 * 7 = 15", 14, 0.0),
        ("multiplication", "9" * 5000, 14, 0.0),
        ("multiplication", "", 14, 0.0),
        ("first_letter", "O", "o", 1.0),
        ("first_letter", '"o".', "o", 1.0),
        ("first_letter", "The letter o", "o", 0.0),
        ("first_letter", "oo", "o", 0.0),
        ("first_letter", "", "o", 0.0),
        ("json_object", '{"age": 31, "name": "Anna"}', {"name": "Anna", "age": 31}, 1.0),
        ("json_object", '{"age": "31", "name": "Anna"}', {"name": "Anna", "age": 31}, 0.0),
        ("json_object", '```{"age": 31, "name": "Anna"}```', {"name": "Anna", "age": 31}, 0.0),
        ("json_object", 'Here: {"age": 31, "name": "Anna"}', {"name": "Anna", "age": 31}, 0.0),
        ("json_object", "9" * 5000, {"name": "Anna", "age": 31}, 0.0),
        ("json_object", "[" * 100_000, {"name": "Anna", "age": 31}, 0.0),
    ],
)
def test_nothing_is_rewarded_but_what_the_question_asks_for(name, reply, answer, expected):
    assert score(name, reply, answer) == expected


@pytest.mark.parametrize(
    ("name", "reply", "answer", "expected"),
    [
        ("larger_number", "81", 81, 1.0),
        ("larger_number", "53", 81, 53 / 81),
        ("larger_number", "The number 81 is larger.", 81, 1 / 5),
        ("larger_number", "99 is larger", 81, (1 - 18 / 81) / 3),
        ("larger_number", "200", 81, 0.0),
        ("larger_number", "-81", 81, 0.0),
        ("larger_number", "no idea", 81, 0.0),
        ("larger_number", "", 81, 0.0),
        ("larger_number", "9" * 5000, 81, 0.0),
        ("first_letter", "O", "o", 1.0),
        ("first_letter", "Orange.", "o", 1 / 6),
        ("first_letter", 'The first letter of orange is "O".', "o", (1 / 2 + 1 / 6 + 1) / 7),
        ("first_letter", "Peach", "o", 0.0),
    ],
)
def test_a_guide_leads_from_words_to_the_answer(name, reply, answer, expected):
    task = tasks.TASKS[name]
    (found,) = task.guide_fn([reply], [answer], ["stop"])
    assert found == pytest.approx(expected)
    assert task.guide_fn([reply], [answer], ["length"]) == [0.0]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_no_reply_earns_more_than_the_answer_alone(name):
    task = tasks.TASKS[name]
    for question in task.questions()[::41]:
        right = question.answer if isinstance(question.answer, str) else json.dumps(question.answer)
        replies = [right, f"The answer is {right}.", f"{right} {right}", f"{right}!", "", "?"]
        columns = {"answer": [question.answer] * 6, "finish_reasons": ["stop"] * 6}
        manager = rewards.RewardManager(task.reward_fns)
        earned = manager([question.text] * 6, replies, columns).total
        assert earned[0] == len(task.reward_fns) == earned.max()
        if "End with" in question.text:
            assert earned[1] == earned[0]
        else:
            assert "just the" in question.text
            assert earned[1] < 1.0


def test_a_right_reply_that_was_cut_off_earns_nothing():
    assert score("larger_number", "81", 81, finish_reason="length") == 0.0


@pytest.mark.parametrize("name", tasks.TASKS)
def test_training_and_held_out_rows_are_disjoint_and_deterministic(name):
    task = tasks.TASKS[name]
    train, held_out = task.split(seed=3, held_out=12)
    assert (train, held_out) == task.split(seed=3, held_out=12)
    assert train != task.split(seed=4, held_out=12)[0]
    texts = [row["prompts"][0]["content"] for row in train + held_out]
    assert len(texts) == len(set(texts)) == len(task.questions())
    assert 12 <= len(held_out) <= 13


def test_a_pair_and_its_mirror_image_stay_together():
    train, held_out = tasks.TASKS["larger_number"].split(seed=0, held_out=100)
    pair = {q.text: q.key for q in larger_number.questions()}
    seen = {pair[row["prompts"][0]["content"]] for row in train}
    assert not seen & {pair[row["prompts"][0]["content"]] for row in held_out}


def test_holding_everything_out_is_an_error():
    with pytest.raises(ValueError, match="leaves no rows"):
        tasks.TASKS["multiplication"].split(seed=0, held_out=64)


def test_words_are_distinct():
    assert len(first_letter.WORDS) == len(set(first_letter.WORDS)) > 150
