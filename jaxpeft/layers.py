"""How a Linen layer runs with an adapter in its kernel's place: one rule a class.

`bind` finds the layers and their adapters; what stands here knows what each class does with its
kernel: its axes, dtypes, precision and bias.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
        assert self.method.apply is not None  # such a method has replaced its leaf before
        return self.method.apply(self.state, self.w, x, key=self.key, side=self.side)


def unboxed(value: Any) -> base.Array:
    return value.unbox() if hasattr(value, 'unbox') else value


def rule_of(cls: type, rules: Mapping[type, Any]) -> Any:
    """The rule of the class that defines `__call__`: a subclass with a call of its own has none.

    A tied head may be written anew (with float32 logits, say): its rule adds to what comes out.
    """
    for parent in cls.__mro__:
        if parent in rules:
            return rules[parent]
        if '__call__' in vars(parent):
            return None
    return None


def check_view(site: tree.Site, kernel: base.Array, module: nn.Module) -> None:
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
    x, w, bias = promote_dtype(x, adapted.w, unboxed(bias), dtype=module.dtype)
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
        return base.precision()
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
    axis = tuple(sorted(i % inputs.ndim for i in axis))  # the kernel has them in this order
    outs = (module.features,) if isinstance(module.features, int) else tuple(module.features)
    x = jnp.moveaxis(inputs, axis, range(-len(axis), 0))
    return _linear(module, adapted['kernel'], x, len(axis), outs)


def _table(next_fun: Any, path: str, adapted: Adapted, ids: base.Array) -> base.Array:
    """The rows of an embedding table, each with its update."""
    if adapted.method.lookup is None:
        raise ValueError(_no_table(path, adapted))
    rows = next_fun(ids)
    update = adapted.method.lookup(adapted.state, adapted.w, ids)
    return (rows.astype(jnp.float32) + update).astype(rows.dtype)


def _tied_head(next_fun: Any, path: str, adapted: Adapted, x: base.Array) -> base.Array:
    """The logits of a tied head: the same table, so the same update."""
    if adapted.method.attend is None:
        raise ValueError(_no_table(path, adapted))
    logits = next_fun(x)
    update = adapted.method.attend(adapted.state, adapted.w, x)
    return (logits.astype(jnp.float32) + update).astype(logits.dtype)


def _no_table(path: str, adapted: Adapted) -> str:
    return (
        f'{path}: {adapted.method.spec["name"]} has no form for embedding tables; lora has one, '
        'full trains the table itself'
    )


LAYERS: dict[type, Callable[..., Any]] = {
    nn.Dense: _dense,
    nn.DenseGeneral: _dense_general,
    nn.Embed: _table,
}
ATTEND: dict[type, Callable[..., Any]] = {nn.Embed: _tied_head}
TABLE_RULES = (_table, _tied_head)  # these add to the layer's own call
