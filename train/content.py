"""What figures were made of, by content: a path or a name may hold other things by now.

A run's folder and a comparison's files keep these digests beside their configuration. Where both
sides know one, they must be the same; where a file is not there (the small files came to another
machine, the hub has it), nothing is said.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jaxpeft as jp
from jaxpeft import adapters
from train import config as configs
from train import sources
from train.config import Config

WEIGHTS = ('*.safetensors', '*.msgpack')  # by name and size: reading them all would take minutes
SMALL = ('config.json', 'tokenizer.json')
SHOWN = 16  # hexadecimal digits of a digest


def of(config: Config, texts: Mapping[str, pathlib.Path] | None = None) -> dict[str, str]:
    """What is there of the base, its data and the texts: name -> digest.

    It reads the user's own data files once, a second for each GB, and no weights.

    Args:
      config: the run's, or any entry's of a comparison: the base and the data are the same for all.
      texts: name -> the file of a text that is read beside them.
    """
    where = config.data.data_dir or None
    asked = config.evaluation.eval_tasks
    own = config.data.dataset
    named = {'auto': [] if sources.is_own(own) else [own], 'all': ['common_170k'], 'none': []}
    tasks = named.get(asked, configs.listed(asked))
    files = {
        'training data': sources.paths(own, 'train', where),
        'questions': [p for task in tasks for p in sources.paths(task, 'test', where)],
        **{name: [path] for name, path in (texts or {}).items()},
    }
    found = {'base': _base(pathlib.Path(config.model.model_name))}
    for name, paths in files.items():
        found[name] = _digest(_read(path) for path in paths if path.is_file())
    return {name: digest for name, digest in found.items() if digest}


def kernels(plan: Any, params: Any) -> str:
    """One digest of the kernels that a plan adapts, or of all where it adapts modules alone.

    It costs what the checksums of a saved adapter cost: each kernel comes to the host once, rounded
    to bfloat16, a second or two for each GB.
    """
    leaves = dict(jp.paths.flatten(params))
    adapted = [site.path for site in jp.tree.sites(plan, params) if site.view is not None]
    return _digest(adapters.checksum(leaves[path]).encode() for path in adapted or leaves)


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
