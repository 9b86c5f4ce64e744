"""HyLoRADA v2: v1 whose update is scaled token by token by what is known of the text's structure.

    y = c o (x W + rho o s (x A) B)        rho = 0.5 + sigmoid(P w_s), one number a token

P are the outputs of one encoder for all layers, `jaxpeft.structure.structure_encoder`. Source:
github SadiaTabassum1216/hylorada (2026), `HyLoRADAv2Linear`, whose encoder starts at zero together
with w_s: each one's gradient is a product with the other, so neither ever moves, and no path leads
P into the layer. Here w_s alone starts at zero (beside b), and P comes as `side['structure']`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import base, factors
from jaxpeft.methods.hylorada import SEARCH as V1
from jaxpeft.methods.hylorada import check, column_scale, draw

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
SEARCH = V1 | {'structure_dim': ('choice', 8, 16, 32)}
WHOLE_EXAMPLES = True  # the structure is read along the row: no prefix that examples share
NAME = 'structure'  # of the entry of `side`, and after '~shared/' in a plan


def hylorada_v2(
    rank: int = 32,
    *,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    detach: bool = True,
    init: str = 'orthogonal',
    gate_init: float = 0.0,
    residual_init: float = 0.1,
    structure_dim: int = 32,
) -> base.Method:
    """HyLoRADA v2: v1 with `w_s [structure_dim]`, zeros at the start, so that rho = 1 there.

    `side['structure']` is P `[*lead, structure_dim]` for an input `[*lead, n]`; rho lies between
    0.5 and 1.5. Without `side`, or without this entry, it is v1. The norm in c is that of
    W + s A B, whatever rho. A layer's kernel then differs from token to token: `weight` is None and
    merging an error. An adapter that is to run without P merges as v1, whose leaves it has:
    `jp.merge({...: jp.methods.hylorada(...)}, state, params)`.

    In a plan the encoder stands beside the method and runs once a forward pass:

        plan = {
            jp.targets(params, ['q_proj', 'v_proj']): jp.methods.hylorada_v2(rank=16),
            '~shared/structure': structure_encoder('tokens', dim=32),
        }
        logits = jp.bind(plan, model.apply)(state, variables, tokens, side={'structure': features})

    Args:
      rank: r, at most min(n, m); this and what follows as in `hylorada`.
      alpha: the numerator of s; `2 * rank` when None.
      rslora: `s = alpha / sqrt(r)`.
      dropout: rate on the update's input, in training only.
      detach: no gradient through the norm.
      init: of A: 'orthogonal', 'orthogonal_matched' or 'kaiming'.
      gate_init: where the magnitude's gate starts.
      residual_init: where the logit of LoRA's share starts.
      structure_dim: the last axis of P, the encoder's `dim`; that many trainable numbers a kernel.

    Returns:
      The method.

    Raises:
      ValueError: for options out of range; at init for a rank that the kernel cannot hold; from
        `apply` for a P that does not fit the layer's input.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> w, x, prior = jnp.eye(4), jnp.ones((2, 3, 4)), jnp.ones((2, 3, 8))
      >>> method = jp.methods.hylorada_v2(rank=2, structure_dim=8)
      >>> state = method.init(jax.random.key(0), w)
      >>> bool(jnp.allclose(method.apply(state, w, x, side={'structure': prior}), x))
      True
    """
    check('hylorada_v2', init, dropout)
    if structure_dim < 1:
        raise ValueError(f'hylorada_v2: structure_dim must be at least 1, got {structure_dim}')
    alpha, scale = factors.scaling(rank, alpha, rslora)
    spec = {
        'name': 'hylorada_v2', 'rank': rank, 'alpha': alpha, 'rslora': rslora, 'dropout': dropout,
        'detach': detach, 'init': init, 'gate_init': gate_init, 'residual_init': residual_init,
        'structure_dim': structure_dim,
    }  # fmt: skip

    def init_one(key, w):
        base.check_options('hylorada_v2', w.shape, rank)
        state = draw(key, w, rank, init, gate_init, residual_init)
        w_s = jnp.zeros(structure_dim, jnp.float32)
        return state._replace(params={**state.params, 'w_s': w_s})

    def apply(state, w, x, *, key=None, side=None):
        dropped = base.dropout(key, x, dropout)
        prior = prior_of(side, x, structure_dim)
        columns = functools.partial(column_scale, state, w, scale, detach)
        if prior is None:
            y = factors.product(state, scale, x, w, dropped, columns)
        else:
            rho = structure_scale(state.params['w_s'], prior)[..., None]
            update = factors.update(state, scale, dropped)
            z = jnp.matmul(x, w, preferred_element_type=jnp.float32) + rho * update
            y = factors.per_column(columns(), z)
        return y.astype(jnp.result_type(x, w))

    return base.Method(spec, init_one, apply, None, base.no_penalty)


def shared(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a plan for language modelling holds beside the method: the encoder's spec, by name."""
    dim = options.get('structure_dim', 32)
    return {NAME: {'name': 'structure_encoder', 'kind': 'tokens', 'dim': dim}}


def structure_scale(w_s: base.Array, prior: base.Array) -> base.Array:
    """`rho = 0.5 + sigmoid(P w_s)`: `[ds], [..., ds] -> [...]`, float32 in (0.5, 1.5)."""
    return 0.5 + jax.nn.sigmoid(prior.astype(jnp.float32) @ w_s)


def prior_of(side: Any, x: base.Array, dim: int) -> base.Array | None:
    """P for the layer's input, held against its shape; None where the call has none.

    Raises:
      ValueError: for leading axes other than the input's, or another last axis than `dim`.
      TypeError: for something else than an array: features that no encoder has seen.
    """
    prior = None if side is None else side.get(NAME)
    if prior is None:
        return None
    if not hasattr(prior, 'shape'):
        raise TypeError(
            f'hylorada_v2: side[{NAME!r}] must be an array [*lead, {dim}] when it reaches the '
            f'layers, got {type(prior).__name__}; put structure_encoder(...) into the plan under '
            f"'~shared/{NAME}', which makes it of features"
        )
    want = (*x.shape[:-1], dim)
    if tuple(prior.shape) != want:
        raise ValueError(
            f'hylorada_v2: a layer with the input {x.shape} needs a structure prior of shape '
            f'{want}, got {tuple(prior.shape)}: one row for each token, in the same leading axes, '
            'with structure_dim the dim of the encoder; leave a layer that sees other tokens (a '
            'head over selected positions, a router) out of the plan'
        )
    return prior
