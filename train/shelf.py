"""A folder of data files with their checksums: what is whole stays, what is damaged is told.

`checksums.json` holds an entry a file; `SHA256SUMS` says the same to `sha256sum -c`. Files and
checksums are written whole or not at all, the file first: one without an entry is the work of a
process killed between the two, or somebody's own, and is never overwritten by other bytes.
"""

import gzip
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from train.rows import Row

CHECKSUMS, SUMS = 'checksums.json', 'SHA256SUMS'


class Entry(NamedTuple):
    """What is known of a file.

    Attributes:
      sha256: of the file as it lies there.
      text_sha256: of its text; zlib versions pack the same text into other bytes.
      bytes: of the file.
      rows: how many it holds.
      labels: answer -> how often, in sorted order.
      malformed: rows of the source that were left out.
      source: where the rows came from.
      missing: parts of the set that could not be had.
    """

    sha256: str
    text_sha256: str
    bytes: int
    rows: int
    labels: dict[str, int]
    malformed: int
    source: str
    missing: list[str]


def read(folder: pathlib.Path) -> dict[str, Entry]:
    """File name -> entry; empty where the folder has no checksums.

    Raises:
      ValueError: for a checksums file that is none.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        return {name: Entry(**entry) for name, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is damaged ({error}); remove it, and its files are fetched and compared again'
        ) from error


def fault(path: pathlib.Path, entry: Entry) -> str:
    """Why a file is not what its entry says; '' where it is."""
    if not path.exists():
        return 'is gone'
    size = path.stat().st_size
    if size != entry.bytes:
        return f'is damaged ({size:,} bytes, {entry.bytes:,} were written)'
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry.sha256:
        return f'is damaged (sha256 {found[:12]}..., {entry.sha256[:12]}... was written)'
    return ''


def put(
    path: pathlib.Path,
    rows: Sequence[Row],
    *,
    malformed: int = 0,
    source: str = '',
    missing: Sequence[str] = (),
) -> Entry:
    """Writes rows as gzipped JSON lines in the LLM-Adapters schema, and their checksums.

    A line is {"instruction", "input", "output", "answer", "task"}. The same rows give the same
    bytes, whenever they are written.

    Raises:
      ValueError: for a file without checksums that holds something else.

    Example:
      >>> import tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> entry = put(folder / 'x.train.jsonl.gz', [Row('Is ice cold?', '', 'true', 'true', 'x')])
      >>> entry.rows, entry.labels, fault(folder / 'x.train.jsonl.gz', read(folder)[
      ...     'x.train.jsonl.gz'])
      (1, {'true': 1}, '')
    """
    text = ''.join(json.dumps(row._asdict(), ensure_ascii=False) + '\n' for row in rows).encode()
    packed = gzip.compress(text, compresslevel=9, mtime=0)
    known = read(path.parent)
    if path.exists() and path.name not in known and path.read_bytes() != packed:
        raise ValueError(
            f'{path} is not in {CHECKSUMS} and holds something else than what came; '
            'move it away, or give another --out_dir'
        )
    write(path, packed)
    entry = Entry(
        hashlib.sha256(packed).hexdigest(),
        hashlib.sha256(text).hexdigest(),
        len(packed),
        len(rows),
        dict(sorted(Counter(row.answer for row in rows).items())),
        malformed,
        source,
        list(missing),
    )
    known[path.name] = entry
    plain = {name: one._asdict() for name, one in sorted(known.items())}
    write(path.parent / CHECKSUMS, (json.dumps(plain, indent=2) + '\n').encode())
    sums = ''.join(f'{one["sha256"]}  {name}\n' for name, one in plain.items())
    write(path.parent / SUMS, sums.encode())
    return entry


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes a whole file or none, and waits until the disk has it."""
    new = path.with_name(f'.{path.name}.tmp')
    with open(new, 'wb') as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(new, path)
