"""What a comparison's figures were made of, by content: a path or a name may hold other things.

A file of figures keeps these digests beside its configuration. Where both sides know one, they must
be the same; where a file is not there (the small files came to another machine), nothing is said.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping

from eval.compare.forget import Text
from train import config as configs
from train import sources
from train.config import Config

WEIGHTS = ('*.safetensors', '*.msgpack')  # by name and size: reading them all would take minutes
SMALL = ('config.json', 'tokenizer.json')
SHOWN = 16  # hexadecimal digits of a digest
OF_TRAINING = ('base', 'training data')  # what a validation loss depends on


def of(config: Config, texts: Mapping[str, Text]) -> dict[str, str]:
    """What is there of the base, its data and the texts: name -> digest.

    Args:
      config: any entry's; the base and the data are the same for all.
      texts: name -> a text that is read beside them.
    """
    where = config.data.data_dir or None
    asked = config.evaluation.eval_tasks
    own = config.data.dataset
    named = {'auto': [] if sources.is_own(own) else [own], 'all': ['common_170k'], 'none': []}
    tasks = named.get(asked, configs.listed(asked))
    files = {
        'training data': sources.paths(own, 'train', where),
        'questions': [p for task in tasks for p in sources.paths(task, 'test', where)],
        **{name: [pathlib.Path(text.file)] for name, text in texts.items() if text.file},
    }
    found = {'base': _base(pathlib.Path(config.model.model_name))}
    for name, paths in files.items():
        found[name] = _digest(_read(path) for path in paths if path.is_file())
    return {name: digest for name, digest in found.items() if digest}


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """The names of what both know and which is not the same.

    Example:
      >>> differences({'base': 'a', 'questions': 'b'}, {'base': 'c'})
      ['base']
    """
    return [name for name in here if there.get(name, here[name]) != here[name]]


def _base(folder: pathlib.Path) -> str:
    weights = sorted(p for pattern in WEIGHTS for p in folder.glob(pattern))
    small = [_read(folder / name) for name in SMALL if (folder / name).is_file()]
    return _digest([*small, *(f'{p.name} {p.stat().st_size}'.encode() for p in weights)])


def _read(path: pathlib.Path) -> bytes:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').digest()


def _digest(parts: Iterable[bytes]) -> str:
    """One digest of all; '' of nothing."""
    whole = b''.join(parts)
    return hashlib.sha256(whole).hexdigest()[:SHOWN] if whole else ''
