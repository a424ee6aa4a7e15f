"""Loading takes little more memory than the model."""

import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from tests.repo import source

SCRIPT = """
import sys
import jax.numpy as jnp
import numpy as np
from tunix.models import safetensors_loader, weights
from tunix.models.llama3 import model, params

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

config = model.ModelConfig(
    num_layers=12, vocab_size=64, embed_dim=1024, hidden_dim=2048, num_heads=2, num_kv_heads=1,
    head_dim=8, rope_theta=1e4, norm_eps=1e-5, weight_tying=True,
)
jnp.zeros(1).block_until_ready()
files = safetensors_loader.SafetensorsDirectory(sys.argv[1])
weights.load_model(model.Llama3, config, params.WEIGHTS, files)  # compiles, and imports
before = resident("VmRSS")
loaded = weights.load_model(model.Llama3, config, params.WEIGHTS, files)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
def test_no_second_copy_of_the_model_is_ever_in_memory(tmp_path):
    layer = {
        "self_attn.q_proj": (16, 1024),
        "self_attn.k_proj": (8, 1024),
        "self_attn.v_proj": (8, 1024),
        "self_attn.o_proj": (1024, 16),
        "mlp.gate_proj": (2048, 1024),
        "mlp.up_proj": (2048, 1024),
        "mlp.down_proj": (1024, 2048),
        "input_layernorm": (1024,),
        "post_attention_layernorm": (1024,),
    }
    tensors = {
        f"model.layers.{i}.{name}.weight": np.ones(shape, np.float32)
        for i in range(12)
        for name, shape in layer.items()
    }
    tensors["model.embed_tokens.weight"] = np.ones((64, 1024), np.float32)
    tensors["model.norm.weight"] = np.ones(1024, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=source.ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model_mb = sum(array.nbytes for array in tensors.values()) / 2**20
    one_layer_mb = 2048 * 1024 * 4 / 2**20
    assert float(done.stdout) < model_mb + 4 * one_layer_mb  # 8 MB each; the model has 290
