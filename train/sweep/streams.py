"""A program mapped over members, run by several host threads at once, each on a part of them.

One run does not fill the cores of a CPU: most operations of a small model are too small to be split
over them. Two threads on two parts of the members do, and the base stays one array that both read.
On one device of a CPU only: an accelerator runs one program at a time, and the collectives of
several devices must not wait for each other.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train import mesh as meshes


def usual(mesh: Mesh) -> int:
    """Threads that fill the machine: its cores for one CPU device, else 1."""
    alone = mesh.size == 1 and mesh.devices.flat[0].platform == 'cpu'
    return cores() if alone else 1


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(
    program: Callable, axes: Sequence[int | None], threads: int, mesh: Mesh
) -> Callable[..., Any]:
    """The jitted program over parts of its members, in as many threads; then their results.

    Args:
      program: of arguments with the members in front; it returns a tree of such arrays.
      axes: of each argument 0, or None for one that all members share.
      threads: how many; with 1 the program is returned as it is.
      mesh: of one device.

    Returns:
      A function of the program's arguments. Figures are the program's: members do not meet in it.
    """
    if threads == 1:
        return program
    whole = meshes.replicated(mesh)
    pool = ThreadPoolExecutor(threads, thread_name_prefix='sweep')
    compiled: set[int] = set()

    def split(own: list[Any], bounds: tuple[tuple[int, int], ...]) -> list[list[Any]]:
        return [jax.tree.map(lambda x, a=a, b=b: x[a:b], own) for a, b in bounds]

    cut = jax.jit(split, static_argnums=1, out_shardings=whole)
    join = jax.jit(
        lambda parts: jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts), out_shardings=whole
    )

    def call(*args: Any) -> Any:
        own = [arg for arg, axis in zip(args, axes, strict=True) if axis is not None]
        bounds = _bounds(len(jax.tree.leaves(own[0])[0]), threads)
        if len(bounds) == 1:
            return program(*args)

        def one(mine: list[Any]) -> Any:
            rest = iter(mine)
            each = zip(args, axes, strict=True)
            return jax.block_until_ready(
                program(*(arg if axis is None else next(rest) for arg, axis in each))
            )

        waiting = []
        for (a, b), mine in zip(bounds, cut(own, bounds), strict=True):
            waiting.append(pool.submit(one, mine))
            if b - a not in compiled:  # two threads that meet it at once would both compile it
                waiting[-1].result()
                compiled.add(b - a)
        return join([future.result() for future in waiting])

    return call


def _bounds(members: int, threads: int) -> tuple[tuple[int, int], ...]:
    """Where the parts begin and end; the first ones take one more.

    Example:
      >>> _bounds(5, 2), _bounds(1, 2)
      (((0, 3), (3, 5)), ((0, 1),))
    """
    parts = np.array_split(np.arange(members), min(threads, members))
    return tuple((int(part[0]), int(part[-1]) + 1) for part in parts)
