"""From names to a plan: several methods, their targets and dimensions, ranks by pattern or layer.

`compose` is what `train.run` and `prepare` call. A plan is a plain dict, so everything here can
also be written by hand.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpeft import base, methods, paths, ranks, tree, views
from jaxpeft.near import nearest

BIASES = ('none', 'adapted', 'all')
EVERY_LEAF = ('all',)  # the TARGETS of a method over leaves of any kind


def compose(
    model: Any,
    params: base.Tree,
    method: str,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    targets: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    layers: Sequence[int] = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    rank_strategy: str = 'uniform',
    bias: str = 'none',
) -> dict[str, Any]:
    """A plan for one of jaxpeft's models.

    Args:
      model: the Linen module of `models.load`; overrides take their dimensions from its config.
      params: its parameters (arrays or shapes).
      method: a method's name, or several joined by '+': `'hylorada+sparse_mlp+daa'`.
      options: name -> arguments of its factory.
      targets: module names that methods over kernels adapt, see `jp.targets`; each method's own
        where empty. Overrides of an attention core or an FFN keep theirs.
      exclude: module names to leave out, of the same methods.
      layers: numbers of the layers to adapt; all when empty. Unrolled models only.
      rank_pattern: module name or regex -> rank, PEFT's: it is matched against the end of a
        module's path; the first that matches wins.
      alpha_pattern: the same for alpha.
      rank_strategy: 'uniform', 'importance' or 'decreasing', see `jaxpeft.ranks`.
      bias: 'none'; 'adapted' also trains the biases of adapted layers, 'all' every bias.

    Returns:
      path regex -> rule, for `init` and `bind`.

    Raises:
      ValueError: for an unknown method, target or pattern, with the nearest; for two methods on
        one kernel; for options that a method cannot have, or that nothing in the plan follows.

    Example:
      >>> import jaxpeft as jp
      >>> model, params, _ = jp.models.load('embedded')
      >>> plan = jp.compose(model, params, 'lora', options={'lora': {'rank': 4}}, bias='adapted')
      >>> [rule.spec['name'] for rule in plan.values()]
      ['lora', 'full']
    """
    names = split(method)
    options = options or {}
    patterns: dict[str, Any] = {
        'rank_pattern': rank_pattern or {},
        'alpha_pattern': alpha_pattern or {},
    }
    _check_followed(
        params, names, options, {'targets': targets, 'exclude': exclude},
        patterns | {'rank_strategy': rank_strategy != 'uniform'},
    )  # fmt: skip
    plan: dict[str, Any] = {}
    for name in names:
        given = dict(options.get(name, {}))
        if _is_override(name):
            new = _overrides(model, params, name, given, targets, exclude, layers)
        else:
            wanted = targets or methods.defaults(name)
            every = tuple(wanted) == EVERY_LEAF
            if every and (layers or exclude):
                raise ValueError(
                    f'{name} adapts every leaf of the base: give it targets, such as all-linear, '
                    'and layers and exclude choose among them'
                )
            at = '.*' if every else paths.targets(params, wanted, exclude, layers)
            if rank_pattern or alpha_pattern:
                new = _patterned(params, at, name, given, **patterns)
            else:
                new = {at: _make(name, given)}
            new = _layerwise(model, new, rank_strategy, bool(rank_pattern)) | _shared(name, given)
        both = plan.keys() & new.keys()
        if both:
            raise ValueError(f'{method!r} puts two methods on the same layers, {sorted(both)[0]!r}')
        plan |= new
    return plan | _biases(params, plan, bias)


def split(method: str) -> list[str]:
    """`'lora+daa'` -> `['lora', 'daa']`, each checked.

    Raises:
      ValueError: for an unknown name, one given twice, or none.
    """
    names = [part.strip().replace('-', '_') for part in method.split('+')]
    for name in names:
        methods.get(name)
        if names.count(name) > 1:
            raise ValueError(f'{method!r} names {name} twice')
    return names


def _is_override(name: str) -> bool:
    return hasattr(methods.module(name), 'dimensions')


def _on_layers(name: str, linear: Sequence[str]) -> bool:
    """Whether an override is of linear layers, which have names, and not of a core or an FFN."""
    return bool(set(methods.defaults(name)) & set(linear))


def _check_followed(
    params: base.Tree,
    names: Sequence[str],
    options: Mapping[str, Any],
    on_layers: Mapping[str, Any],
    on_kernels: Mapping[str, Any],
) -> None:
    """Refuses what nothing in the plan would follow, each by its argument's name."""
    for name in options.keys() - set(names):
        raise ValueError(f'options of {name}, which is not in the plan; {nearest(name, names)}')
    if not all(map(_is_override, names)):
        return
    linear = paths.linear_suffixes(params)
    named = any(_on_layers(name, linear) for name in names)
    idle = {**({} if named else on_layers), **on_kernels}
    for argument in (a for a, value in idle.items() if value):
        modules = ', '.join(target for name in names for target in methods.defaults(name))
        raise ValueError(
            f'{argument} is for methods over kernels, such as lora; {"+".join(names)} adapts other '
            f'modules: {modules}'
        )


def _overrides(
    model: Any,
    params: base.Tree,
    name: str,
    given: Mapping[str, Any],
    targets: Sequence[str] | str,
    exclude: Sequence[str] | str,
    layers: Sequence[int],
) -> dict[str, Any]:
    """One rule for each target of an override, with the dimensions that the model has there."""
    file = methods.module(name)
    linear = paths.linear_suffixes(params)
    known = {*linear, 'core', *(p.rsplit('/', 1)[-1] for p in _modules(params))}
    chosen = [target for target in file.TARGETS if target in known]
    if _on_layers(name, linear):
        chosen = _checked(params, targets) or chosen
        dropped = _checked(params, exclude)
        chosen = [t for t in chosen if not any(_same_end(t, d) for d in dropped)]
    if not chosen:
        raise ValueError(f'{name}: this model has none of {", ".join(file.TARGETS)} that is left')
    inside = '.*/'
    if layers:
        paths.targets(params, 'all-linear', layers=layers)  # refuses layers that are not there
        numbers = '|'.join(map(str, layers))
        inside = rf'.*/(?:{"|".join(paths.LAYER_PARENTS)})/(?:{numbers})(?:/.*)?/'
    stack = (model.config.num_layers,) if model.scan else ()
    at = {'core': '(?:self_attn|attention)/core'}  # it has no parameters to be found by
    return {
        inside + at.get(t, t): _make(name, given, **file.dimensions(model.config, t), stack=stack)
        for t in chosen
    }


def _modules(params: base.Tree) -> list[str]:
    return paths.modules([path for path, _ in paths.flatten(params)])


def _same_end(x: str, y: str) -> bool:
    """Whether one of two names is the end of the other: `c_fc` and `mlp/c_fc`."""
    return f'/{x}'.endswith(f'/{y}') or f'/{y}'.endswith(f'/{x}')


def _checked(params: base.Tree, targets: Sequence[str] | str) -> list[str]:
    """The asked names as the model's linear layers have them."""
    wanted, known = paths.split(targets), paths.linear_suffixes(params)
    if wanted == ['all-linear']:
        return paths.linear_names(params)
    return [name for asked in wanted for name in paths.spelled(asked, known)]


def _patterned(
    params: base.Tree,
    at: str,
    name: str,
    given: dict[str, Any],
    rank_pattern: Mapping[str, int],
    alpha_pattern: Mapping[str, float],
) -> dict[str, Any]:
    """A rule for each (rank, alpha) that the patterns give, the plain one last."""
    found = [path for path, _ in paths.flatten(params) if re.fullmatch(at, path)]
    used: set[str] = set()
    groups: dict[tuple[int | None, float | None], list[str]] = {}
    for path in found:
        rank = _match(path, rank_pattern, used)
        alpha = _match(path, alpha_pattern, used)
        groups.setdefault((rank, alpha), []).append(path)
    for pattern in [*rank_pattern, *alpha_pattern]:
        if pattern not in used:
            known = sorted({p for path in found for p in _ends(path)})
            raise ValueError(
                f'the pattern {pattern!r} matches no target; {nearest(pattern, known)}'
            )
    plan = {}
    for (rank, alpha), members in groups.items():
        if rank is not None or alpha is not None:
            new = {'rank': rank, 'alpha': alpha}
            options = given | {k: v for k, v in new.items() if v is not None}
            plan['|'.join(map(re.escape, members))] = _make(name, options)
    if (None, None) in groups or not found:
        plan[at] = _make(name, given)
    return plan


def _shared(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the method's layers share, under its '~shared/' keys."""
    shared = getattr(methods.module(name), 'shared', None)
    parts: dict[str, Any] = {} if shared is None else shared(given)
    return {tree.SHARED + part: methods.rebuild(spec) for part, spec in parts.items()}


def _make(name: str, options: Mapping[str, Any], **of_model: Any) -> Any:
    """The method; `of_model` are the dimensions, which no option sets."""
    known = [option for option in methods.options(name) if option not in of_model]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        there = nearest(unknown[0], known) if known else 'it has no options'
        raise ValueError(f'{name} takes no {", ".join(unknown)}; {there}')
    return methods.get(name)(**options, **of_model)


def _ends(path: str) -> list[str]:
    """The ends of a kernel's module path that a pattern may name."""
    parts = re.sub('/(kernel|embedding)$', '', path).split('/')
    return ['/'.join(parts[-k:]) for k in range(1, len(parts) + 1)]


def _match(path: str, patterns: Mapping[str, Any], used: set[str]) -> Any:
    """The value of the first pattern that matches an end of the path; all that do are used."""
    value = None
    for pattern, given in patterns.items():
        # PEFT's paths have dots: a plain one in a regex matches the slash of ours anyway.
        regex = pattern.replace(r'\.', '/')
        if any(re.fullmatch(regex, end) for end in _ends(path)):
            used.add(pattern)
            value = given if value is None else value
    return value


def _layerwise(model: Any, plan: dict[str, Any], strategy: str, patterned: bool) -> dict[str, Any]:
    """The plan with a rank for each layer, where a strategy asks for other than one for all."""
    if strategy == 'uniform':
        return plan
    if patterned:
        raise ValueError(
            f'rank_pattern and rank_strategy {strategy!r} both set the ranks: give one'
        )
    out = {}
    for pattern, rule in plan.items():
        rank = rule.spec.get('rank')
        if rank is None:
            raise ValueError(f'{rule.spec["name"]} has no rank for rank_strategy {strategy!r}')
        of_layers = ranks.of_strategy(strategy, rank, model.config.num_layers)
        out[pattern] = views.layerwise(rule, of_layers)
    return out


def _biases(params: base.Tree, plan: dict[str, Any], which: str) -> dict[str, Any]:
    """The rule that trains biases: none, those beside adapted kernels, or all."""
    if which not in BIASES:
        raise ValueError(f'bias must be one of {", ".join(BIASES)}, got {which!r}')
    if which == 'none':
        return {}
    adapted = {site.path for site in tree.sites(plan, params) if site.view is not None}
    beside = {path.rpartition('/')[0] + '/bias' for path in adapted}
    every = [path for path, _ in paths.flatten(params) if path.endswith('/bias')]
    wanted = every if which == 'all' else [path for path in every if path in beside]
    chosen = [path for path in wanted if path not in adapted]
    if not chosen:
        why = 'nothing here has a bias'
        if wanted:
            why = 'the plan trains them already'
        elif every:
            why = f'no adapted {"layer has a bias" if adapted else "kernel is in this plan"}'
        raise ValueError(f'bias={which!r}: {why}')
    return {'|'.join(map(re.escape, chosen)): methods.get('full')()}
