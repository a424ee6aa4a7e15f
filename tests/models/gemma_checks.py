"""What the parity tests of all Gemmas do."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.models import hf_gemma
from tunix.models import automodel
from tunix.models.transformer import cache as cache_lib


class Checkpoint:
    """The files of one tiny model and the logits that transformers computes from them."""

    def __init__(self, make, changes, folder):
        hf = make(**changes)
        hf.save_pretrained(folder)
        self.folder = folder
        self.ids = hf_gemma.tokens()
        self.logits = hf_gemma.logits_of(hf, self.ids)
        self.model = self.load()

    def load(self, **options):
        options = {"precision": "exact"} | options
        return automodel.AutoModel.from_pretrained(str(self.folder), **options)[0]

    def error(self, model):
        return hf_gemma.logits_error(model, self.logits, self.ids)


class Checkpoints:
    """Makes the checkpoint of a case when it is first asked for."""

    def __init__(self, cases, tmp_path_factory):
        self.cases, self.folders, self.made = cases, tmp_path_factory, {}

    def __call__(self, case):
        if case not in self.made:
            self.made[case] = Checkpoint(*self.cases[case], self.folders.mktemp("gemma"))
        return self.made[case]


def decoding_error(model, ids, *, prompt):
    """Return how far a prefill of ``prompt`` tokens and single steps are from one forward pass."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def forward(state, tokens, cache):
        return nnx.merge(graphdef, state)(tokens, cache=cache)

    ids = jnp.asarray(ids, jnp.int32)
    full, _ = forward(state, ids, None)
    cache = cache_lib.init_cache(model.config, ids.shape[0], ids.shape[1] + 3)
    logits, cache = forward(state, ids[:, :prompt], cache)
    parts = [logits]
    for t in range(prompt, ids.shape[1]):
        logits, cache = forward(state, ids[:, t : t + 1], cache)
        parts.append(logits)
    return float(np.abs(np.concatenate(parts, axis=1) - np.asarray(full)).max())
