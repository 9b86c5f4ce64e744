"""Running the layers of a model: as one scan over stacked parameters, or unrolled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxpeft.models import loop
from jaxpeft.models.attention import Context, LayerInputs
from jaxpeft.models.cache import Cache, stacked
from jaxpeft.models.config import ModelConfig

Array = jax.Array
# A window that no position reaches: global attention in a scan that also has local layers.
GLOBAL = 2**30

# What a backward pass takes again from what it reads anyway: on CPU reading an array costs more.
# custom_jvp_call: JAX's are elementwise. What a version of JAX does not have does no harm.
CHEAP = {
    'abs', 'add', 'add_any', 'broadcast_in_dim', 'clamp', 'concatenate', 'copy', 'custom_jvp_call',
    'erf', 'erfc', 'exp', 'expand_dims', 'expm1', 'gather', 'integer_pow', 'log', 'log1p',
    'logistic', 'max', 'min', 'mul', 'neg', 'one_minus_square', 'pow', 'reshape', 'select_n',
    'sign', 'slice', 'split', 'square', 'squeeze', 'sub', 'tanh', 'transpose',
}  # fmt: skip


def _took_arithmetic(primitive: Any, *operands: Any, **params: Any) -> bool:
    """Whether a scanned layer keeps the results of this operation for its backward pass."""
    if primitive.name == 'convert_element_type':  # the narrower of the two is kept
        return operands[0].dtype.itemsize > params['new_dtype'].itemsize
    return primitive.name not in CHEAP


POLICIES: dict[str, Callable[..., Any]] = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_saveable,
    'dots_no_batch': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Unrolled(nn.Module):
    """The same layers one after the other, each with parameters of its own under its number."""

    block: type[nn.Module]
    config: ModelConfig
    kwargs: Any

    @nn.compact
    def __call__(self, x: Array, layers: LayerInputs, ctx: Context):
        out = []
        for i in range(self.config.num_layers):
            # Static windows: a global layer of the unrolled form needs no comparison at all.
            here = LayerInputs(self.config.windows[i], *(_at(a, i) for a in layers[1:]))
            x, new = self.block(self.config, **self.kwargs, name=str(i))(x, here, ctx)
            out.append(new)
        new = jax.tree.map(lambda *a: jnp.stack(a), *out)
        return x, new


def _at(a: Array | None, i: int) -> Array | None:
    return None if a is None else a[i]


def run_layers(
    trunk: Any, block: type[nn.Module], name: str, x: Array, layers: LayerInputs, ctx: Context
) -> tuple[Array, Any]:
    """Runs all layers of a trunk, inside its compact call.

    Args:
      trunk: the module that calls; it has config, dtype, param_dtype, scan and remat.
      block: one layer; its constructor takes (config, dtype, param_dtype).
      name: of the layers among the trunk's parameters.
      x: `[B, T, D]`.
      layers: what differs from layer to layer.
      ctx: what all layers share.

    Returns:
      `[B, T, D]`, and the new keys and values `[L, B, T, Hkv, D]` (None without a cache).

    Raises:
      ValueError: an unknown remat policy.
    """
    kwargs = {'dtype': trunk.dtype, 'param_dtype': trunk.param_dtype}
    one_token = ctx.apart is not None and x.shape[1] == 1
    inner = make_layers(
        block, trunk.config, scan=trunk.scan, remat=trunk.remat, one_token=one_token,
        name=name, **kwargs,
    )  # fmt: skip
    with nn.intercept_methods(loop.dense) if one_token and trunk.scan else nullcontext():
        return inner(x, layers, ctx)


def make_layers(
    block: type[nn.Module],
    config: ModelConfig,
    *,
    scan: bool,
    remat: str | None,
    one_token: bool = False,
    name: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """The module that runs all layers.

    Its call is `(x, LayerInputs, Context) -> (x, (k, v) or None)`.

    Args:
      block: one layer; its constructor takes (config, **kwargs).
      scan: one `nn.scan` (compiles once, parameters stacked on axis 0) or unrolled.
      remat: None keeps of each layer what took arithmetic (products, softmax weights, statistics of
        norms), of two types the narrower, and takes elementwise operations again; unrolled layers
        keep all. 'full' keeps each layer's input only; 'dots' keeps the results of matrix
        multiplications; 'dots_no_batch' keeps those of the linears but not of attention.
      one_token: unroll the scan's loop, over parameters that are stacked in name (`loop.joined`).
      name: of the module.

    Raises:
      ValueError: an unknown remat policy.
    """
    if remat is not None and remat not in POLICIES:
        raise ValueError(f'remat must be None or one of {sorted(POLICIES)}, got {remat!r}')
    policy = _took_arithmetic if scan and not one_token else None
    policy = policy if remat is None else POLICIES[remat]
    if policy is not None:
        # Under a scan the loop itself already keeps XLA from merging the recomputation away.
        block = nn.remat(block, policy=policy, prevent_cse=not scan)
    if not scan:
        return Unrolled(block, config, kwargs, name=name)
    scanned = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, nn.broadcast),
        length=config.num_layers,
        unroll=config.num_layers if one_token else 1,
        # The check traces the layer once more, for variables that all layers share: here are none.
        check_constancy_invariants=False,
    )
    return scanned(config, name=name, **kwargs)


def layer_inputs(config: ModelConfig, cache: Cache | None) -> LayerInputs:
    """Per-layer inputs with a leading layer axis."""
    window = None
    if any(w is not None for w in config.windows):
        window = jnp.array([GLOBAL if w is None else w for w in config.windows], jnp.int32)
    held = (None, None) if cache is None else (stacked(cache['k']), stacked(cache['v']))
    return LayerInputs(window, *held)
