"""Checkpoints of a run: adapter, optimizer, step, rng and counts. The base is never written.

Orbax writes in the background into a folder of another name and renames it at the end, so a process
killed at any moment leaves whole checkpoints only.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from train.ledger import Ledger
from train.step import TrainState


class Checkpoints:
    """The last `keep` checkpoints in a folder. Use it as a context manager: leaving it waits.

    Args:
      folder: made where it is not there.
      keep: how many stay.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._newest = self._manager.latest_step()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint, None where there is none."""
        return self._newest

    def save(self, train: TrainState, consts: Any, ledger: Ledger) -> None:
        """Starts to write a checkpoint and returns; a second one of a step changes nothing."""
        tree = {'train': train._asdict(), 'consts': consts}
        self.save_tree(ledger.step, tree, ledger._asdict())

    def save_tree(self, step: int, tree: Any, notes: Any) -> None:
        """The same of any tree of arrays, with notes that JSON can hold."""
        if step == self._newest:
            return
        # Copies: the next update may write into these buffers while orbax still reads them.
        saved = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(jnp.copy, tree)),
            ledger=ocp.args.JsonSave(notes),
        )
        self._manager.save(step, args=saved)
        self._newest = step

    def restore(self, train: TrainState, consts: Any) -> tuple[TrainState, Any, Ledger]:
        """Reads the newest checkpoint straight to the devices, on this mesh or another.

        Args:
          train, consts: arrays or shapes, with shardings.
        """
        state = self.restore_tree({'train': train._asdict(), 'consts': consts})
        return TrainState(**state['train']), state['consts'], Ledger(**self.notes())

    def restore_tree(self, target: Any) -> Any:
        """The newest checkpoint's arrays: `target` with arrays or shapes, with shardings."""
        wanted = ocp.args.StandardRestore(jax.tree.map(_shape, target))
        return self._manager.restore(self._newest, args=ocp.args.Composite(state=wanted))['state']

    def notes(self) -> Any:
        """The newest checkpoint's notes."""
        wanted = ocp.args.Composite(ledger=ocp.args.JsonRestore())
        return self._manager.restore(self._newest, args=wanted)['ledger']


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def exists(folder: pathlib.Path) -> bool:
    """Whether a folder holds a whole checkpoint; nothing is opened or changed."""
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())
