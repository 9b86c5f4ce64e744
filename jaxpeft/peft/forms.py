"""How each method lies in a PEFT folder: one `Form` a method, and nothing else knows them apart.

| ours                | PEFT's key                            | shape there             |
|---------------------|---------------------------------------|-------------------------|
| lora `a`, `b`       | `lora_A.weight`, `lora_B.weight`      | [r, in], [out, r]       |
| its embedding       | `lora_embedding_A`, `lora_embedding_B`| [r, rows], [width, r]   |
| dora `m`            | `lora_magnitude_vector`               | [out]                   |
| kasa `diag`         | `lora_diag`                           | [r]                     |
| hira `a`, `b`       | `hira_A`, `hira_B`                    | [r, in], [out, r]       |
| ia3 `scale_l`       | `ia3_l`                               | [out, 1], input: [1, in]|
"""

import math
from typing import Any

import numpy as np

from jaxpeft.near import nearest
from jaxpeft.peft import reference
from jaxpeft.peft.form import Config, Entry, Form, Leaves, Place

FACTORS = {'a': Entry('lora_A.weight', 'rn'), 'b': Entry('lora_B.weight', 'mr')}
PLAIN_INITS = (True, False, None, 'gaussian', 'orthogonal', 'eva')
BASE_INITS = ('pissa', 'olora')  # PEFT takes the initial product out of the base, also on loading


def _scaled(config: Config, place: Place) -> dict[str, Any]:
    rate = config.get('lora_dropout', 0.0)
    return {'rank': place.rank, 'alpha': float(place.alpha), 'dropout': rate}


def _lora_options(config: Config, place: Place) -> dict[str, Any]:
    init = config.get('init_lora_weights', True)
    how = {'init': init} if init in BASE_INITS else {}
    return _scaled(config, place) | {'rslora': bool(config.get('use_rslora'))} | how


def _bad_init(config: Config, known: tuple[Any, ...] = (*PLAIN_INITS, *BASE_INITS)) -> list[str]:
    init = config.get('init_lora_weights', True)
    if init in known:
        return []
    return [
        f'init_lora_weights={init!r} (it changed the base in a way that this folder does not hold; '
        'save it with path_initial_model_for_weight_conversion)'
    ]


def _lora_fields(spec: Config) -> dict[str, Any]:
    return {'lora_dropout': spec['dropout'], 'use_rslora': bool(spec.get('rslora'))}


def _without_initial(spec: Config, leaves: Leaves) -> tuple[Leaves, int]:
    """`s A B - U Vt` as one pair of twice the rank: `[A, U / s]`, `[B; -Vt]`."""
    if 'u' not in leaves:
        return leaves, 1
    scale = spec['alpha'] / (math.sqrt(spec['rank']) if spec['rslora'] else spec['rank'])
    a = np.concatenate([leaves['a'], leaves['u'] / np.float32(scale)], axis=1)
    b = np.concatenate([leaves['b'], -leaves['vt']], axis=0)
    return {**leaves, 'a': a, 'b': b}, 2


LORA = Form(
    method='lora',
    peft_type='LORA',
    leaves={
        'linear': FACTORS,
        'table': {'a': Entry('lora_embedding_A', 'rn'), 'b': Entry('lora_embedding_B', 'mr')},
    },
    claims=lambda config: True,
    options=_lora_options,
    reads=('lora_dropout', 'use_rslora', 'init_lora_weights'),
    refuses=_bad_init,
    fields=_lora_fields,
    plain=_without_initial,
    alpha=True,
)


def _kasa_options(config: Config, place: Place) -> dict[str, Any]:
    weights = config['kasa_config']
    return _scaled(config, place) | {'beta': weights['beta'], 'gamma': weights['gamma']}


def _kasa_fields(spec: Config) -> dict[str, Any]:
    weights = {'beta': spec['beta'], 'gamma': spec['gamma']}
    return {'lora_dropout': spec['dropout'], 'kasa_config': weights}


DORA = LORA._replace(
    method='dora',
    leaves={'linear': FACTORS | {'m': Entry('lora_magnitude_vector', 'm')}},
    claims=lambda config: bool(config.get('use_dora')),
    reads=(*LORA.reads, 'use_dora'),
    fields=lambda spec: _lora_fields(spec) | {'use_dora': True},
)
# PEFT takes the tail out of the base when it makes or loads the adapter: only what trains is saved.
KASA = LORA._replace(
    method='kasa',
    leaves={'linear': FACTORS | {'diag': Entry('lora_diag', 'r')}},
    claims=lambda config: bool(config.get('kasa_config')),
    options=_kasa_options,
    reads=('lora_dropout', 'kasa_config', 'init_lora_weights'),
    refuses=lambda config: _bad_init(config, PLAIN_INITS),
    fields=_kasa_fields,
    plain=lambda spec, leaves: (leaves, 1),
)


def _hira_options(config: Config, place: Place) -> dict[str, Any]:
    return {'rank': place.rank, 'dropout': config.get('hira_dropout', 0.0)}


HIRA = Form(
    method='hira',
    peft_type='HIRA',
    leaves={'linear': {'a': Entry('hira_A', 'rn'), 'b': Entry('hira_B', 'mr')}},
    claims=lambda config: True,
    options=_hira_options,
    reads=('hira_dropout', 'init_weights'),
    fields=lambda spec: {'hira_dropout': spec['dropout']},
    one_rank=True,
)


def _ia3_options(config: Config, place: Place) -> dict[str, Any]:
    del config
    module, fed = place.module, place.kind == 'input'
    return {'dim': module.n if fed else module.m, 'feedforward': fed, 'stack': module.stack}


IA3 = Form(
    method='ia3',
    peft_type='IA3',
    leaves={
        'linear': {'scale_l': Entry('ia3_l', 'm1')},
        'input': {'scale_l': Entry('ia3_l', '1n')},
    },
    claims=lambda config: True,
    options=_ia3_options,
    reads=('feedforward_modules', 'init_ia3_weights'),
    fields=lambda spec: {},
    rank_field=None,
)


FORMS = (reference.HIRA, reference.KNOWHIRA, HIRA, IA3, KASA, DORA, LORA)


def of_spec(spec: Config, path: str) -> Form:
    """The form that a method is exported in.

    Raises:
      ValueError: for a method that PEFT has no form for.
    """
    for form in FORMS:
        if form.method == spec['name'] and form.fields is not None:
            return form
    known = sorted({form.method for form in FORMS if form.fields is not None})
    raise ValueError(
        f'{path}: PEFT has no form for {spec["name"]!r} (it has: {", ".join(known)}); '
        'jp.export_merged writes the merged model, which every torch program loads, and '
        'jp.save_adapter keeps the adapter for jaxpeft'
    )


def of_config(config: Config, label: str) -> Form:
    """The form that reads a config.

    Raises:
      ValueError: for an unknown `peft_type`.
    """
    kind = config.get('peft_type')
    for form in FORMS:
        if form.peft_type == kind and form.claims(config):
            return form
    known = sorted({form.peft_type for form in FORMS})
    raise ValueError(
        f'{label}: peft_type must be one of {", ".join(known)}, got {kind!r}; '
        f'{nearest(str(kind), known)}'
    )


def alpha_of(spec: Config, rank: int, factor: int) -> float | int:
    """`lora_alpha` of a layer whose rank is `rank`, stored in `factor` times as many columns.

    Alpha follows a layer-wise rank (`jaxpeft.ranks`): `alpha q / r`. A stored rank of `2 q` keeps
    the scale with `2 alpha`, or `sqrt(2) alpha` for rsLoRA.
    """
    grown = math.sqrt(factor) if spec.get('rslora') else factor
    alpha = spec['alpha'] * rank / spec['rank'] * grown
    return int(alpha) if float(alpha).is_integer() else float(alpha)
