"""A merged model as an HF folder with a model card: what every torch program loads."""

import json
import os
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import base, paths, tree, views
from jaxpeft.models import save

PROBE = (2, 16)  # tokens of the batch that rounding is measured on


def export_merged(
    path: str | os.PathLike[str],
    plan: tree.Plan,
    state: base.State,
    model: Any,
    params: base.Tree,
    tokenizer: Any = None,
    dtype: Any = None,
) -> float:
    """Writes the base with the adapter folded in: config, safetensors, tokenizer, README.md.

        W' = weight(state, W), in float32, then rounded to `dtype`

    Args:
      path: the folder.
      plan: the plan.
      state: the adapter.
      model: the base's Linen module (`jp.models.load` gives it).
      params: the base's parameters.
      tokenizer: an HF tokenizer, written beside the weights.
      dtype: of all weights in the files; None means float32. bfloat16 keeps 8 bits of each weight:
        a change of a weight below 1 part in 256 is lost or doubled, so a warning says by how much
        the logits move.

    Returns:
      The largest difference of a logit between the float32 merge and the written weights, on a
      fixed batch of 2 x 16 random tokens, both computed in float32; 0.0 for float32.

    Raises:
      ValueError: for a method that has no merged weight (`jp.merge`), and for a merge that leaves
        every weight as the base has it, in `dtype`.

    Example:
      >>> import jax, jaxpeft as jp, tempfile
      >>> model, params, tokenizer = jp.models.load('embedded')
      >>> lora = jp.methods.lora(rank=2, init_ab='gaussian,gaussian')
      >>> plan = {jp.targets(params, ['q_proj']): lora}
      >>> state = jp.init(plan, jax.random.key(0), params)
      >>> jp.export_merged(tempfile.mkdtemp(), plan, state, model, params, tokenizer)
      0.0
    """
    dtype = jnp.dtype(dtype or jnp.float32)
    exact = tree.merge(plan, state, params, jnp.float32)
    cast = lambda leaf: jnp.asarray(leaf, dtype)
    rounded = jax.tree.map(cast, exact)
    changed = _changed(plan, params, rounded, dtype)
    difference = 0.0
    if dtype != jnp.float32:
        difference = _logit_difference(model, exact, rounded)
        warnings.warn(
            f'{path}: merged weights rounded to {dtype.name} move the logits of a probe batch by '
            f'up to {difference:.3g}; dtype=None writes the float32 merge',
            stacklevel=2,
        )
    folder = pathlib.Path(path)
    save.save_pretrained(folder, model, rounded, tokenizer)
    card = _card(plan, model, dtype, changed, difference)
    (folder / 'README.md').write_text(card)
    return difference


def _changed(plan: tree.Plan, params: base.Tree, merged: base.Tree, dtype: Any) -> tuple[int, int]:
    """(leaves that differ from the base in this dtype, adapted leaves)."""
    before, after = dict(paths.flatten(params)), dict(paths.flatten(merged))
    adapted = [site.path for site in tree.sites(plan, params)]
    differ = [bool(jnp.any(jnp.asarray(before[p], dtype) != after[p])) for p in adapted]
    if not any(differ):
        raise ValueError(
            f'the merge changes none of the {len(adapted)} adapted weights in {dtype.name}: the '
            'adapter is untrained, or its changes are smaller than that dtype can hold '
            '(dtype=None writes float32)'
        )
    return sum(differ), len(adapted)


def _logit_difference(model: Any, exact: base.Tree, rounded: base.Tree) -> float:
    """The largest difference of a logit on the probe batch, in float32 arithmetic."""
    wide = model.clone(dtype=jnp.float32, param_dtype=jnp.float32)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.config.vocab_size, PROBE, dtype=np.int32)
    apply = jax.jit(lambda params: wide.apply({'params': params}, tokens))
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (exact, rounded))
    before, after = map(apply, widened)
    return float(jnp.max(jnp.abs(before - after)))


def _card(
    plan: tree.Plan, model: Any, dtype: Any, changed: tuple[int, int], difference: float
) -> str:
    """The model card: base, method with its options, how it was merged."""
    name = model.config.name
    on_hub = name.count('/') == 1 and not name.startswith(('.', '/'))
    rules = [
        f'| `{pattern}` | {spec["name"]} | `{json.dumps(_options(spec))}` |'
        for pattern, rule in plan.items()
        for spec in [(rule.method if isinstance(rule, views.Viewed) else rule).spec]
    ]
    rounding = (
        f'Rounding to {dtype.name} moved the logits of a probe batch (2 x 16 random tokens) by '
        f'up to {difference:.3g}.'
        if dtype != jnp.float32
        else 'The files hold the float32 merge, unrounded.'
    )
    return '\n'.join(
        [
            '---',
            'library_name: transformers',
            *([f'base_model: {name}'] if on_hub else []),
            'tags:',
            '- jaxpeft',
            '---',
            '',
            f'# {name or model.config.model_type}, merged with its adapter',
            '',
            f'Base model: {name or "not named"}. Fine-tuned with jaxpeft; the adapter is folded '
            'into the weights, so that transformers loads this folder as a plain model.',
            '',
            '| weights | method | options |',
            '|---|---|---|',
            *rules,
            '',
            f'Merged in float32, written in {dtype.name}: {changed[0]} of {changed[1]} adapted '
            f'weights differ from the base. {rounding}',
            '',
        ]
    )


def _options(spec: Any) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != 'name'}
