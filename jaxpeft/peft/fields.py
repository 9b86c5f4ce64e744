"""The fields of PEFT's `adapter_config.json`: what it writes, and which of it may be read.

The tables hold every field that PEFT 0.21 writes with its neutral value. A field that import does
not interpret must hold that value, or an empty one where PEFT grows a field that is not known here:
an option that changes the model's function is never passed over.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxpeft.peft.names import HEAD, Module

VERSION = '0.21.2'  # of the PEFT whose fields these are
ALL_LINEAR = 'all-linear'

GENERAL: dict[str, Any] = {
    'auto_mapping': None, 'base_model_name_or_path': None, 'exclude_modules': None,
    'fan_in_fan_out': False, 'inference_mode': True, 'modules_to_save': None, 'peft_type': None,
    'peft_version': VERSION, 'revision': None, 'target_modules': None, 'task_type': 'CAUSAL_LM',
}  # fmt: skip
RANKED: dict[str, Any] = {
    'layers_pattern': None, 'layers_to_transform': None, 'r': None, 'rank_pattern': {},
}  # fmt: skip
BY_TYPE: dict[str, dict[str, Any]] = {
    'LORA': GENERAL | RANKED | {
        'alora_invocation_tokens': None, 'alpha_pattern': {}, 'arrow_config': None, 'bias': 'none',
        'corda_config': None, 'ensure_weight_tying': False, 'eva_config': None,
        'init_lora_weights': True, 'kasa_config': None, 'layer_replication': None,
        'loftq_config': {}, 'lora_alpha': None, 'lora_bias': False, 'lora_dropout': 0.0,
        'lora_ga_config': None, 'megatron_config': None, 'megatron_core': 'megatron.core',
        'monteclora_config': None, 'qalora_group_size': 16, 'target_parameters': None,
        'trainable_token_indices': None, 'use_bdlora': None, 'use_dora': False,
        'use_qalora': False, 'use_rslora': False, 'velora_config': None,
    },
    'HIRA': GENERAL | RANKED | {'hira_dropout': 0.0, 'init_weights': True},
    'IA3': GENERAL | {'feedforward_modules': None, 'init_ia3_weights': True},
    # The reference programs' own, which no release of PEFT knows.
    'KNOWHIRA': GENERAL | {
        'r_ab': None, 'lora_alpha': None, 'lora_dropout': 0.05, 'bias': 'none', 'init_a': 'kaiming',
        'init_b': 'zero', 'scale_ab': 1.0, 'train_a': True, 'train_b': True, 'rand_R': False,
        'knowledge_alpha': 0.5, 'ortho_lambda': 0.01, 'svd_rank_ratio': 0.8,
        'spectrum_init_scale': 1.0, 'adaptive_gating': True, 'init_lora_weights': True,
    },
}  # fmt: skip
RECORDS = (  # fields that say where a file came from, or how training began or is to be set up
    'auto_mapping', 'base_model_name_or_path', 'inference_mode', 'peft_type', 'peft_version',
    'revision', 'loftq_config', 'megatron_core', 'qalora_group_size', 'eva_config',
    'ensure_weight_tying',
)  # fmt: skip
READ = ('target_modules', 'exclude_modules', *RANKED, 'alpha_pattern', 'lora_alpha')


def unread(config: Mapping[str, Any], known: Mapping[str, Any], read: Iterable[str]) -> list[str]:
    """`name=value` of each field that says something import does not understand."""
    passed = {*RECORDS, *READ, *read}
    wrong = []
    for name, value in sorted(config.items()):
        if name in passed or value == known.get(name) or (not value and not known.get(name)):
            continue
        if name == 'task_type' and value is None:
            continue
        wrong.append(f'{name}={value!r}')
    return wrong


def chosen(config: Mapping[str, Any], base: Mapping[str, Module], *, dot: str = '.') -> list[str]:
    """The torch modules that a config targets, by PEFT's rules, in the base's order.

    A list names modules or the ends of their names, a string is a regex for the whole name or
    'all-linear'; `exclude_modules` comes first, `layers_to_transform` holds for lists. A tied
    head, which is no leaf here, is found under its name.

    Args:
      config: the adapter's.
      base: `names.of_base`.
      dot: what separates a listed end from the rest; '' is how the reference programs match.
    """
    targets, excluded = config.get('target_modules'), config.get('exclude_modules')
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return [
            n for n, one in base.items()
            if not one.table and n != HEAD and not _listed(excluded, n, dot)
        ]  # fmt: skip
    found = [n for n in dict.fromkeys((*base, HEAD)) if _listed(targets, n, dot)]
    found = [n for n in found if not _listed(excluded, n, dot)]
    layers = config.get('layers_to_transform')
    if isinstance(targets, str) or layers is None or layers == []:
        return found
    wanted = [layers] if isinstance(layers, int) else list(layers)
    return [n for n in found if _layer(n, config.get('layers_pattern')) in wanted]


def _listed(names: Any, name: str, dot: str) -> bool:
    if not names:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == one or name.endswith(dot + one) for one in names)


def _layer(name: str, pattern: Any) -> int | None:
    """The layer's number: the first one that stands behind the pattern, or behind any name."""
    given = [pattern] if isinstance(pattern, str) else list(pattern or ())
    for container in given or [r'[^.]*']:
        found = re.match(rf'(?:^|.*?\.){container}\.(\d+)\.', name)
        if found:
            return int(found.group(1))
    return None


def feeds(config: Mapping[str, Any], name: str) -> bool:
    """Whether IA3 scales this module's input: PEFT takes any name that ends so, dot or not."""
    fed = config.get('feedforward_modules') or ()
    if isinstance(fed, str):
        return re.fullmatch(fed, name) is not None
    return any(name.endswith(one) for one in fed)


def by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first pattern that is the end of a module's name, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf'(.*\.)?({pattern})$', name):
            return value
    return default


def targets_for(
    adapted: Iterable[str], fed: Iterable[str], base: Mapping[str, Module]
) -> tuple[list[str], list[str]]:
    """The shortest `target_modules` and `feedforward_modules` that name just these.

    PEFT wants the second to be a subset of the first, so both are last names, or both whole.
    """
    wanted, inputs = set(adapted), set(fed)
    last = lambda names: sorted({name.rsplit('.', 1)[-1] for name in names})
    ends, ends_fed = last(wanted), last(inputs)
    said = {name for name in wanted if feeds({'feedforward_modules': ends_fed}, name)}
    if set(chosen({'target_modules': ends}, base)) == wanted and said == inputs:
        return ends, ends_fed
    return sorted(wanted), sorted(inputs)


def pattern_for(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """`rank_pattern` or `alpha_pattern`: modules whose value is not the default.

    A last name stands for all modules that end in it where they agree, else each is named whole.
    """
    shared: dict[str, set[Any]] = {}
    for name, value in values.items():
        shared.setdefault(name.rsplit('.', 1)[-1], set()).add(value)
    out = {}
    for name, value in values.items():
        if value == default:
            continue
        last = name.rsplit('.', 1)[-1]
        out[last if len(shared[last]) == 1 else '^' + re.escape(name)] = value
    return out
