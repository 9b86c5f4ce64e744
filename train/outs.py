"""Result files of `--out`: never overwritten by the result of another configuration."""

import json
import pathlib
from collections.abc import Collection
from typing import Any


def check_free(path: pathlib.Path, config: dict[str, Any], free: Collection[str] = ()) -> None:
    """Refuses to overwrite what is not a result of the same configuration.

    Args:
      path: where a JSON object with the key 'config' is to be written.
      config: that object's 'config', as JSON would hold it.
      free: keys that the file's 'config' may hold besides, with any value.

    Raises:
      ValueError: naming the file and what differs; for a folder, or a path below a file.
    """
    if path.is_dir():
        raise ValueError(
            f'{path} is a folder; give the name of a file, such as {path / "out.json"}'
        )
    for above in path.parents:
        if above.is_file():
            raise ValueError(f'{path} lies below {above}, which is a file; give another name')
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())['config']
        there = {key: value for key, value in found.items() if key not in free}
    except (ValueError, KeyError, TypeError, AttributeError):
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
