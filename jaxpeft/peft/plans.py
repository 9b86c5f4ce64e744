"""The plan of an imported folder: rules over just the kernels that it adapts."""

import re
from collections.abc import Mapping
from typing import Any

from jaxpeft import base, methods, paths, views
from jaxpeft.models.names import split_layer
from jaxpeft.peft import names
from jaxpeft.peft.form import Form, Place


def plan_of(
    config: Mapping[str, Any],
    form: Form,
    places: list[Place],
    modules: Mapping[str, names.Module],
) -> dict[str, Any]:
    """One rule for all places of the same options; its pattern names just their paths."""
    by_path: dict[str, list[Place]] = {}
    for place in places:
        by_path.setdefault(place.module.path, []).append(place)
    rules: dict[str, Any] = {}
    covered: dict[str, dict[str, set[int | None]]] = {}
    for path, here in by_path.items():
        options, layer_ranks = _options(config, form, path, here)
        name = f'{options} {layer_ranks}'
        if name not in rules:
            made: Any = methods.get(form.method)(**options)
            rules[name] = views.layerwise(made, layer_ranks) if layer_ranks else made
        canonical, layer = paths.canonical(path)
        covered.setdefault(name, {}).setdefault(canonical, set()).add(layer)
    whole: dict[str, set[int | None]] = {}
    for module in modules.values():
        canonical, layer = paths.canonical(module.path)
        whole.setdefault(canonical, set()).add(layer)
    plan = {}
    for name, found in covered.items():
        parts = [_pattern(path, layers, whole[path]) for path, layers in found.items()]
        if isinstance(rules[name], base.Override):
            parts = [part.removesuffix('/kernel') for part in parts]
        plan['|'.join(parts)] = rules[name]
    return plan


def _options(
    config: Mapping[str, Any], form: Form, path: str, here: list[Place]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The factory's arguments at one leaf, and its layers' ranks where they differ.

    Raises:
      ValueError: for a scanned leaf whose layers are not all there, or not of one scale.
    """
    stack = here[0].module.stack
    most = max(here, key=lambda place: place.rank)
    if not stack:
        return form.options(config, most), ()
    advice = 'load the base unrolled, models.load(..., scan=False), to give layers their own'
    layers = {place.module.layer: place for place in here}
    missing = sorted(set(range(stack[0])) - layers.keys())
    if missing:
        raise ValueError(
            f'{path}: a layer scan has one adapter stack for all {stack[0]} layers, this folder '
            f'has none for layers {missing}; {advice}'
        )
    if len({(place.rank, place.alpha) for place in here}) == 1:
        return form.options(config, most), ()
    # Under a scan alpha follows the rank (jaxpeft.ranks): alpha_q = alpha q / r.
    if any(place.alpha * most.rank != most.alpha * place.rank for place in here):
        said = [(layers[i].rank, layers[i].alpha) for i in range(stack[0])]
        raise ValueError(
            f'{path}: under a layer scan the layers must have one alpha/rank, this folder has '
            f'(rank, alpha) {said}; {advice}'
        )
    return form.options(config, most), tuple(layers[i].rank for i in range(stack[0]))


def _pattern(canonical: str, layers: set[int | None], whole: set[int | None]) -> str:
    """The regex of a canonical path in some layers; of all of them, it fits both layouts."""
    parts = split_layer(tuple(canonical.split('/')))
    if parts is None:
        return re.escape(canonical)
    container, rest = ('/'.join(map(re.escape, part)) for part in parts)
    if layers == whole:
        return rf'{container}/(?:\d+/)?{rest}'
    return rf'{container}/(?:{"|".join(str(i) for i in sorted(layers))})/{rest}'  # type: ignore[type-var]
