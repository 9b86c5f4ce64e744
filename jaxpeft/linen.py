"""`bind`: run someone's Linen model with adapters. It and `layers` alone know Flax modules.

Each adapter is grafted beside its kernel in a transient copy of the parameter dict (no array is
copied) and read back from the layer's own scope by an interceptor that is entered inside the call.
Variables in the scope are sliced, rematerialised and vmapped together with the kernel, so no
transform needs a case of its own; a dictionary in a closure would not be sliced.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.linen as nn

from jaxpeft import base, paths, tree
from jaxpeft.layers import ATTEND, LAYERS, TABLE_RULES, Adapted, check_view, rule_of, unboxed


class _Trace:
    """What one call saw: which grafted slots were read, and which class sits at which path."""

    def __init__(self, found: list[tree.Site], layers: Mapping[type, Any], side: Any):
        inner = [site for site in found if not (_is_leaf(site) or site.shared)]
        self.sites = {(site.path, site.rule): site for site in inner}
        self.slots = {_slot(site): site.rule for site in inner}
        self.rules = {'__call__': {**LAYERS, **layers}, 'attend': ATTEND}
        self.side = side
        self.read: set[tuple[str, int]] = set()
        self.classes: dict[str, str] = {}

    def interceptor(self, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        rules = self.rules.get(context.method_name)
        if module.scope is None or rules is None:
            return next_fun(*args, **kwargs)
        path = '/'.join(module.scope.path)
        self.classes[path] = type(module).__name__
        here = [s for s in self.slots if module.scope.has_variable('params', s)]
        kernels = [s for s in here if not s.endswith('~')]
        call = self._layer(module, path, kernels, next_fun, rule_of(type(module), rules))
        if context.method_name == '__call__':
            for slot in (s for s in here if s.endswith('~')):
                call = self._override(module, path, slot, call)
        return call(*args, **kwargs)

    def _take(self, module: Any, path: str, slot: str) -> tuple[tree.Site, dict[str, Any]]:
        site = self.sites[path, self.slots[slot]]
        self.read.add((site.path, site.rule))
        return site, module.scope.get_variable('params', slot)

    def _layer(self, module: Any, path: str, slots: list[str], next_fun: Any, rule: Any) -> Any:
        """The layer's call with its kernels adapted; its own where no rule knows the layer."""
        if not slots or rule is None:
            return next_fun
        adapted = {}
        for slot in slots:
            leaf = slot.rsplit('~', 1)[1]
            site, grafted = self._take(module, f'{path}/{leaf}' if path else leaf, slot)
            kernel = unboxed(module.scope.get_variable('params', leaf))
            check_view(site, kernel, module)
            state = base.State(grafted['params'], grafted['consts'])
            adapted[leaf] = Adapted(site.method, state, kernel, grafted.get('key'), self.side)
        if rule in TABLE_RULES:
            return functools.partial(rule, next_fun, path, adapted['embedding'])
        return lambda *args, **kwargs: rule(module, adapted, *args, **kwargs)

    def _override(self, module: Any, path: str, slot: str, next_fun: Any) -> Any:
        site, grafted = self._take(module, path, slot)
        state = base.State(grafted['params'], grafted['consts'])
        key = grafted.get('key')
        return lambda *args, **kwargs: site.method.call(
            state, next_fun, *args, key=key, side=self.side, **kwargs
        )

    def check_all_read(self) -> None:
        unread = [site for at, site in self.sites.items() if at not in self.read]
        if not unread:
            return
        shown = [f'  {s.path} in {self._class_at(s)}' for s in unread[:8]]
        raise ValueError(
            f'{len(unread)} adapted kernel(s) were not used by this call, so their adapters would '
            'be silently ignored:\n'
            + '\n'.join(shown)
            + '\njp.bind knows nn.Dense and nn.DenseGeneral, and sees nothing in what was '
            'jitted before: jit what bind returns. Give a layer that multiplies its kernel in its '
            'own way a rule: jp.bind(plan, apply, layers={Class: rule}) with rule(module, adapted, '
            "x), where adapted['kernel'](x) stands for x @ kernel; or leave the kernel out of the "
            'plan.'
        )

    def _class_at(self, site: tree.Site) -> str:
        parent = site.path if site.view is None else site.path.rpartition('/')[0]
        return self.classes.get(parent, 'a module that was not called')


def _slot(site: tree.Site) -> str:
    """The name of a grafted entry: `~0~kernel` beside a kernel, `~0~` inside a module."""
    return f'~{site.rule}~' + ('' if site.view is None else site.path.rsplit('/', 1)[-1])


def _graft(
    found: list[tree.Site], state: base.State, params: Mapping[str, Any], dropout_key: Any
) -> dict[str, Any]:
    """A copy of the dicts (not of the arrays) with every site's state beside its kernel."""
    leaves = {site.path: _new_leaf(params, site, state) for site in found if _is_leaf(site)}
    grafted = paths.replaced(params, leaves)
    for site in found:
        if site.shared or _is_leaf(site):
            continue
        parent = site.path if site.view is None else site.path.rpartition('/')[0]
        node = grafted
        for name in parent.split('/') if parent else ():
            node = node.setdefault(name, {})
        one = tree.site_state(state, site)
        if hoist := getattr(site.method, 'hoist', None):  # an Override has none
            one = hoist(one)
        entry: dict[str, Any] = {'params': one.params, 'consts': one.consts}
        if dropout_key is not None:
            kernel = None if site.view is None else unboxed(node[site.path.rsplit('/', 1)[-1]])
            stack = tree.stack_of(site, None if kernel is None else kernel.shape)
            entry['key'] = tree.layer_keys(dropout_key, site.path, stack)
        node[_slot(site)] = entry
    return grafted


def _is_leaf(site: tree.Site) -> bool:
    """Whether the site's method is of any leaf, and so replaces it before the call."""
    return site.view is not None and site.method.apply is None


def _new_leaf(params: Mapping[str, Any], site: tree.Site, state: base.State) -> base.Array:
    """`weight(state, leaf)` in the leaf's dtype."""
    leaf = unboxed(paths.get(params, site.path))
    assert site.view is not None
    stack = tree.stack_of(site, leaf.shape)
    new = tree.vmap_stack(site.method.weight, len(stack))(tree.site_state(state, site), leaf)
    return new.astype(leaf.dtype)


def _with_shared(found: list[tree.Site], state: base.State, side: Any) -> Any:
    """`side` with each shared part's entry run through its call, once for all layers."""
    for site in (s for s in found if s.shared):
        name = site.path.removeprefix(tree.SHARED)
        if side is not None and name in side:
            one = tree.site_state(state, site)
            side = {**side, name: site.method.call(one, None, side[name])}
    return side


def bind(
    plan: tree.Plan,
    apply_fn: Callable[..., Any],
    *,
    layers: Mapping[type, Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
    """The model's apply function with adapters in it.

    Works under `jit`, `grad`, `vmap`, `nn.scan` and `nn.remat`, on any Linen model whose adapted
    layers are `nn.Dense` or `nn.DenseGeneral`; others take a rule of their own.

    Args:
      plan: path regex -> Method or Override, as given to `init`.
      apply_fn: usually `model.apply`: `(variables, *args, **kwargs) -> anything`. Jit what `bind`
        returns, and not this: a jitted function that is traced once is never intercepted again. A
        tied head is seen where it calls `nn.Embed.attend`; `h @ embedding.T` is not.
      layers: `{Class: rule}` for layers that multiply their kernels in their own way.
        `rule(module, adapted, *args, **kwargs)` replaces the layer's call;
        `adapted['kernel'](x [..., n]) -> [..., m]` stands for `x @ kernel`.

    Returns:
      `forward(state, variables, *args, dropout_key=None, side=None, **kwargs)`, a pure function
      that returns whatever `apply_fn` does. `dropout_key=None` switches dropout off. `side` is a
      dict that every adapter gets; where the plan has `'~shared/NAME'`, `side[NAME]` goes through
      that part's call first.

    Raises:
      ValueError: (from the returned function, while it is traced) for an adapter that no layer
        read, with its path and the module's class; for a view that the layer contradicts.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxpeft as jp
      >>> model, key, x = nn.Dense(4), jax.random.key(0), jnp.ones((2, 3))
      >>> params = model.init(key, x)['params']
      >>> plan = {'kernel': jp.methods.lora(rank=1)}
      >>> forward = jp.bind(plan, model.apply)
      >>> forward(jp.init(plan, key, params), {'params': params}, x).shape
      (2, 4)
    """
    plan = dict(plan)

    def forward(
        state: base.State,
        variables: Mapping[str, Any],
        *args: Any,
        dropout_key: Any = None,
        side: Any = None,
        **kwargs: Any,
    ) -> Any:
        params = flax.core.unfreeze(variables['params'])
        found = tree.sites(plan, params)
        trace = _Trace(found, layers or {}, _with_shared(found, state, side))
        grafted = {**variables, 'params': _graft(found, state, params, dropout_key)}
        with nn.intercept_methods(trace.interceptor):
            out = apply_fn(grafted, *args, **kwargs)
        trace.check_all_read()
        return out

    return forward
