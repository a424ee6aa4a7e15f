"""How many operations a decoder needs, counted from its config.

Only products of matrices count, as in PaLM (arXiv:2204.02311, appendix B): a multiplication and an
addition are two operations.
"""

from tunix.models.transformer import config as config_lib


def matrix_parameters(config: config_lib.TransformerConfig) -> int:
    """Return the parameters that one token is multiplied with: of experts only those it visits.

    The output matrix counts, whether tied or not; looking up an embedding multiplies nothing.
    """
    d, f, h = config.embed_dim, config.hidden_dim, config.head_dim
    attention = d * h * (2 * config.num_heads + 2 * config.num_kv_heads)
    mlp = 3 * d * f
    if config.num_experts is not None and config.num_experts_per_tok is not None:
        mlp = mlp * config.num_experts_per_tok + d * config.num_experts
    return config.num_layers * (attention + mlp) + config.vocab_size * d


def forward_flops_per_token(config: config_lib.TransformerConfig, context: float) -> float:
    """Return the operations of one token's forward pass.

    Args:
        config: The decoder.
        context: Tokens that a token attends to, on average over the row: half of a causal row.
    """
    heads = config.num_heads * config.head_dim
    window = config.sliding_window_size or 0
    seen = sum(min(context, window) if is_local else context for is_local in config.is_local)
    return 2.0 * matrix_parameters(config) + 4.0 * heads * seen


def training_flops_per_token(
    config: config_lib.TransformerConfig, context: float, *, is_frozen: bool = False
) -> float:
    """Return the operations of a token's forward and backward pass; recomputation is not work.

    Args:
        config: The decoder.
        context: As for :func:`forward_flops_per_token`.
        is_frozen: Whether the matrices get no gradient (LoRA): then the backward pass costs as
            much as the forward pass, otherwise twice as much. Adapters are not counted.
    """
    forward = forward_flops_per_token(config, context)
    if not is_frozen:
        return 3.0 * forward
    # Attention has no weights, so its backward pass costs the same either way.
    return 3.0 * forward - 2.0 * matrix_parameters(config)
