"""The folders of the reference programs, read only: no release of PEFT knows them.

HiRA's `lora_A [r, in]`, `lora_B [out, r]` have no `.weight`, and its `peft_type` is LORA: `r_ab` in
the config tells it apart. KnowHiRA's update is transposed, `W o (1 + alpha A^T G B^T)` with W
[out, in]: its `lora_B` runs over the input axis of W and is our `a [n, r]` as it stands, its
`lora_A` our `b [r, m]`. Such a layer is square.

Sources: github hqsiswiliam/hira and ctree4113/NLP-25Spring-FDU.
"""

from typing import Any

from jaxpeft.peft import fields
from jaxpeft.peft.form import Config, Entry, Form, Place


def _hira(config: Config, place: Place) -> dict[str, Any]:
    # Its lora_dropout, lora_alpha and scale_ab are accepted and never applied.
    del config
    return {'rank': place.rank}


def _knowhira(config: Config, place: Place) -> dict[str, Any]:
    get = fields.BY_TYPE['KNOWHIRA'] | dict(config)
    return {
        'rank': place.rank,
        'knowledge_alpha': get['knowledge_alpha'] * get['scale_ab'],
        'ortho_lambda': get['ortho_lambda'],
        'svd_rank_ratio': get['svd_rank_ratio'],
        'spectrum_init_scale': get['spectrum_init_scale'],
        'adaptive_gating': get['adaptive_gating'],
        'gate_init': 0.0,
    }


READS = (
    'r_ab', 'lora_alpha', 'lora_dropout', 'init_a', 'init_b', 'train_a', 'train_b', 'scale_ab',
    'init_lora_weights', 'knowledge_alpha', 'ortho_lambda', 'svd_rank_ratio',
    'spectrum_init_scale', 'adaptive_gating',
)  # fmt: skip
HIRA = Form(
    method='hira',
    peft_type='LORA',
    leaves={'linear': {'a': Entry('lora_A', 'rn'), 'b': Entry('lora_B', 'mr')}},
    claims=lambda config: 'r_ab' in config,
    options=_hira,
    reads=READS,
    rank_field='r_ab',
)
KNOWHIRA = Form(
    method='knowhira',
    peft_type='KNOWHIRA',
    leaves={
        'linear': {
            'a': Entry('lora_B', 'mr', turned=False),
            'b': Entry('lora_A', 'rn', turned=False),
        }
    },
    claims=lambda config: True,
    options=_knowhira,
    reads=READS,
    rank_field='r_ab',
    made=('gate',),
    notes='the reference program never saves its gates, so they start at gate_init=0 (sigmoid '
    '0.5), and its spectrum came from a random matrix that is lost, so sigma is computed from this '
    "base's kernels: the adapter will not compute quite what it was trained as; train it on, or "
    'evaluate it before you rely on it',
)
