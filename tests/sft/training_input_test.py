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


def test_positions_of_non_zero_weight_come_first_and_never_the_first_of_a_row():
    mask = np.array([[1, 0, 0.5, 0], [1, 1, 0, 0]])
    found = training_input.loss_positions(mask)
    assert found["num_loss_positions"] == 2
    np.testing.assert_array_equal(found["loss_positions"], [2, 5, 0, 1, 3, 4, 6, 7])


def test_their_shape_is_that_of_the_batch_so_that_one_program_serves_all():
    for mask in (np.zeros((2, 3)), np.ones((2, 3))):
        found = training_input.loss_positions(mask)
        assert sorted(found["loss_positions"]) == list(range(6))
        assert found["num_loss_positions"] == 4 * mask[0, 0]
