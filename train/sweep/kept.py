"""Checkpoints of a sweep: the members' arrays, who was dropped, and every figure so far."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

import jaxpeft as jp
from train import config as configs_lib
from train.checkpoint import Checkpoints
from train.config import Config
from train.ledger import Ledger
from train.step import TrainState
from train.sweep.state import Sweep

KEEP = 2  # checkpoints


class Kept:
    """The checkpoints in folder/checkpoints, or none without a folder. Use it as a context manager.

    Args:
      folder: the sweep's.
      configs: each member's: a checkpoint of others is refused.
    """

    def __init__(self, folder: pathlib.Path | None, configs: Sequence[Config]):
        self._own = Checkpoints(folder / 'checkpoints', KEEP) if folder else None
        self._stack = contextlib.ExitStack()
        self._folder = folder
        said = json.dumps([configs_lib.identity(config) for config in configs], sort_keys=True)
        self._digest = hashlib.sha256(said.encode()).hexdigest()[:16]

    def __enter__(self) -> 'Kept':
        if self._own:
            self._stack.enter_context(self._own)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def found(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return self._own is not None and self._own.latest() is not None

    def save(self, sweep: Sweep) -> None:
        """Starts to write where the sweep stands."""
        if self._own is None:
            return
        logs = [{**vars(log), 'ledger': log.ledger._asdict()} for log in sweep.logs]
        notes = {
            'digest': self._digest,
            'made': sweep.made,
            'slots': sweep.slots,
            'judged': sweep.best is not None,
            'final': sorted(sweep.final),
            'logs': logs,
        }
        tree = {'now': sweep.now._asdict(), 'consts': sweep.consts}
        if sweep.best is not None:
            tree['best'] = sweep.best
        tree['final'] = {str(i): state._asdict() for i, state in sweep.final.items()}
        self._own.save_tree(sweep.made, tree, notes)

    def restore(self, sweep: Sweep) -> int:
        """Puts a fresh sweep where the newest checkpoint stands; the updates made.

        Raises:
          ValueError: for a folder of a sweep of other members.
        """
        assert self._own is not None
        notes = self._own.notes()
        if notes['digest'] != self._digest:
            raise ValueError(
                f'{self._folder} holds a sweep of other members or settings; give another folder'
            )
        sweep.stand(notes['slots'])
        now, consts = sweep.shapes()
        one = jax.tree.map(_one, jp.State(now.params, consts))._asdict()
        target: dict[str, Any] = {'now': now._asdict(), 'consts': consts}
        if notes['judged']:
            target['best'] = now.params
        target['final'] = {str(i): one for i in notes['final']}
        found = self._own.restore_tree(target)
        sweep.now, sweep.consts = TrainState(**found['now']), found['consts']
        sweep.best = found.get('best')
        sweep.final = {int(i): jp.State(**state) for i, state in found['final'].items()}
        for log, said in zip(sweep.logs, notes['logs'], strict=True):
            log.ledger, log.losses, log.why = Ledger(**said['ledger']), said['losses'], said['why']
            log.validation = {int(step): loss for step, loss in said['validation'].items()}
        sweep.made = notes['made']
        sweep.feed()
        return sweep.made


def _one(leaf: Any) -> jax.ShapeDtypeStruct:
    """A member's leaf of a leaf of all."""
    spec = jax.sharding.PartitionSpec(*leaf.sharding.spec[1:])
    where = jax.sharding.NamedSharding(leaf.sharding.mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=where)
