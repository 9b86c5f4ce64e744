"""A forward pass that reads the structure off its own tokens, whole, packed or token by token."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxpeft.structure.tokens import token_features, token_tables

NAME = 'structure'  # of the entry of `side` and of a cache, and after '~shared/' in a plan


def if_planned(
    plan: Mapping[str, Any], forward: Callable[..., Any], tokenizer: Any, vocab_size: int
) -> Callable[..., Any]:
    """`forward`, following its tokens where the plan has an encoder of the structure.

    Args:
      plan: the plan.
      forward: `jp.bind(plan, model.apply)`.
      tokenizer: of the base, from Hugging Face.
      vocab_size: rows of the base's embedding, which may be padded.

    Raises:
      ValueError: for such a plan and no tokenizer.
    """
    if f'~shared/{NAME}' not in plan:
        return forward
    if tokenizer is None:
        raise ValueError(
            'the structure of a text is read off its tokens, and this model has no tokenizer files'
        )
    return follow_tokens(forward, token_tables(tokenizer, vocab_size))


def follow_tokens(forward: Callable[..., Any], tables: Mapping[str, Any]) -> Callable[..., Any]:
    """`forward` with `side['structure']` made of the tokens that it is called with.

    Each token's features come from its prefix within its segment. With a key/value cache the state
    that carries them over lies in the cache beside the keys, under 'structure': what repeats or
    reorders the rows of a cache must do the same with it.

    Args:
      forward: `jp.bind(plan, model.apply)` of one of jaxpeft's models, its plan with an encoder of
        the kind 'tokens' under '~shared/structure'.
      tables: of `token_tables`.

    Returns:
      A function that is called as `forward` is.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> from jaxpeft.structure import follow_tokens, token_tables
      >>> model, params, tokenizer = jp.models.load('embedded')
      >>> plan = jp.compose(model, params, 'hylorada_v2', options={'hylorada_v2': {'rank': 2}})
      >>> forward = follow_tokens(jp.bind(plan, model.apply), token_tables(tokenizer))
      >>> state = jp.init(plan, jax.random.key(0), params)
      >>> forward(state, {'params': params}, jnp.ones((1, 3), jnp.int32)).shape[:2]
      (1, 3)
    """

    def followed(
        state,
        variables,
        tokens,
        positions=None,
        segment_ids=None,
        *,
        cache=None,
        side=None,
        **kwargs,
    ):
        carry = None if cache is None else cache.get(NAME)
        features, carry = token_features(tables, tokens, segment_ids, carry)
        side = {**(side or {}), NAME: features}
        common = {'positions': positions, 'segment_ids': segment_ids, 'side': side, **kwargs}
        if cache is None:
            return forward(state, variables, tokens, **common)
        keys = {name: leaf for name, leaf in cache.items() if name != NAME}
        out, keys = forward(state, variables, tokens, cache=keys, **common)
        return out, {**keys, NAME: carry}

    return followed
