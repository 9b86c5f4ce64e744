"""Our paths and the torch modules that they stand for.

    model/layers/3/self_attn/q_proj/kernel       model.layers.3.self_attn.q_proj      unrolled
    model/layers/self_attn/q_proj/kernel [L,..]  model.layers.{0..L-1}.self_attn.q_proj   scanned

The family is read off the root names of the tree; GPT-Neo's are `transformer/h/...`. Flax kernels
are [in, out] and torch's [out, in]; PEFT's keys are `base_model.model.<module>.<entry>`.
"""

from typing import NamedTuple

from jaxpeft import base, paths, tree
from jaxpeft.models import names
from jaxpeft.near import nearest

PREFIX = 'base_model.model.'
ROOTS = ('transformer', 'model', 'lm_head')
HEAD = 'lm_head'
TIED = ('transformer.wte', 'model.embed_tokens')  # also the head, where there is none
LEAVES = ('kernel', 'embedding')


class Module(NamedTuple):
    """One torch module that an adapter may stand on.

    Attributes:
      name: torch's, such as 'model.layers.3.self_attn.q_proj'.
      path: of the leaf in our tree; several modules share it under a layer scan.
      layer: the module's index in a scanned leaf, None in an unrolled one.
      stack: the leaf's layer stack, `()` in an unrolled model.
      n, m: in and out features; of an embedding the rows and the width.
      table: whether it is an embedding.
    """

    name: str
    path: str
    layer: int | None
    stack: tuple[int, ...]
    n: int
    m: int
    table: bool


def torch_modules(path: str, stack: tuple[int, ...]) -> list[str]:
    """The torch names of a module path of ours, one a layer where it is scanned.

    Args:
      path: of the module, or of one of its leaves.
      stack: the layer stack, `()` for an unrolled module.

    Raises:
      ValueError: when the path's root is none of the model families'.
    """
    parts = tuple(path.split('/'))
    if parts[-1] in LEAVES:
        parts = parts[:-1]
    if parts[0] not in ROOTS:
        raise ValueError(
            f'{path}: only the model families of jaxpeft.models have torch names, with roots '
            f'{", ".join(ROOTS)}; {nearest(parts[0], ROOTS)}'
        )
    if not stack:
        return ['.'.join(parts)]
    return ['.'.join(names.layer_path(parts, layer)) for layer in range(stack[0])]


def of_base(params: base.Tree) -> dict[str, Module]:
    """Every linear layer and embedding of a base, by its torch name."""
    found = {}
    for path, leaf in paths.flatten(params):
        parts = tuple(path.split('/'))
        if parts[-1] not in LEAVES or parts[0] not in ROOTS:
            continue
        stacked = names.is_stacked(parts)
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        if len(shape) != 2:
            continue
        table = parts[-1] == 'embedding'
        stack = tuple(leaf.shape[:1]) if stacked else ()
        for i, name in enumerate(torch_modules(path, stack)):
            found[name] = Module(name, path, i if stack else None, stack, *shape, table)
    if not found:
        roots = sorted(params)
        raise ValueError(
            f'no layer of this base has a torch name: its roots are {roots}, those of GPT-Neo and '
            f'the decoders are {", ".join(ROOTS)}'
        )
    return found


def of_site(site: tree.Site, params: base.Tree) -> tuple[list[str], tuple[int, ...]]:
    """The torch names of a plan's site, one a layer, and the layer stack of its leaves.

    Raises:
      ValueError: for a kernel that is no plain [in, out] one under at most one layer stack.
    """
    leaf = None if site.view is None else dict(paths.flatten(params))[site.path].shape
    stack = tree.stack_of(site, leaf)
    plain = site.view is None or (site.view.n_in, site.view.n_out) == (1, 1)
    if len(stack) > 1 or not plain:
        raise ValueError(
            f'{site.path}: only a plain [in, out] kernel under at most one layer stack has a torch '
            f'form, this one is read as {site.view}; write jp.export_merged'
        )
    return torch_modules(site.path, stack), stack
