"""Every override on a tiny GPT-Neo and a tiny Qwen2 (grouped queries), two layers each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxpeft as jp
from jaxpeft import models
from tests import models_tiny, toys

NAMES = ('daa', 'ia3', 'prefix', 's2', 'sparse_mlp')
KINDS = ('gpt_neo', 'qwen2')
T = 12  # three local windows of the GPT-Neo, three groups of the S2
CHANGES = {
    'gpt_neo': {'num_layers': 2, 'attention_types': [[['global', 'local'], 1]]},
    'qwen2': {'num_hidden_layers': 2},
}
OPTIONS = {
    'daa': {'num_buckets': 8, 'max_len': 16},
    'ia3': {},
    'prefix': {'length': 3, 'init_std': 0.5},
    's2': {'group': 4},
    'sparse_mlp': {'neurons': 10, 'ratio': 0.35},
}
SITES = {
    'daa': {'.*/(attention|self_attn)/core': 'core'},
    'ia3': {'.*/k_proj': 'k_proj', '.*/v_proj': 'v_proj', '.*/(c|down)_proj': 'down_proj'},
    'prefix': {'.*/(attention|self_attn)/core': 'core'},
    's2': {'.*/(attention|self_attn)/core': 'core'},
    'sparse_mlp': {'.*/mlp': 'mlp'},
}


@functools.cache
def base(kind, scan=True, dtype=jnp.float32):
    """(model, params) of one kind; unrolled parameters are the scanned ones, taken apart."""
    config = models_tiny.config(kind, **CHANGES[kind])
    stacked = models_tiny.random_params(models.build(config))
    params = stacked if scan else models.unstack(stacked)
    model = models.build(config, scan=scan, dtype=dtype)
    return model, jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def plan(name, kind, scan=True, **options):
    """The plan that a command line would make: dimensions from the model's config."""
    config = base(kind)[0].config
    stack = (config.num_layers,) if scan else ()
    found = jp.methods.module(name).dimensions
    return {
        pattern: jp.methods.get(name)(
            **found(config, target), **{**OPTIONS[name], **options}, stack=stack
        )
        for pattern, target in SITES[name].items()
    }


@functools.cache
def adapted(name, kind):
    """(state at init, state with noise on every leaf), of the scanned model."""
    state = jp.init(plan(name, kind), jax.random.key(0), base(kind)[1])
    return state, toys.moved(state, jax.random.key(3), 0.4)


@functools.cache
def forward(name, kind, scan=True):
    """`(state, tokens, seg, cache) -> logits` (and the cache), jitted once for all tests."""
    model, params = base(kind, scan)
    bound = jp.bind(plan(name, kind, scan), model.apply)
    return models_tiny.jit(
        lambda state, rows, seg, cache=None: bound(
            state, {'params': params}, rows, segment_ids=seg, cache=cache
        )
    )


@functools.cache
def logits(name, kind):
    """Adapted logits [2, T, V] of two unpadded rows, with the moved state."""
    run = forward(name, kind)
    return np.asarray(run(adapted(name, kind)[1], models_tiny.tokens(2, T), ones()))


@functools.cache
def plain(kind):
    """The base's own logits of the same rows."""
    model, params = base(kind)
    run = models_tiny.jit(lambda p, t, s: model.apply({'params': p}, t, segment_ids=s))
    return np.asarray(run(params, models_tiny.tokens(2, T), ones()))


def ones():
    return np.ones((2, T), np.int32)
