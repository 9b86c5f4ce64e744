"""From the name of a model and a method to everything that a script needs, in one call."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft import base, linen, methods, models, paths, plans, structure, tree


class Prepared(NamedTuple):
    """What `prepare` returns; unpack it in this order."""

    model: Any
    params: base.Tree
    tokenizer: Any
    plan: dict[str, Any]
    state: base.State
    forward: Callable[..., Any]


def prepare(
    name_or_dir: str,
    method: str | base.Method,
    targets: Sequence[str] | str | None = None,
    *,
    key: base.Array | None = None,
    dtype: Any = jnp.float32,
    scan: bool = True,
) -> Prepared:
    """Loads a base model, plans a method on it, draws the adapter and binds the two.

    Args:
      name_or_dir: a local Hugging Face folder, a hub id, or 'embedded'.
      method: a method's name, or several joined by '+' (with default options), or a method.
      targets: module names to adapt, see `jp.targets`; the method's own when None.
      key: draws the adapter; `jax.random.key(0)` when None.
      dtype: of the base's parameters.
      scan: scan over the layers.

    Returns:
      (model, params, tokenizer, plan, state, forward).

    Raises:
      ValueError: for an unknown method or target, with the nearest names.

    Example:
      >>> import jaxpeft as jp
      >>> model, params, tokenizer, plan, state, forward = jp.prepare('embedded', 'knowhira')
      >>> tokens = tokenizer('a dog is', return_tensors='np')['input_ids']
      >>> forward(state, {'params': params}, tokens).shape[-1] == model.config.vocab_size
      True
    """
    model, params, tokenizer = models.load(name_or_dir, dtype=dtype, scan=scan)
    if isinstance(method, str):
        plan = plans.compose(model, params, method, targets=targets or ())
    else:
        name = method.spec['name']
        own = methods.defaults(name) if name in methods.names() else 'all-linear'
        plan = {paths.targets(params, targets or own): method}
    state = tree.init(plan, jax.random.key(0) if key is None else key, params)
    forward = linen.bind(plan, model.apply)
    forward = structure.if_planned(plan, forward, tokenizer, model.config.vocab_size)
    return Prepared(model, params, tokenizer, plan, state, forward)
