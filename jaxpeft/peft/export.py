"""An adapter as the folder that HF PEFT writes: adapter_model.safetensors, adapter_config.json."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxpeft import base, ranks, tree
from jaxpeft.peft import fields, forms, names
from jaxpeft.peft.form import Form, Place

WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
RANK_AXES = {**ranks.RANK_AXIS, 'diag': -1}


def export_peft(
    path: str | os.PathLike[str],
    plan: tree.Plan,
    state: base.State,
    params: base.Tree,
    *,
    base_name: str | None = None,
) -> None:
    """Writes an adapter as an HF PEFT folder, which `PeftModel.from_pretrained` loads.

    The tensors are float32 in torch's layout: `lora_A.weight = a.T [r, in]`, `lora_B.weight = b.T
    [out, r]`. Methods: lora, dora, kasa, hira, ia3 (see `jaxpeft.peft.forms`). Rules may differ in
    rank and alpha (rank_pattern, alpha_pattern), not in the method; HiRA's, which PEFT builds with
    one rank, are filled up with zeros to the largest. A LoRA that started from the
    base's own singular or QR vectors (pissa, olora) is written as the plain LoRA of twice the rank
    that it is over the ORIGINAL base: `[A, A0] [B; -B0]`.

    Args:
      path: the folder; these two files in it are replaced.
      plan: the plan, over one of jaxpeft's model families, scanned or unrolled.
      state: the adapter.
      params: the base's parameters.
      base_name: hub name or folder of the base, for `base_model_name_or_path`.

    Raises:
      ValueError: for a plan without rules; for a method without a PEFT form, or several of them in
        one plan; a tied embedding as a target; a base of another family.

    Example:
      >>> import jax, jaxpeft as jp, tempfile
      >>> params = {'lm_head': {'kernel': jax.numpy.ones((4, 6))}}
      >>> plan = {'lm_head/kernel': jp.methods.lora(rank=2)}
      >>> folder, state = tempfile.mkdtemp(), jp.init(plan, jax.random.key(0), params)
      >>> jp.export_peft(folder, plan, state, params)
      >>> jp.import_peft(folder, params)[1].params['lm_head']['kernel']['a'].shape
      (4, 2)
    """
    modules = names.of_base(params)
    found = tree.sites(plan, params)
    form, common = _one_form(found)
    most = max(int(site.method.spec.get('rank', 0)) for site in found)
    tensors: dict[str, np.ndarray] = {}
    places = []
    for site in found:
        for name, leaves in _layers(site, state, params).items():
            module = _module(name, site, modules)
            rank = int(leaves.pop('rank', site.method.spec.get('rank', 0)))
            place = Place(module, rank, 0.0, _kind(module, site, form, modules))
            full = most if form.one_rank else rank
            cut = {leaf: _with_rank(leaf, value, rank, full) for leaf, value in leaves.items()}
            plain, factor = form.plain(site.method.spec, cut)
            alpha = forms.alpha_of(site.method.spec, rank, factor) if form.alpha else 0
            places.append(place._replace(rank=full * factor, alpha=alpha))
            for leaf, entry in form.leaves[place.kind].items():
                tensors[f'{names.PREFIX}{name}.{entry.key}'] = entry.to_torch(plain[leaf])
    config = fields.BY_TYPE[form.peft_type] | common | _said(form, places, modules)
    config |= {'peft_type': form.peft_type, 'base_model_name_or_path': base_name}
    _write(pathlib.Path(path), tensors, config)


def _one_form(found: list[tree.Site]) -> tuple[Form, dict[str, Any]]:
    """The form of all sites and the fields that it has once for all of them."""
    if not found:
        raise ValueError('the plan has no rules: there is no adapter to export')
    said = [(forms.of_spec(s.method.spec, s.path), s) for s in found]
    form, first = said[0]
    common = form.fields(first.method.spec)  # type: ignore[misc]  # of_spec's forms can write
    for other, site in said:
        here = other.fields(site.method.spec)  # type: ignore[misc]
        if other is not form or here != common:
            raise ValueError(
                'a PEFT folder holds one method with one set of options besides rank and alpha; '
                f'{first.path} has {form.method} with {common}, {site.path} has {other.method} '
                f'with {here}: export them one by one, or write jp.export_merged'
            )
    return form, common


def _layers(
    site: tree.Site, state: base.State, params: base.Tree
) -> dict[str, dict[str, np.ndarray]]:
    """The torch modules of a site, each with its own leaves of params and consts."""
    one = tree.site_state(state, site)
    leaves = {k: np.asarray(jax.device_get(v)) for k, v in {**one.consts, **one.params}.items()}
    found, stack = names.of_site(site, params)
    if not stack:
        return {found[0]: leaves}
    return {name: {k: v[i] for k, v in leaves.items()} for i, name in enumerate(found)}


def _module(name: str, site: tree.Site, modules: Mapping[str, names.Module]) -> names.Module:
    if name not in modules:
        raise ValueError(
            f'{site.path}: PEFT adapts linear layers and embeddings, {name} is neither; write '
            'jp.export_merged'
        )
    return modules[name]


def _kind(
    module: names.Module,
    site: tree.Site,
    form: Form,
    modules: Mapping[str, names.Module],
) -> str:
    """The kind of place, refused where PEFT cannot hold it."""
    kind = 'linear'
    if module.table:
        kind = 'table'
    elif site.method.spec.get('feedforward'):
        kind = 'input'
    if kind not in form.leaves:
        raise ValueError(f'{site.path}: jaxpeft has no {form.method} on an embedding')
    if module.name in names.TIED and names.HEAD not in modules:
        raise ValueError(
            f'{site.path} is tied: here the head is adapted with it, in PEFT the lookup alone '
            'would be; write jp.export_merged, or train on an untied base'
        )
    return kind


def _with_rank(leaf: str, value: np.ndarray, rank: int, full: int) -> np.ndarray:
    """A leaf without what is beyond its layer's rank, filled up with zeros to `full`."""
    if leaf not in RANK_AXES:
        return value
    own = np.take(value, range(rank), RANK_AXES[leaf])
    added = [(0, 0)] * value.ndim
    added[RANK_AXES[leaf]] = (0, full - rank)
    return np.pad(own, added)


def _said(form: Form, places: list[Place], modules: Mapping[str, names.Module]) -> dict[str, Any]:
    """Targets, ranks and alphas as the config's fields."""
    adapted = [p.module.name for p in places]
    fed = [p.module.name for p in places if p.kind == 'input']
    targets, inputs = fields.targets_for(adapted, fed, modules)
    said: dict[str, Any] = {'target_modules': targets}
    if form.rank_field is None:
        said['feedforward_modules'] = inputs
        return said
    rank_of = {p.module.name: p.rank for p in places}
    said['r'] = _commonest(rank_of.values())
    said['rank_pattern'] = fields.pattern_for(rank_of, said['r'])
    if form.alpha:
        alpha_of = {p.module.name: p.alpha for p in places}
        said['lora_alpha'] = _commonest(alpha_of.values())
        said['alpha_pattern'] = fields.pattern_for(alpha_of, said['lora_alpha'])
    return said


def _commonest(values: Any) -> Any:
    return collections.Counter(values).most_common(1)[0][0]


def _write(folder: pathlib.Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Both files, each under a temporary name first; the config comes last."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # torch's loaders ask for the 'format' entry.
    save_file(tensors, folder / f'{WEIGHTS}.tmp', metadata={'format': 'pt'})
    (folder / f'{CONFIG}.tmp').write_text(json.dumps(config, indent=2, sort_keys=True))
    for name in (WEIGHTS, CONFIG):
        os.replace(folder / f'{name}.tmp', folder / name)
