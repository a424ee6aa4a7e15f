"""What a batch may be, and where its loss is."""

import numpy as np
import pytest

from tunix.sft import training_input


def test_a_training_input_gives_the_fields_it_has():
    tokens, mask = np.zeros((1, 2), np.int32), np.ones((1, 2))
    batch = training_input.TrainingInput(input_tokens=tokens, input_mask=mask)
    assert training_input.default_model_input(batch) == {"input_tokens": tokens, "input_mask": mask}


def test_a_mapping_is_copied():
    given = {"anything": 1}
    inputs = training_input.default_model_input(given)
    inputs["more"] = 2
    assert given == {"anything": 1}


def test_anything_else_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"is a ndarray.*with_gen_model_input_fn"):
        training_input.default_model_input(np.zeros(3))


def test_positions_are_those_of_non_zero_weight_and_never_the_first_of_a_row():
    mask = np.array([[1, 0, 0.5, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(training_input.loss_positions(mask), [2, 5])


def test_their_number_is_rounded_up_and_filled_with_the_first_token():
    mask = np.zeros((2, 8))
    mask[0, 3:8] = 1
    np.testing.assert_array_equal(
        training_input.loss_positions(mask, granularity=2), [3, 4, 5, 6, 7, 0, 0, 0]
    )


def test_their_number_takes_few_values_so_that_programs_are_reused():
    mask = np.zeros((2, 16))
    sizes = []
    for count in range(1, 16):
        mask.flat[count] = 1
        sizes.append(len(training_input.loss_positions(mask)))
    assert sizes == [8] * 8 + [16] * 7


def test_a_batch_full_of_loss_is_taken_whole():
    assert training_input.loss_positions(np.ones((4, 8))) is None
