"""How a kernel of any shape is read as a stack of matrices [n, m].

The default: the last two axes are in and out, leading axes are the stack of a layer scan. Any other
kernel says so: `on(method, 'l (h d) o')` is the output projection of a scanned attention layer,
whose heads and head sizes are together the input.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from jaxpeft import base, paths


class View(NamedTuple):
    """The number of stack, in and out axes of a kernel, in this order from the left.

    Without in and out axes it is the view of a leaf as it is, of any shape: what a method without
    `apply` gets.
    """

    stack: int
    n_in: int
    n_out: int

    @property
    def ndim(self) -> int:
        return self.stack + self.n_in + self.n_out

    def shape(self, kernel_shape: Sequence[int]) -> tuple[tuple[int, ...], int, int]:
        """(stack shape, n, m) of a kernel of this shape."""
        cut = self.stack + self.n_in
        stack, ins, outs = (
            kernel_shape[: self.stack],
            kernel_shape[self.stack : cut],
            kernel_shape[cut:],
        )
        return tuple(stack), math.prod(ins), math.prod(outs)

    def to_matrices(self, kernel: jax.Array) -> jax.Array:
        """`[*stack, *ins, *outs] -> [*stack, n, m]`."""
        stack, n, m = self.shape(kernel.shape)
        return kernel.reshape(*stack, n, m) if self.n_in else kernel


class Viewed(NamedTuple):
    """A method with more than its kernels' default reading; made by `on` and `layerwise`.

    Attributes:
      method: the method.
      pattern: the view as it was written; None for the default view.
      view: the same, read.
      ranks: a rank for each layer; empty: the method's own for all.
    """

    method: base.Method
    pattern: str | None
    view: View | None
    ranks: tuple[int, ...] = ()


def on(method: base.Method, pattern: str) -> Viewed:
    """Says how a plan's kernels are to be read.

    Args:
      method: the method.
      pattern: the kernel's axes, groups in brackets: the last two entries are in and out, the ones
        before them the stack of a layer scan. `'i (h d)'` is a DenseGeneral to heads, `'(h d) o'`
        one from heads, `'l (h d) o'` the latter under a layer scan.

    Returns:
      What stands in a plan in the method's place.

    Raises:
      ValueError: when the pattern is not of that form.

    Example:
      >>> import jaxpeft as jp
      >>> plan = {r'.*/out/kernel': jp.on(jp.methods.lora(rank=4), '(h d) o')}
    """
    return Viewed(method, pattern, parse(pattern))


def layerwise(rule: base.Method | Viewed, ranks: Sequence[int]) -> Viewed:
    """Gives every layer a rank of its own; see `jaxpeft.ranks`.

    Args:
      rule: a method (or what `on` made of it) whose rank is the largest of `ranks`.
      ranks: one a layer, layer 0 first.

    Returns:
      What stands in a plan in the method's place; `init` holds it against the model's layers.

    Raises:
      ValueError: without ranks.
      TypeError: for an Override, which has none.

    Example:
      >>> import jaxpeft as jp
      >>> rule = jp.layerwise(jp.methods.lora(rank=8), [8, 6, 4])
      >>> rule.ranks
      (8, 6, 4)
    """
    viewed = rule if isinstance(rule, Viewed) else Viewed(rule, None, None)
    if isinstance(viewed.method, base.Override):
        raise TypeError(f'{viewed.method.spec["name"]} is an Override: it has no rank for a layer')
    if not len(ranks):
        raise ValueError('layerwise takes a rank for each layer, got none')
    return viewed._replace(ranks=tuple(ranks))


def parse(pattern: str) -> View:
    """The view that a pattern such as 'l (h d) o' describes."""
    entry = r'(?:[A-Za-z_]\w*|\([A-Za-z_]\w*(?: [A-Za-z_]\w*)*\))'
    if not re.fullmatch(rf'{entry}(?: {entry})+', pattern):
        raise ValueError(
            f"a view is two or more axes or bracketed groups such as 'l (h d) o', got {pattern!r}"
        )
    entries = re.findall(entry, pattern)
    names = re.findall(r'\w+', pattern)
    if len(set(names)) != len(names):
        raise ValueError(f'each axis of a view has a name of its own, got {pattern!r}')
    grouped = [e for e in entries[:-2] if e.startswith('(')]
    if grouped:
        raise ValueError(
            f'only in and out may be groups, not the stack axis {grouped[0]} of {pattern!r}'
        )
    size = lambda e: len(e.strip('()').split())
    return View(len(entries) - 2, size(entries[-2]), size(entries[-1]))


def of(rule: base.Method | Viewed, ndim: int, path: str) -> View:
    """The view of a kernel with `ndim` axes under a plan's rule.

    Raises:
      ValueError: when the kernel's axes do not fit the rule's view.
    """
    viewed = rule if isinstance(rule, Viewed) else Viewed(rule, None, None)
    if viewed.method.apply is None:
        if viewed.view is not None or viewed.ranks:
            raise ValueError(f'{path}: {viewed.method.spec["name"]} takes leaves as they are')
        return View(int(paths.stacked(path) and ndim > 0), 0, 0)
    if ndim < 2:
        raise ValueError(f'{path}: a kernel has at least two axes (in, out), this one has {ndim}')
    if viewed.view is None:
        return View(ndim - 2, 1, 1)
    if viewed.view.ndim != ndim:
        raise ValueError(
            f'{path}: the view {viewed.pattern!r} has {viewed.view.ndim} axes, '
            f'the kernel has {ndim}'
        )
    return viewed.view
