"""The three types that everything else is made of: State, Method, Override.

Letters, used everywhere: `w [n, m]` the frozen kernel (in, out), `x [..., n]` its input,
`y [..., m]` its output, `a [n, r]` and `b [r, m]` the factors, `sigma [r]` singular values,
`gate [r]` gate logits. Adapter leaves and their arithmetic are float32 over a base of any dtype.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array
Tree = Any  # nested dicts of arrays, as Flax makes them


class State(NamedTuple):
    """What an adapter holds, of one kernel or of a whole tree.

    Attributes:
      params: trained leaves. For one kernel a flat dict `{'a': [n, r], 'b': [r, m], ...}`; for a
        tree the base's nesting down to the kernel, then those leaves.
      consts: leaves computed once from the base (`sigma`, `norm`, a frozen factor): saved with the
        adapter, sharded with it, never trained.
    """

    params: Tree
    consts: Tree


class Method(NamedTuple):
    """Pure functions over ONE kernel `w [n, m]`; no Flax, no mesh, no files.

    Attributes:
      spec: `{'name': 'knowhira', 'rank': 32, ...}`: enough to rebuild the method; saved with it.
      init: `(key, w) -> State`.
      apply: `(state, w, x [..., n], *, key=None, side=None) -> y [..., m]`, what replaces
        `x @ w`, in that product's dtype. `key=None` means no dropout; `side` is what `bind` got.
        None: the method is of any leaf, kernel or not; `bind` puts `weight(state, leaf)` in the
        leaf's place before the call (full fine-tuning, trained biases).
      weight: `(state, w) -> [n, m]` float32, the effective kernel; None where the method depends
        on its input and so cannot be merged.
      penalty: `(state, w) -> ()` float32, added to the loss once per update.
      lookup: `(state, w [V, D], ids [...]) -> [..., D]` float32, what the update adds to the rows
        of an embedding table; None where the method has no form for tables.
      attend: `(state, w [V, D], x [..., D]) -> [..., V]` float32, what the update adds to
        `x @ w.T`, a tied head's logits.
      hoist: `(state [*stack, ...]) -> state` of equal values: what `bind` passes the leaves of all
        layers through before the layers' loop, so that a gradient which follows from others is
        made once outside, and not kept by every layer. None: nothing.
    """

    spec: Mapping[str, Any]
    init: Callable[..., State]
    apply: Callable[..., Array] | None
    weight: Callable[..., Array] | None
    penalty: Callable[..., Array]
    lookup: Callable[..., Array] | None = None
    attend: Callable[..., Array] | None = None
    hoist: Callable[[State], State] | None = None


class Override(NamedTuple):
    """Pure functions over one MODULE's call (an attention core, an FFN), matched on its path.

    Attributes:
      spec: as in `Method`. `spec['stack']`, when given, is the shape of the layer stack that a
        scanned module is sliced from; `init` is mapped over it. `()` or missing: not scanned.
      init: `(key) -> State`, for one layer.
      call: `(state, next, *args, key=None, side=None, **kwargs) -> output`; `next` is the
        module's own call.
      penalty: `(state) -> ()` float32.
    """

    spec: Mapping[str, Any]
    init: Callable[..., State]
    call: Callable[..., Any]
    penalty: Callable[..., Array]


def no_penalty(state: State, w: Array | None = None) -> Array:
    """The penalty of a method that has none: float32 zero."""
    del state, w
    return jnp.zeros((), jnp.float32)


def precision() -> str | None:
    """The matmul precision that holds here, for a backward pass, which is traced elsewhere."""
    return jax.config.values['jax_default_matmul_precision']


def after(x: Array, first: Array) -> Array:
    """`x` itself, float32, which XLA's program makes only when `first` is there.

    A true dependency on one number of `first`: a maximum with -inf, unless that number is inf.
    XLA's CPU compiler drops an optimization barrier before it orders a program, and begins with
    all that can begin: the sums `W o (1 + D)` of all of a layer's kernels. On a mesh, where one
    number of an array would have to go round, it does nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> after(jnp.array([1.0, -2.0]), jnp.array([[jnp.nan]])).tolist()
      [1.0, -2.0]
    """
    if first.size == 0 or jax.sharding.get_abstract_mesh().size > 1:
        return x
    late = first.ravel()[0].astype(jnp.float32)
    return jnp.maximum(x, jnp.where(late > jnp.finfo(jnp.float32).max, late, -jnp.inf))


def summed(y: Array) -> Array:
    """`y`, a sum of products, marked for remat policies: one that keeps products keeps it instead.

    Those of scanned layers do (`jaxpeft.models.stack`): a sum of two is one array and not two.
    """
    return checkpoint_name(y, 'summed')


def dropout(key: Array | None, x: Array, rate: float) -> Array:
    """Inverted dropout: `x * mask / (1 - rate)`; `x` itself without a key or with rate 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def check_options(name: str, w_shape: tuple[int, ...], rank: int, kept: int = 0) -> None:
    """Refuses a rank that a kernel of this shape cannot hold.

    Args:
      name: of the method.
      w_shape: the kernel's.
      rank: what was asked for.
      kept: singular triplets that must stay beside those of the adapter.

    Raises:
      ValueError: unless `1 <= rank <= min(w_shape) - kept`, in whole numbers.
    """
    limit, shape = min(w_shape) - kept, tuple(w_shape)
    if limit < 1:
        raise ValueError(f'{name}: a kernel of shape {shape} holds no rank; leave it out')
    if not isinstance(rank, int | np.integer) or not 1 <= rank <= limit:
        nearest = min(max(math.ceil(rank), 1), limit)
        why = f', of which {kept} singular triplet stays' if kept else ''
        raise ValueError(
            f'{name}: rank must be a whole number in [1, {limit}] for a kernel of shape '
            f'{shape}{why}, got rank={rank}; the nearest valid choice is {nearest}'
        )


def check_not_negative(name: str, **options: float) -> None:
    """Refuses negative options. A traced one (a sweep trains many at once) passes unseen.

    Raises:
      ValueError: naming the method, the option and its value.
    """
    if any(known(value) and not value >= 0.0 for value in options.values()):  # nan is neither
        names, values = ' and '.join(options), ' and '.join(map(str, options.values()))
        raise ValueError(f'{name}: {names} must not be negative, got {values}')


def known(value: Any) -> bool:
    """Whether an option is a number now, and not one that the compiled program will be given."""
    return not isinstance(value, jax.core.Tracer)


def check_rate(name: str, rate: float) -> None:
    """Refuses a dropout rate outside [0, 1).

    Raises:
      ValueError: naming the method and the rate.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f'{name}: dropout must be in [0, 1), got {rate}')
