"""Frequencies of rotary embedding against transformers."""

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tunix.ops import rope

LLAMA31 = rope.RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position=8192,
)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("scaling", "parameters"),
    [
        pytest.param(None, {"rope_type": "default"}, id="none"),
        pytest.param(
            rope.RopeScaling(kind="linear", factor=4.0),
            {"rope_type": "linear", "factor": 4.0},
            id="linear",
        ),
        pytest.param(
            LLAMA31,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            id="llama 3.1",
        ),
        pytest.param(
            rope.RopeScaling(
                kind="llama3",
                factor=32.0,
                low_freq_factor=1.5,
                high_freq_factor=3.0,
                original_max_position=4096,
            ),
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.5,
                "high_freq_factor": 3.0,
                "original_max_position_embeddings": 4096,
            },
            id="other factors",
        ),
    ],
)
def test_frequencies_match_transformers(head_dim, scaling, parameters):
    hf = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131_072,
        rope_parameters={"rope_theta": 500_000.0, **parameters},
    )
    if parameters["rope_type"] == "default":
        expected = 500_000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    else:
        expected = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](hf, "cpu")[0].numpy()
    ours = rope.rope_frequencies(head_dim, 500_000.0, scaling)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
