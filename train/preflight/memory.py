"""Bytes a chip: what the compiler says, and whose they are."""

import math
import re
from typing import Any, NamedTuple

import jax

from train.preflight.program import Job, Shape, batch_of
from train.preflight.target import GIB, Target

# 'the total memory required for HLO temporaries (71.50G) exceeds available HBM (15.75G)', which
# counts arguments and results too, and 'Used 26.09G of 15.75G hbm'; above 1024G in T.
EXCEEDED = (
    re.compile(r'required for HLO temporaries \((?P<used>[\d.]+[GT])\).*\((?P<limit>[\d.]+G)\)'),
    re.compile(r'Used (?P<used>[\d.]+[GT]) of (?P<limit>[\d.]+G)'),
)
UNITS = {'G': GIB, 'T': 1024 * GIB}


class Memory(NamedTuple):
    """Bytes on each chip while an update runs.

    Attributes:
      base, adapter, moments, consts, batch: the arguments by owner, counted from their shardings.
      temporaries: everything that is born and dies within the update: activations kept for the
        backward pass, gathered kernels, gradients, logits.
      outputs: results that are not written over a donated argument.
      code: the program itself.
      padding: what the device's tiling adds to the arguments.
      limit: bytes that the compiler may use, where it said so.
      fits: None where no limit is known.
    """

    base: int
    adapter: int
    moments: int
    consts: int
    batch: int
    temporaries: int
    outputs: int
    code: int
    padding: int
    limit: float | None
    fits: bool | None

    @property
    def total(self) -> int:
        """All of them together."""
        parts = self._asdict()
        return sum(n for name, n in parts.items() if name not in ('limit', 'fits'))


def per_chip(tree: Any) -> int:
    """Bytes of a tree's shards on one device, before any padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def owners(job: Job, shape: Shape) -> dict[str, int]:
    """The update's arguments by owner, bytes a chip."""
    adapter = per_chip(job.train.params)
    return {
        'base': per_chip(job.base),
        'adapter': adapter,
        'moments': per_chip(job.train) - adapter,
        'consts': per_chip(job.consts),
        'batch': per_chip(batch_of(job, shape)),
    }


def of_compiled(job: Job, shape: Shape, compiled: Any, target: Target) -> Memory:
    """Memory of a program that was compiled, hence on a TPU fits."""
    stats = compiled.memory_analysis()
    parts = owners(job, shape)
    found = Memory(
        **parts,
        temporaries=stats.temp_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        padding=stats.argument_size_in_bytes - sum(parts.values()),
        limit=target.hbm,
        fits=None,
    )
    return found._replace(fits=None if target.hbm is None else found.total <= target.hbm)


def of_refusal(job: Job, shape: Shape, error: Exception) -> Memory | None:
    """Memory of a program that the compiler refused to fit; None for any other error.

    The compiler's message has what the program needs and what it could have had, in GiB; what no
    argument accounts for is temporaries.
    """
    found = next(filter(None, (pattern.search(str(error)) for pattern in EXCEEDED)), None)
    if found is None:
        return None
    used, limit = _bytes(found['used']), _bytes(found['limit'])
    parts = owners(job, shape)
    rest = used - sum(parts.values())
    return Memory(**parts, temporaries=rest, outputs=0, code=0, padding=0, limit=limit, fits=False)


def _bytes(said: str) -> int:
    """'26.09G' as a number."""
    return int(float(said[:-1]) * UNITS[said[-1]])
