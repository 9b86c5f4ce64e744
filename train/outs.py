"""Result files of `--out`: never overwritten by the result of another configuration."""

import json
import pathlib
from typing import Any


def check_free(path: pathlib.Path, config: dict[str, Any]) -> None:
    """Refuses to overwrite what is not a result of the same configuration.

    Args:
      path: where a JSON object with the key 'config' is to be written.
      config: that object's 'config', as JSON would hold it.

    Raises:
      ValueError: naming the file and what differs.
    """
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text())['config']
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f'{path} exists and is no result of this program; give another name'
        ) from None
    keys = [k for k in sorted({*config, *there}) if config.get(k) != there.get(k)]
    if keys:
        what = '; '.join(f'{k} is {there.get(k)!r} there, {config.get(k)!r} here' for k in keys)
        raise ValueError(
            f'{path} holds a finished result of another configuration: {what}. '
            'Give another --name (or --out), or remove the file'
        )
