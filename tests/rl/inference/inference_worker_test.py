import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl import common
from tunix.rl.inference import inference_worker


def test_the_reference_scores_with_the_weights_it_has_now():
    model = helpers.tiny_decoder()
    worker = inference_worker.InferenceWorker({"reference": model})
    batch = helpers.one_batch(helpers.make_groups([[1.0, -1.0]]))
    before = worker.get_ref_per_token_logps(batch)
    np.testing.assert_allclose(before, common.policy_logps(model, batch).logps, atol=1e-6)
    model.embed_tokens.w[...] = 0.5 * model.embed_tokens.w[...]
    after = worker.get_ref_per_token_logps(batch)
    np.testing.assert_allclose(after, common.policy_logps(model, batch).logps, atol=1e-6)
    assert np.abs(after - before).max() > 0.01


def test_a_role_that_nobody_has_is_an_error():
    worker = inference_worker.InferenceWorker({})
    with pytest.raises(ValueError, match="no model has the role 'reference'; there are"):
        worker.get_model("reference")
