"""`bind`: run someone's Linen model with adapters. The only file that knows Flax modules.

Each adapter is grafted beside its kernel in a transient copy of the parameter dict (no array is
copied) and read back from the layer's own scope by an interceptor that is entered inside the call.
Variables in the scope are sliced, rematerialised and vmapped together with the kernel, so no
transform needs a case of its own; a dictionary in a closure would not be sliced.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxpeft import base, tree, views


class Adapted(NamedTuple):
    """One kernel with its adapter, as a layer rule gets it: call it in place of `x @ kernel`."""

    method: base.Method
    state: base.State
    w: base.Array
    key: base.Array | None
    side: Any

    def __call__(self, x: base.Array) -> base.Array:
        """`x [..., n] -> y [..., m]`."""
        return self.method.apply(self.state, self.w, x, key=self.key, side=self.side)


class _Trace:
    """What one call saw: which grafted slots were read, and which class sits at which path."""

    def __init__(self, found: list[tree.Site], layers: Mapping[type, Any], side: Any):
        self.sites = {(site.path, site.rule): site for site in found}
        self.slots = {_slot(site): site.rule for site in found}
        self.rules = {**LAYERS, **layers}
        self.side = side
        self.read: set[tuple[str, int]] = set()
        self.classes: dict[str, str] = {}

    def interceptor(self, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if module.scope is None or context.method_name != '__call__':
            return next_fun(*args, **kwargs)
        path = '/'.join(module.scope.path)
        self.classes[path] = type(module).__name__
        here = [s for s in self.slots if module.scope.has_variable('params', s)]
        call = self._layer(module, path, [s for s in here if not s.endswith('~')], next_fun)
        for slot in (s for s in here if s.endswith('~')):
            call = self._override(module, path, slot, call)
        return call(*args, **kwargs)

    def _take(self, module: Any, path: str, slot: str) -> tuple[tree.Site, dict[str, Any]]:
        site = self.sites[path, self.slots[slot]]
        self.read.add((site.path, site.rule))
        return site, module.scope.get_variable('params', slot)

    def _layer(self, module: Any, path: str, slots: list[str], next_fun: Any) -> Any:
        """The layer's call with its kernels adapted; its own where no rule knows the layer."""
        rule = _rule_of(type(module), self.rules)
        if not slots or rule is None:
            return next_fun
        adapted = {}
        for slot in slots:
            leaf = slot.rsplit('~', 1)[1]
            site, grafted = self._take(module, f'{path}/{leaf}' if path else leaf, slot)
            kernel = _unboxed(module.scope.get_variable('params', leaf))
            _check_view(site, kernel, module)
            state = base.State(grafted['params'], grafted['consts'])
            adapted[leaf] = Adapted(site.method, state, kernel, grafted.get('key'), self.side)
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
            + '\njp.bind knows nn.Dense and nn.DenseGeneral. Give a layer that multiplies its '
            'kernel in its own way a rule: jp.bind(plan, apply, layers={Class: rule}) with '
            "rule(module, adapted, x), where adapted['kernel'](x) stands for x @ kernel; or leave "
            'the kernel out of the plan.'
        )

    def _class_at(self, site: tree.Site) -> str:
        parent = site.path if site.view is None else site.path.rpartition('/')[0]
        return self.classes.get(parent, 'a module that was not called')


def _slot(site: tree.Site) -> str:
    """The name of a grafted entry: `~0~kernel` beside a kernel, `~0~` inside a module."""
    return f'~{site.rule}~' + ('' if site.view is None else site.path.rsplit('/', 1)[-1])


def _unboxed(value: Any) -> base.Array:
    return value.unbox() if hasattr(value, 'unbox') else value


def _rule_of(cls: type, rules: Mapping[type, Any]) -> Any:
    """The rule of the class that defines `__call__`: a subclass with a call of its own has none."""
    for parent in cls.__mro__:
        if parent in rules:
            return rules[parent]
        if '__call__' in vars(parent):
            return None
    return None


def _check_view(site: tree.Site, kernel: base.Array, module: nn.Module) -> None:
    """Holds the plan's reading of a kernel against the layer that uses it."""
    want = _axes_of(module)
    view = site.view
    assert view is not None
    if want is None or (view.n_in, view.n_out, view.n_in + view.n_out) == (*want, kernel.ndim):
        return
    n_in, n_out = want
    ins, outs = 'i' if n_in == 1 else '(h d)', 'o' if n_out == 1 else '(h d)'
    raise ValueError(
        f'{site.path}: {type(module).__name__} reads its kernel with {n_in} in and {n_out} out '
        f'axes (shape {kernel.shape} in the layer), the plan with {view.n_in} in and {view.n_out} '
        f"out axes; say jp.on(method, '{ins} {outs}'), with 'l ' in front under a layer scan"
    )


def _axes_of(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.DenseGeneral):
        return _length(module.axis), _length(module.features)
    return (1, 1) if isinstance(module, nn.Dense) else None


def _length(x: Any) -> int:
    return 1 if isinstance(x, int) else len(x)


def _linear(module: Any, adapted: Adapted, x: base.Array, n_in: int, outs: tuple[int, ...]) -> Any:
    """`x @ kernel + bias` in the layer's own dtypes, with the adapter; `x [..., *ins]`."""
    if module.dot_general is not None or getattr(module, 'dot_general_cls', None) is not None:
        raise ValueError(
            f'{type(module).__name__} {"/".join(module.scope.path)} has a dot_general of its own '
            '(quantised?), which an adapter would bypass; leave it out of the plan'
        )
    bias = module.scope.get_variable('params', 'bias') if module.use_bias else None
    x, w, bias = promote_dtype(x, adapted.w, _unboxed(bias), dtype=module.dtype)
    lead = x.shape[: x.ndim - n_in]
    w = views.View(0, n_in, w.ndim - n_in).to_matrices(w)
    with jax.default_matmul_precision(_precision(module)):
        y = adapted._replace(w=w)(x.reshape(*lead, -1)).reshape(*lead, *outs)
    if bias is None:
        return y
    return y + jnp.broadcast_to(bias, y.shape)


def _precision(module: Any) -> str | None:
    """The layer's precision as the config option's name; None keeps the current one."""
    precision = module.precision
    if precision is None:
        return jax.config.values['jax_default_matmul_precision']
    if isinstance(precision, tuple | list):
        raise ValueError(f'one precision for both operands, got {precision}')
    return str(getattr(precision, 'name', precision)).lower()


def _dense(module: nn.Dense, adapted: Mapping[str, Adapted], inputs: base.Array) -> base.Array:
    return _linear(module, adapted['kernel'], inputs, 1, (module.features,))


def _dense_general(module: Any, adapted: Mapping[str, Adapted], inputs: base.Array) -> base.Array:
    if _length(module.batch_dims):
        raise ValueError(
            f'{"/".join(module.scope.path)}: batch_dims of a DenseGeneral have no rule'
        )
    axis = (module.axis,) if isinstance(module.axis, int) else tuple(module.axis)
    outs = (module.features,) if isinstance(module.features, int) else tuple(module.features)
    x = jnp.moveaxis(inputs, axis, range(-len(axis), 0))
    return _linear(module, adapted['kernel'], x, len(axis), outs)


LAYERS: dict[type, Callable[..., Any]] = {nn.Dense: _dense, nn.DenseGeneral: _dense_general}


def _graft(
    found: list[tree.Site], state: base.State, params: Mapping[str, Any], dropout_key: Any
) -> dict[str, Any]:
    """A copy of the dicts (not of the arrays) with every site's state beside its kernel."""
    grafted = _copied_dicts(params)
    for site in found:
        parent = site.path if site.view is None else site.path.rpartition('/')[0]
        node = grafted
        for name in parent.split('/') if parent else ():
            node = node.setdefault(name, {})
        one = tree.site_state(state, site)
        entry: dict[str, Any] = {'params': one.params, 'consts': one.consts}
        if dropout_key is not None:
            kernel = None if site.view is None else _unboxed(node[site.path.rsplit('/', 1)[-1]])
            stack = tree.stack_of(site, None if kernel is None else kernel.shape)
            entry['key'] = tree.layer_keys(dropout_key, site.path, stack)
        node[_slot(site)] = entry
    return grafted


def _copied_dicts(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {name: _copied_dicts(value) for name, value in node.items()}
    return node


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
      apply_fn: usually `model.apply`: `(variables, *args, **kwargs) -> anything`.
      layers: `{Class: rule}` for layers that multiply their kernels in their own way.
        `rule(module, adapted, *args, **kwargs)` replaces the layer's call;
        `adapted['kernel'](x [..., n]) -> [..., m]` stands for `x @ kernel`.

    Returns:
      `forward(state, variables, *args, dropout_key=None, side=None, **kwargs)`, a pure function
      that returns whatever `apply_fn` does. `dropout_key=None` switches dropout off.

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
        trace = _Trace(found, layers or {}, side)
        grafted = {**variables, 'params': _graft(found, state, params, dropout_key)}
        with nn.intercept_methods(trace.interceptor):
            out = apply_fn(grafted, *args, **kwargs)
        trace.check_all_read()
        return out

    return forward
