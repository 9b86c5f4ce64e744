"""What a step costs beside LoRA's, from jaxprs alone: nothing is compiled and no memory is used.

FLOPs are those of every `dot_general` of the loss, the adapter's gradient and the gradient that the
layer passes on to its input. Kept bytes are the arrays that the backward pass needs and that are
neither parameters nor weights, as autodiff saves them and before XLA rewrites anything.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

import jaxpeft as jp
from eval.bench import flops

WIDTH, TOKENS, RANK = 768, 512, 32
TRAINED_WITH = {'s2': 'lora+s2'}  # it has no numbers of its own: what it changes in LoRA's step
OPTIONS = {'s2': {'group': TOKENS // 4}}
BLOCKS = {
    'model_type': 'gpt_neo', 'vocab_size': 64, 'hidden_size': WIDTH, 'num_layers': 2,
    'num_heads': 12, 'attention_types': [[['global', 'local'], 1]], 'window_size': 256,
    'max_position_embeddings': TOKENS, 'eos_token_id': 3,
}  # fmt: skip


def kept(fn: Any, wrt: Any, rest: Any) -> int:
    """Bytes that `fn(wrt, rest)` keeps for its gradient by `wrt[0]`, arguments but `wrt[1]` apart.

    `wrt` is (parameters, activations): the input of a layer is an activation that is kept.
    """
    residuals = lambda wrt, rest: jax.tree.leaves(jax.vjp(lambda *p: fn(p, rest), *wrt)[1])
    jaxpr = jax.make_jaxpr(residuals)(wrt, rest).jaxpr
    sizes = [len(jax.tree.leaves(part)) for part in (wrt[0], wrt[1])]
    weights = {*jaxpr.invars[: sizes[0]], *jaxpr.invars[sum(sizes) :]}
    arrays = {v for v in jaxpr.outvars if isinstance(v, core.Var)} - weights
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in arrays)


def step(fn: Any, wrt: Any, rest: Any) -> int:
    """FLOPs of the sum of squares of `fn(wrt, rest)` and its gradient by `wrt`."""
    loss = jax.value_and_grad(lambda wrt, rest: jnp.sum(fn(wrt, rest) ** 2))
    return int(flops.count(loss, wrt, rest))


@functools.cache
def of_kernel(name: str) -> tuple[Any, Any, Any]:
    """(fn, wrt, rest) of a method over kernels on one kernel [WIDTH, WIDTH] and TOKENS tokens."""
    ranked = 'rank' in jp.methods.options(name)
    method = jp.methods.get(name)(**({'rank': RANK} if ranked else {}))
    w = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    x = jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.float32)
    prior = jax.ShapeDtypeStruct((TOKENS, 32), jnp.float32)
    state = jax.eval_shape(method.init, jax.random.key(0), w)

    def fn(wrt, rest):
        (params, x), (consts, w, prior) = wrt, rest
        now = jp.State(params, consts)
        if method.apply is None:
            return x @ method.weight(now, w)
        return method.apply(now, w, x, side={'structure': prior})

    return fn, (state.params, x), (state.consts, w, prior)


@functools.cache
def of_blocks(name: str) -> tuple[Any, Any, Any]:
    """(fn, wrt, rest) of a method on its own targets in two GPT-Neo blocks and TOKENS tokens."""
    model = jp.models.build(jp.models.from_hf(BLOCKS))
    params = jp.models.param_shapes(model)
    method = TRAINED_WITH.get(name, name)
    given = {n: dict(OPTIONS.get(n, {})) for n in jp.plans.split(method)}
    for n in given:
        given[n] |= {'rank': RANK} if 'rank' in jp.methods.options(n) else {}
    plan = jp.compose(model, params, method, options=given)
    state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
    forward = jp.bind(plan, model.apply)
    tokens = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    ids = jax.ShapeDtypeStruct((1, TOKENS, 4), jnp.int32)
    side = {'structure': {'positions': tokens, 'ids': ids}} if name == 'hylorada_v2' else None

    def fn(wrt, rest):
        trained, (consts, params, tokens, side) = wrt[0], rest
        return forward(jp.State(trained, consts), {'params': params}, tokens, side=side)

    return fn, (state.params, ()), (state.consts, params, tokens, side)
