"""Methods x options, each cell tried on a tiny GPT-Neo: `yes`, or the error that refuses it.

A try is what a user does: compose, init, one forward pass (traced, so that nothing is compiled) or
the call in question. A cell is `yes` only where the program then differs from the one without the
option: an option that does nothing is a defect and comes out as IGNORED.
"""

import functools
import re
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxpeft as jp
from tests import models_tiny, overrides_tiny
from train import optimizer

REFUSED = (ValueError, TypeError, KeyError)
IGNORED, NOTHING = 'IGNORED', '-'
LAYERS = {'one': 1, 'scanned': 2, 'unrolled': 2}
TOKENS = jax.ShapeDtypeStruct((2, 12), jnp.int32)
IDS = jax.ShapeDtypeStruct((2, 12, 4), jnp.int32)
SHORT = 90  # characters of a refusal that the page shows


class Tried(NamedTuple):
    """A cell: `yes`, `error`, `-` (there is nothing to act on), and the error's text."""

    cell: str
    why: str = ''


class Traced(NamedTuple):
    """A plan on the tiny model, the shapes of its state and logits, its forward pass as text."""

    plan: dict[str, Any]
    state: jp.State
    program: str
    out: Any


@functools.cache
def base(form: str = 'one', dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """(model, parameter shapes) of a GPT-Neo: one layer, or two, scanned or unrolled."""
    kinds = [['global', 'local'][: LAYERS[form]], 1]
    changes = {'num_layers': LAYERS[form], 'attention_types': [kinds]}
    config = models_tiny.config('gpt_neo', **changes)
    model = jp.models.build(config, scan=form == 'scanned', dtype=dtype)
    shaped = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype)
    return model, jax.tree.map(shaped, jp.models.param_shapes(model))


def options(name: str) -> dict[str, Any]:
    """Sizes that the tiny model can hold."""
    ranked = {'rank': 4} if 'rank' in jp.methods.options(name) else {}
    return {**overrides_tiny.OPTIONS.get(name, {}), **ranked}


def traced(
    name: str,
    form: str = 'one',
    *,
    dtype: Any = jnp.float32,
    kept: Any = jnp.float32,
    dropped: bool = False,
    more: dict[str, Any] | None = None,
    extra: Callable[[Any, Any], dict[str, Any]] = lambda model, params: {},
    **asked: Any,
) -> Traced:
    """Composes, starts and runs a method; `more` are options of its own, `extra` more rules."""
    model, params = base(form, dtype)
    given = {one: options(one) for one in jp.plans.split(name)}
    given[name.split('+')[0]] |= more or {}
    plan = extra(model, params) | jp.compose(model, params, name, options=given, **asked)
    state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
    state = jax.eval_shape(lambda s: jp.cast(s, kept), state)
    forward = jp.bind(plan, model.apply)
    key = jax.random.key(1) if dropped else None
    side = {'structure': {'positions': TOKENS, 'ids': IDS}} if '~shared/structure' in plan else None
    run = lambda state, params, tokens, side: forward(
        state, {'params': params}, tokens, dropout_key=key, side=side
    )
    program, out = jax.make_jaxpr(run, return_shape=True)(state, params, TOKENS, side)
    return Traced(plan, state, re.sub(r'0x[0-9a-f]+', '', str(program)), out)


@functools.cache
def plain(name: str, form: str = 'one') -> Traced:
    """The method without any option."""
    return traced(name, form)


def differs(name: str, form: str = 'one', beside: str = '', **asked: Any) -> str:
    """`yes` where the option, or the method beside it, changes the state or the program."""
    new, old = traced(name + beside, form, **asked), plain(name, form)
    same = new.program == old.program and str(new.state) == str(old.state)
    return IGNORED if same else 'yes'


def runs(name: str, form: str = 'one') -> str:
    return 'yes' if plain(name, form).out.shape[:2] == TOKENS.shape else IGNORED


def on_bfloat16(name: str) -> str:
    """`yes` where the base computes in bfloat16 and the adapter is float32 beside it."""
    new = traced(name, dtype=jnp.bfloat16)
    wide = {leaf.dtype for leaf in jax.tree.leaves(new.state)} <= {jnp.dtype('float32')}
    return 'yes' if wide and 'bf16[' in new.program else IGNORED


def drops(name: str) -> str:
    """`yes` where a key then draws a mask."""
    program = traced(name, dropped=True, more={'dropout': 0.1}).program
    return 'yes' if 'random_bits' in program else IGNORED


def drawn(name: str) -> tuple[dict[str, Any], jp.State, Any, Any]:
    """(plan, state of random numbers, model, parameters)."""
    model, _ = base()
    params = jax.tree.map(jnp.asarray, models_tiny.random_params(model))
    plan, shapes = plain(name).plan, plain(name).state
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1, x.shape), x.dtype), shapes)
    return plan, state, model, params


def merged(name: str) -> str:
    merge = functools.partial(jp.merge, plain(name).plan)
    return 'yes' if jax.eval_shape(merge, plain(name).state, base()[1]) else IGNORED


def exported(name: str) -> str:
    plan, state, _, params = drawn(name)
    with tempfile.TemporaryDirectory() as folder:
        jp.export_peft(folder, plan, state, params)
    return 'yes'


def exported_merged(name: str) -> str:
    plan, state, model, params = drawn(name)
    with tempfile.TemporaryDirectory() as folder:
        jp.export_merged(folder, plan, state, model, params)
    return 'yes'


def kept_in_bfloat16(name: str) -> str:
    has_numbers = bool(jax.tree.leaves(plain(name).state.params))
    return differs(name, kept=jnp.bfloat16) if has_numbers else NOTHING


def faster_b(name: str) -> str:
    """Whether LoRA+ finds a factor b to speed up."""
    roles = optimizer.roles(plain(name).state.params)
    return 'yes' if 'b' in jax.tree.leaves(roles) else NOTHING


def beside_lora(name: str) -> str:
    lora = lambda model, params: {jp.targets(params, 'c_fc'): jp.methods.lora(rank=2)}
    return differs(name, extra=lora)


ROWS: dict[str, Callable[[str], str]] = {
    'scanned': lambda name: runs(name, 'scanned'),
    'unrolled': lambda name: runs(name, 'unrolled'),
    'bfloat16 base': on_bfloat16,
    'kept in bfloat16 (`jp.cast`)': kept_in_bfloat16,
    '`dropout`': drops,
    '`rslora`': lambda name: differs(name, more={'rslora': True}),
    '`rank_pattern`': lambda name: differs(name, rank_pattern={'q_proj': 2}),
    '`alpha_pattern`': lambda name: differs(name, alpha_pattern={'q_proj': 9.0}),
    '`rank_strategy`, scanned': lambda name: differs(name, 'scanned', rank_strategy='decreasing'),
    '`rank_strategy`, unrolled': lambda name: differs(name, 'unrolled', rank_strategy='decreasing'),
    '`layers`, scanned': lambda name: differs(name, 'scanned', layers=[1]),
    '`layers`, unrolled': lambda name: differs(name, 'unrolled', layers=[1]),
    '`targets`: `c_fc`': lambda name: differs(name, targets='c_fc'),
    '`targets`: `wte` (tied)': lambda name: differs(name, targets='wte'),
    '`exclude`: `k_proj`': lambda name: differs(name, exclude='k_proj'),
    "`bias='adapted'`": lambda name: differs(name, bias='adapted'),
    "`bias='all'`": lambda name: differs(name, bias='all'),
    'LoRA+': faster_b,
    '`jp.merge`': merged,
    '`jp.export_merged`': exported_merged,
    '`jp.export_peft`': exported,
    'with `daa`': lambda name: differs(name, beside='+daa'),
    'with `sparse_mlp`': lambda name: differs(name, beside='+sparse_mlp'),
    'with `lora` on `c_fc`': beside_lora,
}


@functools.cache
def tried(row: str, name: str) -> Tried:
    """One cell; any error that is no refusal goes through."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            return Tried(ROWS[row](name))
    except REFUSED as error:
        return Tried('error', shortened(str(error.args[0] if error.args else error), name))


def shortened(text: str, name: str) -> str:
    """The first clause of a message, without the site's path, NAME for the method's name."""
    clause = re.sub(r'^[\w~]+/\S+: ', '', ' '.join(text.split())).split(';')[0]
    clause = re.sub(rf'\b{name}\b', 'NAME', clause)
    return clause if len(clause) <= SHORT else clause[:SHORT].rsplit(' ', 1)[0] + ' ..'
