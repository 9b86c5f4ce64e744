"""Adapters on disk: one safetensors file and one adapter.json, no pickle, no base weight.

Leaves are stored under canonical paths with all their layers stacked in front, so an adapter of a
scanned model loads into the unrolled one and back; layers under another rule lie apart.
adapter.json holds each rule's pattern and spec, and a checksum of every adapted kernel: a HiRA
trained on other weights means nothing on these.
"""

import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import base, methods, paths, tree, views
from jaxpeft.near import nearest

FORMAT = 1
WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter.json'
BY_RULE = '@'


def save_adapter(
    path: str | os.PathLike[str],
    plan: tree.Plan,
    state: base.State,
    params: base.Tree,
    *,
    base_name: str | None = None,
) -> None:
    """Writes an adapter folder, whole or not at all.

    Args:
      path: the folder; an adapter that is there is replaced once the new one is complete, other
        files stay.
      plan: the plan.
      state: the adapter.
      params: the base's parameters, for the checksums.
      base_name: name of the base model, kept for the reader.

    Raises:
      ValueError: for a state that is not the plan's on this base: leaves missing, left over or of
        another shape; for the current folder.
      FileExistsError: where the path is a file.
      TypeError: for a method's option that JSON cannot hold.
    """
    import safetensors.numpy

    tree.check(plan, state, params)
    grouped = _grouped(tree.sites(plan, params))
    tensors: dict[str, np.ndarray] = {}
    entries = {}
    for name, members in grouped.items():
        for part in ('params', 'consts'):
            layers = [tree.leaves_of(getattr(state, part), site) for _, site in members]
            for leaf in layers[0]:
                values = [np.asarray(jax.device_get(one[leaf])) for one in layers]
                stacked = values[0] if members[0][0] is None else np.stack(values)
                tensors[f'{part}/{name}/{leaf}'] = np.asarray(stacked, order='C')
        entries[name] = _entry(members, params)
    described = {
        'format': FORMAT,
        'base': base_name,
        'rules': [_rule_spec(pattern, rule) for pattern, rule in plan.items()],
        'sites': entries,
    }
    written = json.dumps(described, indent=1, default=_plain) + '\n'
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f'.{target.name}.'))
    try:
        safetensors.numpy.save_file(tensors, fresh / WEIGHTS)
        (fresh / CONFIG).write_text(written)
        fresh.chmod(0o755)  # mkdtemp and safetensors write for their owner alone
        (fresh / WEIGHTS).chmod(0o644)
        _swap(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # of a save that failed; else it has moved


def _target(path: str | os.PathLike[str]) -> pathlib.Path:
    """The folder to write, which is moved into its place as a whole."""
    target = pathlib.Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f'{path} is a file: an adapter is a folder')
    if pathlib.Path.cwd().is_relative_to(target):
        raise ValueError(
            f'{path} is the current folder or holds it: give the adapter one of its own'
        )
    return target


def _plain(value: Any) -> Any:
    """An option of a numpy type as JSON's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f'adapter.json cannot hold {value!r}')


def _swap(fresh: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a finished folder in its place; the old one is moved aside first and then removed.

    What else lay in the old one moves over.
    """
    if not target.exists():
        fresh.rename(target)
        return
    old = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f'.{target.name}.old.'))
    target.rename(old / target.name)
    fresh.rename(target)
    for other in (old / target.name).iterdir():
        if other.name not in (WEIGHTS, CONFIG):
            other.rename(target / other.name)
    shutil.rmtree(old)


def _grouped(found: Sequence[tree.Site]) -> dict[str, list[tuple[int | None, tree.Site]]]:
    """Name of the stored leaves -> its (layer, site) pairs, in order of layers.

    The name is the canonical path; where layers of an unrolled model have different rules, with
    '@' and the rule's number behind it.
    """
    rules: dict[str, set[int]] = {}
    for site in found:
        rules.setdefault(paths.canonical(site.node)[0], set()).add(site.rule)
    grouped: dict[str, list[tuple[int | None, tree.Site]]] = {}
    for site in found:
        path, layer = paths.canonical(site.node)
        name = path if len(rules[path]) == 1 else f'{path}{BY_RULE}{site.rule}'
        grouped.setdefault(name, []).append((layer, site))
    return {name: sorted(members, key=lambda m: m[0] or 0) for name, members in grouped.items()}


def _rule_spec(pattern: str, rule: Any) -> dict[str, Any]:
    viewed = isinstance(rule, views.Viewed)
    method = rule.method if viewed else rule
    described: dict[str, Any] = {'pattern': pattern, 'spec': dict(method.spec), 'view': None}
    if viewed:
        described |= {'view': rule.pattern, 'ranks': list(rule.ranks)}
    return described


def _entry(members: list[tuple[int | None, tree.Site]], params: base.Tree) -> dict[str, Any]:
    """What adapter.json says of one canonical path: its rule, layers and checksums."""
    site = members[0][1]
    layers = None if members[0][0] is None else [layer for layer, _ in members]
    entry: dict[str, Any] = {'rule': site.rule, 'layers': layers}
    if site.view is None:
        return entry
    kernels = [_unboxed(paths.get(params, one.path)) for _, one in members]
    stack = site.view.shape(kernels[0].shape)[0]
    flat = [jnp.reshape(k, (math.prod(stack), *k.shape[len(stack) :])) for k in kernels]
    return entry | {
        'stack': list(stack) if layers is None else [len(layers), *stack],
        'kernel': list(kernels[0].shape[len(stack) :]),
        'checksums': [_digest(_rounded(k, layer)) for k in flat for layer in range(len(k))],
    }


def _unboxed(leaf: Any) -> Any:
    return leaf.unbox() if hasattr(leaf, 'unbox') else leaf


def checksum(kernel: base.Array) -> str:
    """16 hex digits of the SHA-256 of a kernel rounded to bfloat16: one for both dtypes' loads."""
    return _digest(jnp.asarray(kernel).astype(jnp.bfloat16))


@jax.jit
def _rounded(kernels: base.Array, layer: int) -> base.Array:
    """One kernel of [L, in, out] in bfloat16: one program for all layers, one layer in memory."""
    return jax.lax.dynamic_index_in_dim(kernels, layer, keepdims=False).astype(jnp.bfloat16)


def _digest(rounded: base.Array) -> str:
    bits = np.asarray(jax.device_get(rounded)).view(np.uint16)
    return hashlib.sha256(bits.tobytes()).hexdigest()[:16]


def load_adapter(
    path: str | os.PathLike[str],
    params: base.Tree,
    methods: Mapping[str, Callable[..., Any]] = {},
) -> tuple[dict[str, Any], base.State]:
    """Reads an adapter folder for a base, scanned or unrolled whichever way it was saved.

    Args:
      path: the folder that `save_adapter` wrote.
      params: the base's parameters.
      methods: factories by name, for methods that jaxpeft does not ship.

    Returns:
      (plan, state).

    Raises:
      FileNotFoundError: where there is no adapter.
      ValueError: when the base is another one: a kernel is missing, has another shape or checksum;
        when a scanned base needs layers that are missing, or has one rule where layers had several;
        when leaves are missing from the file.
    """
    import safetensors.numpy

    folder = pathlib.Path(path)
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f'{folder} holds no {CONFIG}: not a folder that save_adapter wrote')
    described = json.loads((folder / CONFIG).read_text())
    if described.get('format') != FORMAT:
        raise ValueError(f'{folder}: format {described.get("format")}, this version reads {FORMAT}')
    _check_layers(folder, described['sites'], params)
    plan = _plan(described, params, methods)
    grouped = _grouped(tree.sites(plan, params))
    _check_base(folder, described['sites'], grouped, params)
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    trees: dict[str, dict[str, Any]] = {'params': {}, 'consts': {}}
    for key, value in tensors.items():
        part, _, rest = key.partition('/')
        name, _, leaf = rest.rpartition('/')
        placed = _placed(value, described['sites'][name], grouped[name])
        trees[part].update({f'{node}/{leaf}': jax.device_put(v) for node, v in placed.items()})
    state = base.State(paths.nest(trees['params']), paths.nest(trees['consts']))
    tree.check(plan, state, params, f'{folder / WEIGHTS}: ')
    return plan, state


def _plan(described: Any, params: base.Tree, factories: Mapping[str, Any]) -> dict[str, Any]:
    """The saved plan; where its patterns name other paths in this layout, one that lists them."""
    rules: list[Any] = []
    for number, rule in enumerate(described['rules']):
        spec = _for_layout(rule['spec'], number, described['sites'], params)
        made: Any = methods.rebuild(spec, factories)
        made = views.on(made, rule['view']) if rule['view'] else made
        rules.append(views.layerwise(made, rule['ranks']) if rule.get('ranks') else made)
    return {
        _pattern(rule['pattern'], number, described['sites'], params): one
        for number, (rule, one) in enumerate(zip(described['rules'], rules, strict=True))
    }


def _for_layout(
    spec: Mapping[str, Any], number: int, sites: Mapping[str, Any], params: base.Tree
) -> Mapping[str, Any]:
    """The spec; an override's with the stack that its layers have in this base, if they do."""
    if 'stack' not in spec:
        return spec
    if any(paths.canonical(path)[1] is not None for path, _ in paths.flatten(params)):
        return {**spec, 'stack': []}
    layers = [e['layers'] for e in sites.values() if e['rule'] == number and e['layers']]
    return {**spec, 'stack': [len(layers[0])]} if layers else spec


def _pattern(pattern: str, number: int, sites: Mapping[str, Any], params: base.Tree) -> str:
    """The rule's own pattern if it matches just its sites here, else their paths one by one."""
    if pattern.startswith(tree.SHARED):
        return pattern
    mine = {_path(name): e['layers'] for name, e in sites.items() if e['rule'] == number}
    taken = [(_path(name), e['layers']) for name, e in sites.items() if e['rule'] < number]
    suffix = f'/{tree.OVERRIDE}'
    inside = any(path.endswith(suffix) for path in mine)
    known = [path for path, _ in paths.flatten(params)]
    if inside:
        known = tree.with_child(paths.modules(known), next(iter(mine)).removesuffix(suffix))
    node = lambda path: path + suffix if inside else path
    here = [p for p in known if _among(node(p), mine.items())]
    matched = {p for p in known if re.fullmatch(pattern, p) and not _among(node(p), taken)}
    if matched == set(here) or not here:
        return pattern
    return '|'.join(re.escape(p) for p in here)


def _path(name: str) -> str:
    """The canonical path of a stored entry."""
    return name.partition(BY_RULE)[0]


def _among(path: str, saved: Iterable[tuple[str, Any]]) -> bool:
    """Whether a leaf is one of the saved (path, layers), in one of the layers that were adapted."""
    name, layer = paths.canonical(path)
    return any(
        name == other and (layer is None or layers is None or layer in layers)
        for other, layers in saved
    )


def _check_layers(folder: Any, saved: Mapping[str, Any], params: base.Tree) -> None:
    """Refuses, for a scanned base, what only an unrolled one can hold."""
    depth = next((len(leaf) for p, leaf in paths.flatten(params) if paths.stacked(p)), None)
    if depth is None:
        return
    for name, entry in saved.items():
        layers = entry['layers']
        if BY_RULE in name:
            raise ValueError(
                f'{folder}: layers of {_path(name)} have different rules, which {paths.UNROLLED}'
            )
        if layers is not None and paths.stacked(name) and len(layers) != depth:
            raise ValueError(
                f'{folder}: {name} was saved for {len(layers)} layers, this base has {depth}: '
                f'{paths.NO_SUBSET}'
            )


def _check_base(folder: Any, saved: Mapping[str, Any], grouped: Any, params: base.Tree) -> None:
    missing = sorted(set(saved) - set(grouped))
    if missing:
        raise ValueError(
            f'{folder} adapts {missing[0]}, which this base does not have; '
            f'{nearest(missing[0], sorted(grouped))}'
        )
    for name, entry in saved.items():
        here = _entry(grouped[name], params)
        for what in ('kernel', 'checksums'):
            if entry.get(what) == here.get(what):
                continue
            if what == 'checksums' and len(entry[what]) != len(here[what]):
                raise ValueError(
                    f'{folder}: {name} was saved for {len(entry[what])} layers, this base has '
                    f'{len(here[what])}'
                )
            raise ValueError(
                f'{folder}: the {what} of {name} differ from those that the adapter was trained on '
                f'(base {_name(folder)!r}): load that base'
            )


def _name(folder: pathlib.Path) -> str | None:
    return json.loads((folder / CONFIG).read_text())['base']


def _placed(
    value: np.ndarray, entry: Any, members: list[tuple[int | None, tree.Site]]
) -> dict[str, Any]:
    """A stored leaf on the sites of this layout: whole, split into layers, or joined from them."""
    if members[0][0] is None:
        return {members[0][1].node: value}
    layers = entry['layers'] or list(range(len(value)))
    return {site.node: value[layers.index(layer)] for layer, site in members}
