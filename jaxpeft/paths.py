"""Names of a tree: '/'-joined paths, canonical paths, the choice of targets by name.

A path is canonical when it carries no layer number: `model/layers/3/self_attn/q_proj/kernel` and
the scanned `model/layers/self_attn/q_proj/kernel` are one canonical path, the first with layer 3.
"""

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxpeft.near import nearest

LAYER_PARENTS = ('h', 'layers', 'blocks')
SAME_MODULE = (('o_proj', 'out_proj'),)  # one output projection, two families' names for it
UNROLLED = (
    'needs an unrolled model (models.load(..., scan=False), --no_scan): under a layer scan all '
    'layers share one adapter stack'
)
NO_SUBSET = f'a subset of layers {UNROLLED}'
LEAF = r'(?:/\d+)?(?:/kernel|/embedding)?'  # what may follow a module's name
HEADS = ('lm_head', 'score', 'embed_out')  # PEFT's meaning of all-linear leaves the head out


def flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yields (path, leaf) of nested mappings in sorted order; a boxed Flax leaf is unboxed."""
    for name in sorted(tree):
        value, path = tree[name], f'{prefix}{name}'
        if isinstance(value, Mapping):
            yield from flatten(value, path + '/')
        else:
            yield path, value.unbox() if hasattr(value, 'unbox') else value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`: `{'x/y': 1}` becomes `{'x': {'y': 1}}`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def replaced(tree: Mapping[str, Any], new: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """A copy of the nested mappings, not of their leaves, with other leaves at some paths.

    A leaf in a Flax box is replaced inside it.
    """
    copy = {}
    for name, value in tree.items():
        path = prefix + name
        if isinstance(value, Mapping):
            copy[name] = replaced(value, new, path + '/')
        elif path in new and hasattr(value, 'replace_boxed'):
            copy[name] = value.replace_boxed(new[path])
        else:
            copy[name] = new.get(path, value)
    return copy


def get(tree: Mapping[str, Any], path: str) -> Any:
    """The subtree or leaf at a path; KeyError where there is none."""
    node: Any = tree
    for name in path.split('/'):
        node = node[name]
    return node


def canonical(path: str) -> tuple[str, int | None]:
    """Splits the layer's number off: 'transformer/h/3/mlp' -> ('transformer/h/mlp', 3)."""
    parts = path.split('/')
    for i in range(1, len(parts)):
        if parts[i].isdigit() and parts[i - 1] in LAYER_PARENTS:
            return '/'.join(parts[:i] + parts[i + 1 :]), int(parts[i])
    return path, None


def stacked(path: str) -> bool:
    """Whether a path runs through layers without naming one: a leaf of a layer scan."""
    parts = path.split('/')
    return any(p in LAYER_PARENTS and not q.isdigit() for p, q in itertools.pairwise(parts))


def seed(path: str) -> int:
    """A stable 31-bit number of a path, to fold into a key: the same in every process."""
    return zlib.crc32(path.encode()) & 0x7FFFFFFF


def modules(paths: Sequence[str]) -> list[str]:
    """Every module path: the proper prefixes of the leaves' paths, sorted."""
    found: set[str] = set()
    for path in paths:
        parts = path.split('/')[:-1]
        found.update('/'.join(parts[: i + 1]) for i in range(len(parts)))
    return sorted(found)


def _linear_modules(params: Mapping[str, Any], tables: bool = False) -> dict[str, list[str]]:
    """Module name -> leaf paths, for leaves called kernel (2-D or more) and for bare matrices.

    With `tables` also for leaves called embedding.
    """
    named: dict[str, list[str]] = {}
    ends = ('kernel', 'embedding') if tables else ('kernel',)
    for path, leaf in flatten(params):
        parts = path.split('/')
        if getattr(leaf, 'ndim', 0) < 2:
            continue
        if parts[-1] in ends and len(parts) > 2 and parts[-2].isdigit():
            named.setdefault(parts[-3], []).append(path)  # a layer of a numbered list of layers
        elif parts[-1] in ends and len(parts) > 1:
            named.setdefault(parts[-2], []).append(path)
        elif len(parts) == 1 or parts[-1] not in ('embedding', 'scale', 'bias', 'weight', 'kernel'):
            named.setdefault(parts[-1], []).append(path)
    return named


def linear_suffixes(params: Mapping[str, Any]) -> list[str]:
    """What `targets` takes for a model's linear layers: `q_proj`, `attention/q_proj`, ..."""
    return _known_suffixes(_linear_modules(params))


def _known_suffixes(named: Mapping[str, Sequence[str]]) -> list[str]:
    """Names that may be asked for: module names, and their module paths without layer numbers."""
    paths = {
        re.sub(r'(/\d+)?/(kernel|embedding)$', '', canonical(p)[0])
        for ps in named.values()
        for p in ps
    }
    return sorted({'/'.join(p.split('/')[-k:]) for p in paths for k in range(1, 4)})


def spelled(name: str, known: Sequence[str]) -> list[str]:
    """An asked name as this family spells it: `['out_proj']` for o_proj in a GPT-Neo.

    Raises:
      ValueError: where nothing is called so, with the nearest names.
    """
    aliases = next((group for group in SAME_MODULE if name in group), (name,))
    found = [alias for alias in aliases if alias in known]
    if not found:
        raise ValueError(f'no layer of this model is called {name!r}; {nearest(name, known)}')
    return found


def linear_names(params: Mapping[str, Any]) -> list[str]:
    """The names that 'all-linear' stands for: every linear layer's but the head's."""
    return sorted(name for name in _linear_modules(params) if name not in HEADS)


def targets(
    params: Mapping[str, Any],
    names: Sequence[str] | str,
    exclude: Sequence[str] | str = (),
    layers: Sequence[int] = (),
) -> str:
    """Turns module names into the path regex that a plan takes.

    A name is a module's own (`q_proj`) or the end of its path (`mlp/c_proj`, `mlp.c_proj`).
    `o_proj` and `out_proj` both mean the output projection of either family. An embedding goes by
    its module's name (`wte`, `embed_tokens`). `all-linear` means every kernel but the head's. Names
    may be one comma-separated string; blanks are stripped.

    Args:
      params: the base's parameter tree (arrays or shapes).
      names: what to adapt.
      exclude: names to leave out, in the same form.
      layers: numbers of the layers to adapt, all when empty; of an unrolled model only.

    Returns:
      A regex that fully matches the kernels' paths.

    Raises:
      ValueError: for a name that matches nothing, with the nearest names; for an empty choice; for
        layers of a scanned model, or that it does not have.

    Example:
      >>> import jax.numpy as jnp
      >>> targets({'mlp': {'up': {'kernel': jnp.zeros((2, 4))}}}, ['up'])
      '(?:.*/)?(?:up)(?:/\\\\d+)?(?:/kernel|/embedding)?'
    """
    known = _known_suffixes(_linear_modules(params, tables=True))
    wanted = split(names)
    if not wanted:
        raise ValueError(f'no target module was named; {nearest("", known)}')
    if wanted == ['all-linear']:
        wanted = linear_names(params)
    elif 'all-linear' in wanted:
        raise ValueError(f"'all-linear' stands alone, got it beside {wanted}")
    chosen = '|'.join(_checked(name, known) for name in wanted)
    dropped = '|'.join(_checked(name, known) for name in split(exclude))
    refuse = rf'(?!(?:.*/)?(?:{dropped}){LEAF}$)' if dropped else ''
    inside = _layer_pattern(params, layers) if layers else '(?:.*/)?'
    leaves = [path for path, _ in flatten(params)]
    for name in wanted if layers else ():
        if not any(re.fullmatch(rf'{inside}(?:{_checked(name, known)}){LEAF}', p) for p in leaves):
            raise ValueError(f'{name!r} lies in none of the layers {sorted(layers)}')
    return rf'{refuse}{inside}(?:{chosen}){LEAF}'


def _layer_pattern(params: Mapping[str, Any], layers: Sequence[int]) -> str:
    """The regex of paths inside some layers, up to a module's name."""
    found = {layer for path, _ in flatten(params) if (layer := canonical(path)[1]) is not None}
    if not found:
        raise ValueError(NO_SUBSET)
    missing = sorted(set(layers) - found)
    if missing:
        raise ValueError(
            f'layers {missing} were asked for, the model has {min(found)}-{max(found)}'
        )
    numbers = '|'.join(str(layer) for layer in sorted(set(layers)))
    return rf'(?:.*/)?(?:{"|".join(LAYER_PARENTS)})/(?:{numbers})/(?:.*/)?'


def split(names: Sequence[str] | str) -> list[str]:
    """Names from a list or a comma-separated string, stripped, with slashes for dots."""
    parts = names.split(',') if isinstance(names, str) else list(names)
    return [part.strip().replace('.', '/') for part in parts if part.strip()]


def _checked(name: str, known: Sequence[str]) -> str:
    return '|'.join(map(re.escape, spelled(name, known)))
