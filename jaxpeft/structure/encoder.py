"""StructureEncoder: features of a token to its prior P, computed once for all adapted layers.

    e = bucket[log-bucket(pos)] + sqrt(2) sin|cos(pos theta) + sum_k type_k[id_k]
        + sin|cos(2 pi t / period) W_t + values W_v + bias
    P = sigmoid(gate) LayerNorm(e) W_P          parts that a kind lacks are left out

Source: github SadiaTabassum1216/hylorada (2026), `structure_encoder.py`. Departures: W_P starts at
N(0, 1/E) and not at zero, which with the layers' zero w_s would never train; every part has unit
mean square at the start (there the sinusoid outweighs the ids 35 to 1); positions count from the
start of the sequence (there from the middle of the padded one, which differs with the padding,
tells the length and breaks a key/value cache); frequencies and periods are exponentials, so that
they stay positive; 'graph' has features of its own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import base
from jaxpeft.methods.daa import bucket, lower_edges
from jaxpeft.structure.kinds import Kind, given_of, parts_of

EPS = 1e-5


def structure_encoder(
    kind: str = 'default',
    dim: int = 32,
    *,
    width: int = 32,
    num_buckets: int = 64,
    max_len: int = 2048,
    sizes: Sequence[int] | None = None,
    periods: Sequence[float] | None = None,
    values: int | None = None,
) -> base.Override:
    """The encoder, for a plan's key '~shared/structure'.

    Leaves, float32: `bucket [num_buckets, E]`, `freq [E/2]` (logarithms of factors on theta_i =
    10000^(-2i/E)), `types [sum(sizes), E]`, `period [p]` (logarithms of hours),
    `time_proj [2p, E]`, `value_proj [f, E]`, `value_bias [E]`, `norm_scale [E]`, `norm_bias [E]`,
    `proj [E, dim]`, the logit `gate []`; those of missing parts are missing. Its output for a token
    depends on that token's features alone: padding, packing and a cache change nothing.

    `call(state, None, features)` takes a dict (see `jaxpeft.structure`) and returns P
    `[B, T, dim]` float32:

        default   positions, ids [B, T, 1] (may be missing)
        code      positions, ids [B, T, 4]           of `code_features`
        temporal  positions, times, values [B, T, 1] of `series_features`
        graph     values [B, T, 6]                   of `graph_features`; no positions: the order
                                                     of the nodes means nothing
        tokens    positions, ids [B, T, 4]           of `token_features`

    Args:
      kind: one of these.
      dim: last axis of P, the `structure_dim` of the layers.
      width: E, even.
      num_buckets: rows of the table of positions, evenly spaced in their logarithm from
        num_buckets / 2 on.
      max_len: where the last bucket begins to saturate: take the longest text.
      sizes: numbers of ids in each column, instead of the kind's; larger ids are the last one.
      periods: where the periods start, in hours, instead of the kind's.
      values: f, instead of the kind's.

    Returns:
      The override.

    Raises:
      ValueError: for options out of range; from `call` for features that are missing or misshaped.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = structure_encoder('default', dim=8)
      >>> state = encoder.init(jax.random.key(0))
      >>> features = {'positions': jnp.arange(5)[None], 'ids': jnp.zeros((1, 5, 1), jnp.int32)}
      >>> encoder.call(state, None, features).shape
      (1, 5, 8)
    """
    parts = parts_of(kind, sizes, periods, values)
    _check(dim, width, num_buckets, max_len, parts)
    edges = lower_edges(num_buckets, max_len)
    spec = {
        'name': 'structure_encoder', 'kind': kind, 'dim': dim, 'width': width,
        'num_buckets': num_buckets, 'max_len': max_len, 'sizes': list(parts.sizes),
        'periods': list(parts.periods), 'values': parts.values,
    }  # fmt: skip

    def init(key):
        return base.State(_draw(key, parts, dim, width, num_buckets), {})

    def call(state, next_fun, features, *, key=None, side=None):
        del next_fun, key, side
        given = given_of(kind, parts, features)
        e = _embed(state.params, parts, given, edges)
        return jax.nn.sigmoid(state.params['gate']) * (_layer_norm(e, state) @ state.params['proj'])

    return base.Override(spec, init, call, base.no_penalty)


def _draw(key: base.Array, parts: Kind, dim: int, width: int, num_buckets: int) -> dict[str, Any]:
    """The leaves; every part of e starts with unit mean square, and nothing but logits at zero."""
    keys = iter(jax.random.split(key, 6))
    normal = lambda *shape: jax.random.normal(next(keys), shape, jnp.float32)
    leaves = {
        'norm_scale': jnp.ones(width, jnp.float32),
        'norm_bias': jnp.zeros(width, jnp.float32),
        'proj': normal(width, dim) / math.sqrt(width),
        'gate': jnp.zeros((), jnp.float32),
    }
    if parts.positions:
        leaves['bucket'] = normal(num_buckets, width)
        leaves['freq'] = jnp.zeros(width // 2, jnp.float32)
    if parts.sizes:
        leaves['types'] = normal(sum(parts.sizes), width)
    if parts.periods:
        leaves['period'] = jnp.log(jnp.asarray(parts.periods, jnp.float32))
        leaves['time_proj'] = normal(2 * len(parts.periods), width) / math.sqrt(len(parts.periods))
    if parts.values:
        drawn = normal(parts.values + 1, width) / math.sqrt(parts.values + 1)
        leaves['value_proj'], leaves['value_bias'] = drawn[:-1], drawn[-1]
    return leaves


def _embed(
    p: Mapping[str, base.Array], parts: Kind, given: Mapping[str, base.Array], edges: Any
) -> base.Array:
    """e `[B, T, E]`: the sum of the parts."""
    total = []
    if parts.positions:
        positions = given['positions']
        half = p['freq'].shape[0]
        theta = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half) * jnp.exp(p['freq'])
        waves = _waves(positions.astype(jnp.float32), theta)
        total += [p['bucket'][bucket(positions, edges)], math.sqrt(2.0) * waves]
    if 'ids' in given:
        last = jnp.asarray(parts.sizes, jnp.int32) - 1
        first = jnp.cumsum(last + 1) - last - 1
        rows = first[None, None, :] + jnp.clip(given['ids'], 0, last[None, None, :])
        total.append(p['types'][rows].sum(axis=-2) / math.sqrt(len(parts.sizes)))
    if parts.periods:
        turns = 2 * math.pi * jnp.exp(-p['period'])
        total.append(_waves(given['times'].astype(jnp.float32), turns) @ p['time_proj'])
    if parts.values:
        linear = given['values'].astype(jnp.float32) @ p['value_proj']
        total.append(linear + p['value_bias'][None, None, :])
    return sum(total[1:], start=total[0])


def _waves(x: base.Array, speed: base.Array) -> base.Array:
    """`[sin(x v), cos(x v)]`: `[B, T], [k] -> [B, T, 2k]`."""
    angle = x[..., None] * speed[None, None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _layer_norm(e: base.Array, state: base.State) -> base.Array:
    e = e - e.mean(axis=-1, keepdims=True)
    e = e * jax.lax.rsqrt(jnp.mean(e * e, axis=-1, keepdims=True) + EPS)
    scale, bias = (state.params[name][None, None, :] for name in ('norm_scale', 'norm_bias'))
    return e * scale + bias


def _check(dim: int, width: int, num_buckets: int, max_len: int, parts: Kind) -> None:
    if dim < 1 or width < 2 or width % 2:
        raise ValueError(
            f'structure_encoder: dim is at least 1 and width even, got dim={dim}, width={width}'
        )
    if num_buckets < 2 or max_len <= num_buckets // 2:
        raise ValueError(
            'structure_encoder: num_buckets is at least 2 and max_len above half of it, got '
            f'num_buckets={num_buckets}, max_len={max_len}'
        )
    if not any(parts):
        raise ValueError('structure_encoder: with values=0 and no sizes it would read nothing')
    if min((*parts.sizes, *parts.periods, 1)) <= 0 or parts.values < 0:
        raise ValueError(
            f'structure_encoder: sizes and periods are positive, got {parts.sizes}, {parts.periods}'
        )
