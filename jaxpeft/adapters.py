"""Adapters on disk: one safetensors file and one adapter.json, no pickle, no base weight.

Leaves are stored under canonical paths with all their layers stacked in front, so an adapter of a
scanned model loads into the unrolled one and back. adapter.json holds each rule's pattern and spec,
and a checksum of every adapted kernel: a HiRA trained on other weights means nothing on these.
"""

import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import base, methods, paths, tree, views
from jaxpeft.near import nearest

FORMAT = 1
WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter.json'


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
      path: the folder; an adapter that is there is replaced once the new one is complete.
      plan: the plan.
      state: the adapter.
      params: the base's parameters, for the checksums.
      base_name: name of the base model, kept for the reader.
    """
    import safetensors.numpy

    grouped = _grouped(plan, params)
    tensors: dict[str, np.ndarray] = {}
    entries = {}
    for name, members in grouped.items():
        for part in ('params', 'consts'):
            layers = [tree.leaves_of(getattr(state, part), site) for _, site in members]
            for leaf in layers[0]:
                values = [np.asarray(jax.device_get(one[leaf])) for one in layers]
                stacked = values[0] if members[0][0] is None else np.stack(values)
                tensors[f'{part}/{name}/{leaf}'] = np.ascontiguousarray(stacked)
        entries[name] = _entry(members, params)
    described = {
        'format': FORMAT,
        'base': base_name,
        'rules': [_rule_spec(pattern, rule) for pattern, rule in plan.items()],
        'sites': entries,
    }
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f'.{target.name}.'))
    safetensors.numpy.save_file(tensors, fresh / WEIGHTS)
    (fresh / CONFIG).write_text(json.dumps(described, indent=1) + '\n')
    fresh.chmod(0o755)  # mkdtemp and safetensors write for their owner alone
    (fresh / WEIGHTS).chmod(0o644)
    _swap(fresh, target)


def _swap(fresh: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a finished folder in its place; the old one is moved aside first and then removed."""
    if not target.exists():
        fresh.rename(target)
        return
    old = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f'.{target.name}.old.'))
    target.rename(old / target.name)
    fresh.rename(target)
    shutil.rmtree(old)


def _grouped(plan: tree.Plan, params: base.Tree) -> dict[str, list[tuple[int | None, tree.Site]]]:
    """Canonical path of the leaves -> its (layer, site) pairs, in order of layers."""
    grouped: dict[str, list[tuple[int | None, tree.Site]]] = {}
    for site in tree.sites(plan, params):
        name, layer = paths.canonical(site.node)
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
    flat = [k.reshape(math.prod(stack), *k.shape[len(stack) :]) for k in kernels]
    return entry | {
        'stack': list(stack) if layers is None else [len(layers), *stack],
        'kernel': list(kernels[0].shape[len(stack) :]),
        'checksums': [checksum(layer) for kernel in flat for layer in kernel],
    }


def _unboxed(leaf: Any) -> Any:
    return leaf.unbox() if hasattr(leaf, 'unbox') else leaf


def checksum(kernel: base.Array) -> str:
    """16 hex digits of the SHA-256 of a kernel rounded to bfloat16: one for both dtypes' loads."""
    rounded = np.asarray(jax.device_get(jnp.asarray(kernel).astype(jnp.bfloat16)))
    return hashlib.sha256(rounded.view(np.uint16).tobytes()).hexdigest()[:16]


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
        when layers are missing that a scanned base needs.
    """
    import safetensors.numpy

    folder = pathlib.Path(path)
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f'{folder} holds no {CONFIG}: not a folder that save_adapter wrote')
    described = json.loads((folder / CONFIG).read_text())
    if described.get('format') != FORMAT:
        raise ValueError(f'{folder}: format {described.get("format")}, this version reads {FORMAT}')
    plan = _plan(described, params, methods)
    grouped = _grouped(plan, params)
    _check_base(folder, described['sites'], grouped, params)
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    trees: dict[str, dict[str, Any]] = {'params': {}, 'consts': {}}
    for key, value in tensors.items():
        part, _, rest = key.partition('/')
        name, _, leaf = rest.rpartition('/')
        placed = _placed(value, described['sites'][name], grouped[name])
        trees[part].update({f'{node}/{leaf}': jnp.asarray(v) for node, v in placed.items()})
    return plan, base.State(paths.nest(trees['params']), paths.nest(trees['consts']))


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
    suffix = f'/{tree.OVERRIDE}'
    wanted = {name for name, entry in sites.items() if entry['rule'] == number}
    leaves = [path for path, _ in paths.flatten(params)]
    here = [p for p in leaves if _saved(p, {name: sites[name] for name in wanted})]
    if any(name.endswith(suffix) for name in wanted):
        return pattern
    matched = [p for p in leaves if re.fullmatch(pattern, p)]
    taken = {name for name, entry in sites.items() if entry['rule'] < number}
    if {p for p in matched if paths.canonical(p)[0] not in taken} == set(here) or not here:
        return pattern
    return '|'.join(re.escape(p) for p in here)


def _saved(path: str, sites: Mapping[str, Any]) -> bool:
    """Whether a leaf is one of the saved sites, in one of the layers that were adapted."""
    name, layer = paths.canonical(path)
    layers = sites[name]['layers'] if name in sites else []
    return name in sites and (layer is None or layers is None or layer in layers)


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
