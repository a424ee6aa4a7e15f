"""Eight devices load, compute and save the same as one."""

import numpy as np
import pytest

from tests import virtual_devices
from tests.models import hf_llama, sharded_load
from tunix.models import automodel
from tunix.models.hf import hf_export


@pytest.mark.slow
def test_eight_devices_give_the_logits_and_the_files_of_one(tmp_path):
    original = tmp_path / "original"
    hf = hf_llama.make(vocab_size=64, intermediate_size=64)
    hf.save_pretrained(original)
    out = tmp_path / "sharded"
    out.mkdir()
    found = virtual_devices.run("tests.models.sharded_load", original, out, devices=8)
    assert found["devices"] == 8
    assert found["parameters_split"] >= 9  # embedding, head and every kind of projection

    model, _ = automodel.AutoModel.from_pretrained(str(original), precision="exact")
    ids = hf_llama.tokens(64, (8, 16))
    logits = np.load(out / "logits.npy")
    np.testing.assert_allclose(logits, sharded_load.logits_of(model, ids), atol=1e-5)
    np.testing.assert_allclose(logits, hf_llama.logits_of(hf, ids), atol=1e-5)

    hf_export.save_merged(sharded_load.adapted(model), tmp_path / "merged", source=original)
    for name in ("model.safetensors", "config.json"):
        assert (out / "merged" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()
