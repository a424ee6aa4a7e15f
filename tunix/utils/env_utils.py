"""What scripts written for google-tunix ask of the environment."""

import flax

from tunix.utils import reference_names


def setup_sharding_environment() -> None:
    """Allow annotated modules to be made outside of a mesh, in the whole process.

    Flax places a variable with a sharding annotation where it is made, and without a mesh refuses
    to make it. google-tunix switches that off when it is imported; importing changes no setting
    here, so call this once, before the first module of your own with ``nnx.with_partitioning``
    that is made outside of a mesh. The models of this library need neither.
    """
    flax.config.update("flax_always_shard_variable", False)


def is_internal_env() -> bool:
    """Return False: there is one environment."""
    return False


def is_pathways_initialized() -> bool:
    """Return False: Pathways is not supported."""
    return False


__getattr__ = reference_names.hints(__name__)
