"""Reading HF PEFT folders, and those of the KnowHiRA and HiRA reference programs."""

import json
import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import adapters, base, paths, tree
from jaxpeft.peft import fields, forms, names
from jaxpeft.peft.export import CONFIG, WEIGHTS
from jaxpeft.peft.form import Entry, Form, Place
from jaxpeft.peft.plans import plan_of

SHOWN = 8  # entries of each kind in an error message
CONVERT = (
    'it holds {pickle}, and reading a torch pickle runs whatever code it holds; convert it where '
    'torch is: python -c "import torch, safetensors.torch as s; '
    "s.save_file({{k: v.contiguous() for k, v in torch.load('{pickle}', weights_only=True)"
    ".items()}}, '{weights}')\""
)


def import_peft(
    path: str | os.PathLike[str], params: base.Tree
) -> tuple[dict[str, Any], base.State]:
    """Reads an adapter folder that HF PEFT wrote, for a base in either layout.

    The plan names the adapted kernels by their exact paths; training can go on from the state. What
    a method computes from the base (DoRA's norms, KaSA's removed tail, PiSSA's initial product,
    KnowHiRA's sigma) is computed from `params`, as PEFT does on loading. Every trained leaf comes
    from the file.

    Also read: `adapter_model.safetensors` of the reference programs. HiRA's is known by `r_ab` in
    its config; KnowHiRA's (`peft_type` KNOWHIRA) has no gates, which a warning says.

    Args:
      path: the folder.
      params: the base's parameters.

    Returns:
      (plan, state).

    Raises:
      FileNotFoundError: where the config or the weights are missing.
      ValueError: one message that lists missing, unexpected and misshaped tensors and every field
        of the config that says what this package does not compute (lora_bias, modules_to_save,
        ..); for a scanned base without an adapter in each layer; an unknown `peft_type`.

    Example:
      See `jp.export_peft`.
    """
    folder = pathlib.Path(path)
    config, tensors = _read(folder)
    form = forms.of_config(config, str(folder / CONFIG))
    modules = names.of_base(params)
    _raise(folder, config, {'missing config fields': _lacking(config, form)})
    reference = form.rank_field == 'r_ab'
    wanted = fields.chosen(config, modules, dot='' if reference else '.')
    places = [_place(config, form, modules[name], tensors) for name in wanted if name in modules]
    known = fields.BY_TYPE['KNOWHIRA' if reference else form.peft_type]
    problems = {
        'unsupported config fields': fields.unread(config, known, form.reads),
        'unsupported values': form.refuses(config),
        'targets': _bad_targets(config, form, wanted, places, modules),
    }
    _raise(folder, config, problems | _against(form, places, tensors, modules, params))
    plan = plan_of(config, form, places, modules)
    if form.notes:
        warnings.warn(f'{folder}: {form.notes}', stacklevel=2)
    return plan, _filled(plan, params, form, places, tensors)


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors.numpy import load_file

    if not (folder / CONFIG).exists():
        native = (folder / adapters.CONFIG).exists()
        hint = 'it is one of save_adapter: call jp.load_adapter' if native else 'no PEFT folder'
        raise FileNotFoundError(f'{folder} holds no {CONFIG}: {hint}')
    if not (folder / WEIGHTS).exists():
        pickles = sorted(p.name for p in folder.glob('adapter_model*.bin'))
        here = f'it holds {sorted(p.name for p in folder.iterdir())}'
        hint = CONVERT.format(pickle=pickles[0], weights=WEIGHTS) if pickles else here
        raise FileNotFoundError(f'{folder} holds no {WEIGHTS}: {hint}')
    return json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)


def _lacking(config: Mapping[str, Any], form: Form) -> list[str]:
    """The fields without which nothing else can be said."""
    numbers = [n for n in (form.rank_field, 'lora_alpha' if form.alpha else None) if n]
    bad = [n for n in numbers if not isinstance(config.get(n), int | float)]
    return bad + ([] if config.get('target_modules') else ['target_modules'])


def _place(
    config: Mapping[str, Any],
    form: Form,
    module: names.Module,
    tensors: Mapping[str, np.ndarray],
) -> Place:
    """A module with the rank and alpha that the config, or the tensor, gives it."""
    kind = 'table' if module.table else 'input' if fields.feeds(config, module.name) else 'linear'
    rank, alpha = 0, 0.0
    if form.rank_field is not None:
        rank = fields.by_pattern(config.get('rank_pattern'), module.name, config[form.rank_field])
    if form.alpha:
        alpha = fields.by_pattern(config.get('alpha_pattern'), module.name, config['lora_alpha'])
    place = Place(module, rank, alpha, kind)
    if form.one_rank and kind in form.leaves:
        key = _key(place, form.leaves[kind]['a'])
        place = place._replace(rank=tensors[key].shape[0] if key in tensors else rank)
    return place


def _bad_targets(
    config: Mapping[str, Any],
    form: Form,
    wanted: list[str],
    places: list[Place],
    modules: Mapping[str, names.Module],
) -> list[str]:
    """Targets that this base does not have, or that cannot mean here what they mean in PEFT."""
    if not wanted:
        return [f'target_modules={config["target_modules"]!r} is no layer of this base']
    bad = [
        f'{p.module.name} (jaxpeft has no {form.method} on an embedding)'
        for p in places
        if p.kind not in form.leaves
    ]
    turned = [entry.turned for kind in form.leaves.values() for entry in kind.values()]
    if not all(turned):
        bad += [
            f'{p.module.name} (the transposed update of that program fits square layers only)'
            for p in places
            if p.module.n != p.module.m
        ]
    if names.HEAD not in modules:
        sides = (*names.TIED, names.HEAD)
        bad += [
            f'{n} (tied; PEFT adapts one side of it, jaxpeft both)' for n in wanted if n in sides
        ]
    return bad


def _against(
    form: Form,
    places: list[Place],
    tensors: Mapping[str, np.ndarray],
    modules: Mapping[str, names.Module],
    params: base.Tree,
) -> dict[str, list[str]]:
    """What the file holds, against what the config and the base ask for."""
    expected = {
        _key(place, entry): entry.shape(place.module, place.rank)
        for place in places
        for entry in form.leaves.get(place.kind, {}).values()
    }
    extra = sorted(tensors.keys() - expected.keys())
    return {
        'missing': sorted(expected.keys() - tensors.keys()),
        'unexpected': [key for key in extra if not _copy(key, tensors, modules, params)],
        'misshaped': [
            f'{key} is {tensors[key].shape}, expected {shape}'
            for key, shape in expected.items()
            if key in tensors and tensors[key].shape != shape
        ],
    }


def _key(place: Place, entry: Entry) -> str:
    return f'{names.PREFIX}{place.module.name}.{entry.key}'


def _copy(
    key: str,
    tensors: Mapping[str, np.ndarray],
    modules: Mapping[str, names.Module],
    params: base.Tree,
) -> bool:
    """Whether a tensor is the base's own embedding or head, which PEFT may save as well."""
    found = re.fullmatch(re.escape(names.PREFIX) + r'(.+?)(?:\.base_layer)?\.weight', key)
    module = modules.get(found.group(1)) if found else None
    if module is None or not (module.table or module.name == names.HEAD):
        return False
    leaf = dict(paths.flatten(params))[module.path]
    value = tensors[key] if module.table else tensors[key].T
    return value.shape == leaf.shape and adapters.checksum(jnp.asarray(value)) == adapters.checksum(
        leaf
    )


def _raise(
    folder: pathlib.Path, config: Mapping[str, Any], problems: Mapping[str, list[str]]
) -> None:
    if not any(problems.values()):
        return
    lines = []
    for kind, found in problems.items():
        more = f', and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
        if found:
            lines.append(f'  {kind} ({len(found)}): {", ".join(found[:SHOWN])}{more}')
    named = config.get('base_model_name_or_path')
    raise ValueError(
        f'{folder} does not fit this base (it was made for {named!r}):\n' + '\n'.join(lines)
    )


def _filled(
    plan: tree.Plan,
    params: base.Tree,
    form: Form,
    places: list[Place],
    tensors: Mapping[str, np.ndarray],
) -> base.State:
    """A fresh state, for what is computed from the base, with every trained leaf from the file."""
    state = tree.init(plan, jax.random.key(0), params)
    by_name = {place.module.name: place for place in places}
    trained = {}
    for site in tree.sites(plan, params):
        found, stack = names.of_site(site, params)
        for leaf, fresh in tree.leaves_of(state.params, site).items():
            if leaf in form.made:
                trained[f'{site.node}/{leaf}'] = fresh
                continue
            values = [_leaf(form, by_name[name], leaf, tensors) for name in found]
            values = [_padded(value, fresh.shape[len(stack) :]) for value in values]
            trained[f'{site.node}/{leaf}'] = jnp.asarray(np.stack(values) if stack else values[0])
    return base.State(paths.nest(trained), state.consts)


def _leaf(form: Form, place: Place, leaf: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    entry = form.leaves[place.kind][leaf]
    return entry.from_torch(tensors[_key(place, entry)])


def _padded(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros beyond a layer's own rank, where the stack's is larger."""
    return np.pad(value, [(0, full - own) for own, full in zip(value.shape, shape, strict=True)])
