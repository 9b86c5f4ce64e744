"""From the command line to a Config: presets, files and flags, each a set of differences.

Order: defaults, the embedded preset (where neither model nor data set is named), --preset,
--config, the command line; the later wins.
"""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence

import tyro

import jaxpeft as jp
from train import config as configs
from train import options
from train.config import Config
from train.near import nearest
from train.options import Source

PRESETS = pathlib.Path(__file__).parent / 'presets'
DESCRIPTION = """Train an adapter on a language model, evaluate it before and after, and report.
With nothing but --method it runs a small example that ships with the package, without a network.
Flags may be written with dashes or underscores."""

MINIMUM = {
    'batch': 1,
    'grad_acc': 1,
    'warmup': 0,
    'weight_decay': 0,
    'max_grad_norm': 0,
    'max_steps': 0,
    'max_length': 8,
    'val_size': 0,
    'train_rows': 0,
    'eval_steps': 1,
    'early_stop_patience': 0,
    'eval_limit': 0,
    'eval_batch': 1,
    'max_new_tokens': 1,
    'save_steps': 1,
    'save_total_limit': 1,
    'log_steps': 1,
}
POSITIVE = ('lr', 'epoch', 'loraplus_ratio')


def parse(argv: Sequence[str]) -> tuple[Config, list[str]]:
    """Reads a command line.

    Args:
      argv: the arguments, without the program's name.

    Returns:
      The resolved configuration, and notes for the user: what a preset or file says that the
      chosen method does not take.

    Raises:
      ValueError: for an unknown method, preset, key or value, with the nearest valid choice.
      FileNotFoundError: for a --config file that is not there.
      SystemExit: by tyro, after --help (0) or for an unknown flag (2, naming the nearest).

    Example:
      >>> config, notes = parse(['--method', 'lora', '--r_ab', '8'])
      >>> config.adapter.method, config.options['lora']['rank'], config.model.model_name
      ('lora', 8, 'embedded')
    """
    command = _read(argv, 'the command line', typed=True)
    sources = [command]
    if command.config.run.config:
        sources.insert(0, _read_file(pathlib.Path(command.config.run.config)))
    if command.config.run.preset:
        sources.insert(0, _read_file(_preset(command.config.run.preset)))
    embedded = _is_embedded(sources)
    if embedded:
        sources.insert(0, _read_file(_preset('embedded')))
    config = Config()
    for source in sources:
        config = _overlay(config, source)
    if embedded and not any('lr' in source.given for source in sources):
        config = dataclasses.replace(config, optim=_embedded_rate(config))
    chosen, notes = options.resolve(config.adapter.method, sources)
    config = dataclasses.replace(config, options=chosen)
    check(config)
    if 'loraplus_ratio' in command.given and not config.optim.loraplus:
        raise ValueError('--loraplus_ratio is of --loraplus; give both')
    return config, notes


def check(config: Config) -> None:
    """Refuses numbers that no run can have.

    Raises:
      ValueError: naming the flag, the rule and the value.
    """
    values = configs.values(config)
    for flag, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'--{flag} must be a finite number, got {value}')
    for flag, least in MINIMUM.items():
        if values[flag] < least:
            raise ValueError(f'--{flag} must be at least {least}, got {values[flag]}')
    for flag in POSITIVE:
        if values[flag] <= 0:
            raise ValueError(f'--{flag} must be above 0, got {values[flag]}')
    options.pairs('rank_pattern', values['rank_pattern'], int)
    options.pairs('alpha_pattern', values['alpha_pattern'], float)
    options.numbers('layers', values['layers'])
    if values['layers'] and values['scan']:
        raise ValueError('--layers needs --no_scan: under a layer scan all layers are adapted')
    for name in configs.listed(values['eval_decodings']):
        if name not in configs.DECODINGS:
            raise ValueError(f'no decoding is called {name!r}; {nearest(name, configs.DECODINGS)}')
    if values['eval_strategy'] != 'no' and values['val_size'] == 0:
        raise ValueError(
            f'--eval_strategy {values["eval_strategy"]} needs validation rows, got --val_size 0; '
            'give --eval_strategy no to train without'
        )
    if values['early_stop_patience'] and values['eval_strategy'] == 'no':
        raise ValueError('--early_stop_patience needs --eval_strategy steps or epoch, got no')


def _read(argv: Sequence[str], name: str, typed: bool = False) -> Source:
    """Parses one source by itself, so that an error can name it."""
    known = configs.flags()
    given = set()
    for token in argv:
        if token.startswith('--'):
            flag = token[2:].split('=')[0].replace('-', '_')
            given.add(flag if flag in known else flag.removeprefix('no_'))
    try:
        config = tyro.cli(
            Config,
            args=list(argv),
            prog='python -m train.run',
            description=DESCRIPTION,
            config=(tyro.conf.OmitArgPrefixes,),
            use_underscores=True,
        )
    except SystemExit as stop:
        if stop.code and not typed:
            print(f'(said by {name})', file=sys.stderr)
        raise
    return Source(name, config, frozenset(given), typed)


def _read_file(path: pathlib.Path) -> Source:
    """A YAML mapping of flag: value, read as flags."""
    if not path.is_file():
        raise FileNotFoundError(f'--config names a YAML file of flag: value; there is no {path}')
    values = options.from_yaml(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise ValueError(f'{path} must hold a mapping of flag: value, got {values!r}')
    argv: list[str] = []
    known = [flag for flag in configs.flags() if flag not in ('preset', 'config')]
    for key, value in values.items():
        flag = str(key).replace('-', '_')
        if flag not in known:
            raise ValueError(f'{path}: no flag is called {key!r}; {nearest(flag, known)}')
        argv += _as_flags(flag, value, path)
    return _read(argv, str(path))


def _as_flags(flag: str, value: object, path: pathlib.Path) -> list[str]:
    """One YAML entry as the command line would say it; a blank is the empty text.

    Raises:
      ValueError: for a blank, or true and false, where the flag takes something else.
    """
    default = configs.values(Config())[flag]
    if value is None and default in ('', ()):
        value = default
    if flag == 'eval_strategy' and value is False:
        value = 'no'  # which YAML 1.1 reads as false
    if value is None or isinstance(value, bool) != isinstance(default, bool):
        rule = 'true or false' if isinstance(default, bool) else f'a value like {default!r}'
        raise ValueError(
            f'{path}: {flag} must be {rule}, got {"nothing" if value is None else repr(value)}'
        )
    if isinstance(value, bool):
        return [f'--{flag}' if value else f'--no_{flag}']
    if isinstance(value, list | tuple) and flag == 'set':
        return [f'--set={item}' for item in value]
    text = ','.join(map(str, value)) if isinstance(value, list) else str(value)
    return [f'--{flag}={text}']


def _preset(name: str) -> pathlib.Path:
    known = sorted(path.stem for path in PRESETS.glob('*.yaml'))
    if name not in known:
        raise ValueError(f'no preset is called {name!r}; {nearest(name, known)}')
    return PRESETS / f'{name}.yaml'


def _is_embedded(sources: Sequence[Source]) -> bool:
    """Whether no other model or data set is named than the embedded ones.

    Raises:
      ValueError: where only one of the two is named: to guess the other would train on the wrong
        thing without a word.
    """
    named: dict[str, str] = {}
    for source in sources:
        if 'model_name' in source.given:
            named['model_name'] = source.config.model.model_name
        if 'dataset' in source.given:
            named['dataset'] = source.config.data.dataset
    if all(value == 'embedded' for value in named.values()):
        return True
    for flag, other in (('model_name', 'dataset'), ('dataset', 'model_name')):
        if other not in named:
            raise ValueError(
                f'--{flag} {named[flag]} needs --{other} beside it; --{other} embedded is the '
                'small one that ships with the package'
            )
    return False


def _embedded_rate(config: Config) -> configs.Optim:
    """Ten times the method's usual rate: the base is tiny and the run short."""
    first = jp.plans.split(config.adapter.method)[0]
    return dataclasses.replace(config.optim, lr=10 * jp.methods.usual_rate(first))


def _overlay(config: Config, source: Source) -> Config:
    """The configuration with what one source gave."""
    parts = {}
    for group in configs.GROUPS:
        new = getattr(source.config, group)
        given = [f.name for f in dataclasses.fields(new) if f.name in source.given]
        values = {name: getattr(new, name) for name in given}
        parts[group] = dataclasses.replace(getattr(config, group), **values)
    return dataclasses.replace(config, **parts)
