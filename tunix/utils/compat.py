"""Names that differ between releases of JAX and Flax, as scripts for google-tunix import them."""

import jax
from flax import nnx

set_mesh = jax.set_mesh
ModuleList = nnx.List
