"""A plan over a whole tree: init, merge, penalty. Pure functions, no Flax modules."""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import base, paths, ranks, views
from jaxpeft.near import nearest

Plan = Mapping[str, base.Method | base.Override | views.Viewed]
OVERRIDE = '~'  # an override's leaves lie under this name, apart from the kernels of its module
SHARED = '~shared/'  # a plan's key that starts so is no path: what all layers share, held once


class Site(NamedTuple):
    """One place that a plan adapts: a kernel (with its view) or a module (view None)."""

    path: str
    rule: int
    method: Any  # a Method, or an Override where view is None
    view: views.View | None
    ranks: tuple[int, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether it is no place of the base but what its adapters share."""
        return self.path.startswith(SHARED)

    @property
    def node(self) -> str:
        """Where the site's leaves lie in a state."""
        inside = self.view is None and not self.shared
        return f'{self.path}/{OVERRIDE}' if inside else self.path


def sites(plan: Plan, params: base.Tree) -> list[Site]:
    """Every place that a plan adapts, in sorted order of paths; the first matching rule wins.

    Kernels match by the path of their leaf, modules (for an `Override`) by their own. A module
    without parameters is found when the rule's last name is literal: `'.*/self_attn/core'`. A key
    `'~shared/NAME'` stands for itself.

    Raises:
      ValueError: for a rule that adapts nothing, with the nearest paths.
    """
    leaves = dict(paths.flatten(params))
    inner = paths.modules(list(leaves))
    found: dict[tuple[str, bool], Site] = {}
    for number, (pattern, rule) in enumerate(plan.items()):
        method = rule.method if isinstance(rule, views.Viewed) else rule
        is_module = isinstance(method, base.Override)
        if pattern.startswith(SHARED):
            found[pattern, True] = Site(pattern, number, _as_override(pattern, method), None)
            continue
        candidates = with_child(inner, pattern) if is_module else list(leaves)
        hits = [p for p in candidates if re.fullmatch(pattern, p) and (p, is_module) not in found]
        if not hits:
            raise ValueError(_nothing(pattern, candidates, {p for p, m in found if m == is_module}))
        for path in hits:
            view = None if is_module else views.of(_as_rule(rule), leaves[path].ndim, path)
            found[path, is_module] = Site(path, number, method, view, getattr(rule, 'ranks', ()))
    return [found[k] for k in sorted(found)]


def _as_rule(rule: Any) -> base.Method | views.Viewed:
    if not isinstance(rule, base.Method | views.Viewed):
        raise TypeError(f'a plan maps a path regex to a Method or an Override, got {type(rule)}')
    return rule


def _as_override(pattern: str, method: Any) -> base.Override:
    if not isinstance(method, base.Override):
        raise TypeError(f'{pattern!r} takes an Override, whose call is run once a forward pass')
    return method


def with_child(inner: list[str], pattern: str) -> list[str]:
    """The module paths; where the rule matches none, also below each the child that it names.

    That is how a module without parameters is found: it has no path of its own in the tree.
    """
    if any(re.fullmatch(pattern, path) for path in inner):
        return inner
    last = pattern.rsplit('/', 1)[-1]
    children = [f'{p}/{last}' for p in inner] if last.isidentifier() else []
    return sorted({*inner, *children})


def _nothing(pattern: str, candidates: list[str], taken: set[str]) -> str:
    shadowed = [p for p in taken if re.fullmatch(pattern, p)]
    if shadowed:
        return (
            f'the rule {pattern!r} adapts nothing: an earlier rule takes all that it matches, '
            f'such as {shadowed[0]}; put the narrower rule first'
        )
    known = sorted({paths.canonical(p)[0] for p in candidates})
    return f'the rule {pattern!r} matches nothing (full match); {nearest(pattern, known)}'


def leaves_of(tree: base.Tree, site: Site) -> dict[str, Any]:
    """The site's own leaves in one of a state's two trees; empty where it has none."""
    node = tree
    for name in site.node.split('/'):
        if name not in node:
            return {}
        node = node[name]
    return node


def site_state(state: base.State, site: Site) -> base.State:
    """The state of one site, floats in float32 whatever dtype they are kept in.

    Raises:
      ValueError: for a kernel of which the state has nothing.
    """
    one = base.State(leaves_of(state.params, site), leaves_of(state.consts, site))
    if site.view is not None and not (one.params or one.consts):
        raise ValueError(
            f'the state holds nothing for {site.path}: it belongs to another plan, or to the base '
            'in its other layout (scanned or unrolled)'
        )
    return jax.tree.map(_as_float32, one)


def _as_float32(leaf: Any) -> Any:
    return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def cast(state: base.State, dtype: Any) -> base.State:
    """The adapter with its trained leaves kept in another float dtype.

    Half the bytes of a checkpoint and of the gradient; the arithmetic stays float32, and so do the
    constants. bfloat16 has 8 bits: steps below 1/256 of a number are lost.
    """
    return state._replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), state.params))


def stack_of(site: Site, leaf_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the layer stack that a site's leaves carry in front."""
    if site.view is None:
        return tuple(site.method.spec.get('stack', ()))
    assert leaf_shape is not None
    return site.view.shape(leaf_shape)[0]


def layer_keys(key: base.Array, path: str, stack: tuple[int, ...]) -> base.Array:
    """One key a layer, the same whether the layers are scanned or unrolled: `[*stack]` keys."""
    name, layer = paths.canonical(path)
    size = math.prod(stack)
    numbers = (layer or 0) * size + jnp.arange(size, dtype=jnp.uint32)
    per_path = jax.random.fold_in(typed_key(key), paths.seed(name))
    return jax.vmap(partial(jax.random.fold_in, per_path))(numbers).reshape(stack)


def typed_key(key: base.Array) -> base.Array:
    """Accepts an old-style uint32 key beside `jax.random.key`'s."""
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if is_typed else jax.random.wrap_key_data(key)


def map_stack(fn: Any, stack: tuple[int, ...], *args: base.Tree) -> base.Tree:
    """Maps `fn` over the leading stack axes, one layer at a time: memory is one layer's."""
    if not stack:
        return fn(*args)
    axes = len(stack)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[axes:]), args)
    out = jax.lax.map(lambda layer: fn(*layer), flat)
    return jax.tree.map(lambda x: x.reshape(*stack, *x.shape[1:]), out)


def vmap_stack(fn: Any, axes: int) -> Any:
    """`fn` over leading stack axes at once: a loop would copy its residuals for the gradient."""
    return fn if axes == 0 else jax.vmap(vmap_stack(fn, axes - 1))


@partial(jax.jit, static_argnums=(0, 1))
def _init_site(init_one: Any, stack: tuple[int, ...], *args: base.Array) -> base.State:
    return map_stack(init_one, stack, *args)


def init(plan: Plan, key: base.Array, params: base.Tree) -> base.State:
    """Draws and computes the adapter of every kernel that a plan names.

    Each site's program is jitted by itself and mapped over the layers of a stack. The key of a
    layer depends on its canonical path and number only: a scanned model and the same model
    unrolled start from the same numbers. Jit it with `out_shardings=shardings(...)` and the
    adapter is born sharded.

    Args:
      plan: path regex -> Method or Override; full match, the first rule wins.
      key: a `jax.random` key.
      params: the base's parameters; neither changed nor copied.

    Returns:
      The state; its trees mirror the base's nesting down to the kernel.

    Raises:
      ValueError: for a rule that matches nothing, or options that do not fit a kernel.
      TypeError: for a base of shapes instead of arrays.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> plan = {'w': jp.methods.lora(rank=2)}
      >>> state = jp.init(plan, jax.random.key(0), {'w': jnp.ones((4, 6))})
      >>> state.params['w']['a'].shape
      (4, 2)
    """
    leaves = dict(paths.flatten(params))
    trained, consts = {}, {}
    for site in sites(plan, params):
        if site.view is None:
            stack = stack_of(site, None)
            state = _init_site(site.method.init, stack, layer_keys(key, site.path, stack))
        else:
            w = leaves[site.path]
            if isinstance(w, jax.ShapeDtypeStruct):
                raise TypeError(
                    f'{site.path} is a shape, not an array: load the weights first, or take the '
                    "state's shapes: jax.eval_shape(functools.partial(jp.init, plan), key, params)"
                )
            stack = stack_of(site, w.shape)
            keys = layer_keys(key, site.path, stack)
            state = _init_site(site.method.init, stack, keys, site.view.to_matrices(w))
            if site.ranks:
                state = ranks.masked(state, site.method.spec, _ranks_of(site, stack))
        trained.update({f'{site.node}/{name}': v for name, v in state.params.items()})
        consts.update({f'{site.node}/{name}': v for name, v in state.consts.items()})
    return base.State(paths.nest(trained), paths.nest(consts))


def check(plan: Plan, state: base.State, params: base.Tree, where: str = '') -> None:
    """Holds a state against what `init` would make: the same leaves, of the same shapes.

    Args:
      plan: the plan.
      state: the adapter, in any dtype.
      params: the base's parameters, or their shapes.
      where: what the message begins with.

    Raises:
      ValueError: listing what is missing, left over and misshaped.
    """
    # The key is drawn under the trace: outside it is a program of its own, compiled and run.
    made = jax.eval_shape(lambda params: init(plan, jax.random.key(0), params), params)
    want, have = (
        {path: leaf.shape for part in one for path, leaf in paths.flatten(part)}
        for one in (made, state)
    )
    both = want.keys() & have.keys()
    wrong = {
        'missing': sorted(want.keys() - both),
        'left over': sorted(have.keys() - both),
        'misshaped': [f'{p} {have[p]} for {want[p]}' for p in sorted(both) if have[p] != want[p]],
    }
    told = [f'{what} ({len(of)}): {", ".join(of[:4])}' for what, of in wrong.items() if of]
    if told:
        raise ValueError(
            f'{where}the adapter is not that of this plan on this base (scanned and unrolled '
            f'layouts differ): {"; ".join(told)}'
        )


def _ranks_of(site: Site, stack: tuple[int, ...]) -> np.ndarray:
    """The ranks of a site's layers, in the shape of its stack."""
    ranks.check(site.method.spec, site.ranks, site.path)
    layer = paths.canonical(site.path)[1]
    here = site.ranks if layer is None else site.ranks[layer : layer + 1]
    if len(here) != math.prod(stack):
        what = f'layer {layer}' if layer is not None else f'{math.prod(stack)} layers'
        raise ValueError(f'{site.path} has {what}, {len(site.ranks)} layer-wise ranks were given')
    return np.reshape(here, stack)


def merge(plan: Plan, state: base.State, params: base.Tree, dtype: Any = None) -> base.Tree:
    """The plain model's parameters with the adapter folded in: `W' = weight(state, W)`.

    Args:
      plan: the plan that `state` was made with.
      state: the adapter.
      params: the base's parameters; left as they are, so that keeping them is the exact unmerge.
      dtype: of the merged kernels. None means float32: rounding `W * (1 + d)` to bfloat16 loses
        every `d` below 0.004.

    Returns:
      A tree of the base's structure, with new arrays only where the plan adapts. Differentiable in
      `state.params`.

    Raises:
      ValueError: for a method that depends on its input, or an override: they have no weight.
    """
    leaves = dict(paths.flatten(params))
    merged = {}
    for site in sites(plan, params):
        if site.view is None or site.method.weight is None:
            raise ValueError(
                f'{site.path}: {site.method.spec["name"]} depends on its input and has no merged '
                'weight; call the model through jp.bind instead'
            )
        kernel = leaves[site.path]
        w = site.view.to_matrices(kernel)
        new = map_stack(
            site.method.weight, stack_of(site, kernel.shape), site_state(state, site), w
        )
        merged[site.path] = new.reshape(kernel.shape).astype(dtype or jnp.float32)
    return paths.replaced(params, merged)


def penalty(plan: Plan, state: base.State, params: base.Tree) -> base.Array:
    """The sum of all the methods' penalties over all sites and layers: float32 scalar.

    Add it once per update, and report it apart from the language-model loss.
    """
    leaves = dict(paths.flatten(params))
    total = jnp.zeros((), jnp.float32)
    for site in sites(plan, params):
        one: Any = site.method.penalty
        args: tuple[Any, ...] = (site_state(state, site),)
        shape = None if site.view is None else leaves[site.path].shape
        if site.view is not None:
            args += (site.view.to_matrices(leaves[site.path]),)
        if one is not base.no_penalty:
            total += vmap_stack(one, len(stack_of(site, shape)))(*args).sum()
    return total
