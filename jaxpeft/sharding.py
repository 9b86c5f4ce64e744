"""Where an adapter's leaves live on a mesh: beside the axes of the kernel that they belong to.

`a [n, r]` follows the kernel's in axis, `b [r, m]` its out axis, the rank axis is replicated, the
stack of a layer scan stays as the kernel's. Which axis of a leaf is which is not declared by any
method: its `init` is shaped on a kernel whose sides are two distinct primes, and shows.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxpeft import base, paths, tree, views

IN_PROBE, OUT_PROBE = (
    100_003,
    100_019,
)  # primes above any rank: a leaf's axis of this size is in, out


def shardings(plan: tree.Plan, state_shape: base.State, base_shardings: base.Tree) -> base.State:
    """The sharding of every leaf of an adapter, derived from the base's.

    Args:
      plan: the plan.
      state_shape: `jax.eval_shape(partial(jp.init, plan), key, params)`, or a state.
      base_shardings: the base's tree with a `NamedSharding` for every leaf.

    Returns:
      A state of `NamedSharding`s, for `jit(init, out_shardings=...)` and the optimizer's state.

    Raises:
      ValueError: for an adapted kernel that has no `NamedSharding`.

    Example:
      >>> import functools, jax, jax.numpy as jnp, jaxpeft as jp
      >>> mesh = jax.make_mesh((1,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
      >>> kernel = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp', None))
      >>> plan, params = {'w': jp.methods.lora(rank=2)}, {'w': jnp.ones((4, 6))}
      >>> shapes = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
      >>> tuple(jp.shardings(plan, shapes, {'w': kernel}).params['w']['a'].spec)
      ('fsdp', None)
    """
    known = dict(paths.flatten(base_shardings))
    kernels = [p for p, rule in plan.items() if not isinstance(rule, base.Override)]
    probes = {pattern: _probe(plan[pattern]) for pattern in kernels}

    def place(part: str) -> base.Tree:
        placed = {}
        for path, leaf in paths.flatten(getattr(state_shape, part)):
            site, _, name = path.rpartition('/')
            if site.endswith(f'/{tree.OVERRIDE}') or site.startswith(tree.SHARED):
                placed[path] = NamedSharding(_any_mesh(known), PartitionSpec())
                continue
            pattern = next(p for p in kernels if re.fullmatch(p, site))
            probe = probes[pattern]
            if probe is None:  # a leaf of the base as it is
                placed[path] = _kernel(site, known)
                continue
            at = getattr(probe, part).get(name)
            sides = () if at is None else at.shape  # layer-wise ranks are not a method's own
            placed[path] = _leaf(leaf, sides, _kernel(site, known), plan[pattern])
        return paths.nest(placed)

    return base.State(place('params'), place('consts'))


def _probe(rule: Any) -> base.State | None:
    """The shapes of a method's leaves on a kernel whose sides can be told apart."""
    method = rule.method if isinstance(rule, views.Viewed) else rule
    if method.apply is None:
        return None
    kernel = jax.ShapeDtypeStruct((IN_PROBE, OUT_PROBE), jnp.float32)
    return jax.eval_shape(lambda kernel: method.init(jax.random.key(0), kernel), kernel)


def _kernel(site: str, known: dict[str, Any]) -> NamedSharding:
    sharding = known.get(site)
    if not isinstance(sharding, NamedSharding):
        raise ValueError(
            f'{site} is adapted but its base sharding is {sharding}, not a NamedSharding'
        )
    return sharding


def _any_mesh(known: dict[str, Any]) -> Any:
    return next(s.mesh for s in known.values() if isinstance(s, NamedSharding))


def _leaf(leaf: Any, sides: tuple[int, ...], kernel: NamedSharding, rule: Any) -> NamedSharding:
    """The kernel's sharding carried over to a leaf whose probed shape is `sides`."""
    stack = leaf.ndim - len(sides)
    viewed = rule.view if isinstance(rule, views.Viewed) else None
    view = viewed or views.View(stack, 1, 1)
    spec = tuple(kernel.spec) + (None,) * (view.ndim - len(kernel.spec))
    ins, outs = spec[stack : stack + view.n_in], spec[stack + view.n_in :]
    axis = {IN_PROBE: _merged(ins), OUT_PROBE: _merged(outs)}
    wanted = (*spec[:stack], *(axis.get(side) for side in sides))
    fits = [
        a if _divides(kernel.mesh, a, n) else None for a, n in zip(wanted, leaf.shape, strict=True)
    ]
    return NamedSharding(kernel.mesh, PartitionSpec(*fits))


def _merged(group: tuple[Any, ...]) -> Any:
    """The axis of several kernel axes read as one: the major one's, if no other is sharded."""
    return group[0] if not any(group[1:]) else None


def _divides(mesh: Any, axis: Any, size: int) -> bool:
    names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
    return size % math.prod(mesh.shape[name] for name in names) == 0
