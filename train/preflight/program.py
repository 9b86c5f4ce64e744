"""The update that `train.run` would make, with every argument as a shape and its sharding.

Nothing is loaded and nothing allocated: the configs of well-known models are in the package, the
adapter's shapes come from `jax.eval_shape` of its init, the optimizer's from its own.
"""

import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import jaxpeft as jp
from jaxpeft.models.hub import folder_of
from jaxpeft.models.load import load_tokenizer
from train import mesh as meshes
from train import model as models
from train import optimizer, packing, sources, step
from train.config import Config
from train.preflight.target import Target

ANSWER = 16  # labelled tokens of a known data set's example: 'the correct answer is ...' has fewer
STEPS = 1000  # the length of the run changes no shape, only numbers of the schedule

Tree = Any


class Job(NamedTuple):
    """A training run as shapes.

    Attributes:
      config: as `train.cli.parse` resolved it.
      mesh: over the target's devices.
      model: the Linen module.
      plan: path regex -> method.
      update: `train.step`'s jitted update.
      train, consts, base: its first three arguments.
      labels: labelled positions an example; 0 means all of them.
    """

    config: Config
    mesh: Mesh
    model: Any
    plan: models.Rules
    update: Any
    train: step.TrainState
    consts: Tree
    base: Tree
    labels: int


class Shape(NamedTuple):
    """G micro-batches of R rows of T tokens, N labelled positions in each."""

    micro: int
    rows: int
    width: int
    labels: int


def prepare(config: Config, target: Target, labels: int = 0) -> Job:
    """Everything of a run but its numbers.

    Args:
      config: the resolved configuration.
      target: the devices.
      labels: labelled tokens an example, as an upper bound; 0 for `ANSWER`, or all of them with
        `--train_on_inputs` and for the user's own file, whose answers nobody has read.

    Raises:
      ValueError: an unknown model, a target that matches nothing, a mesh that does not fit, and
        whatever `train.run` refuses: nothing to train, a setting of the optimizer without effect.
    """
    mesh = meshes.make(config.model.mesh, target.devices)
    name, remat = config.model.model_name, config.model.remat
    model = jp.models.build(
        jp.models.config_of(name),
        config.model.scan,
        None if remat == 'none' else remat,
        jnp.dtype(config.model.dtype),
        config.model.attention,
    )
    shapes = jp.models.param_shapes(model)
    base = meshes.placed(shapes, jp.models.base_shardings(shapes, mesh))
    plan = models.make_plan(config, model, base)
    state = models.adapter(config, plan, base, fresh=False)
    optimizer.check(config.optim, state.params)
    forward = models.bound(plan, model, _tokenizer(name), training=True)
    rate = optimizer.schedule(config.optim, STEPS)
    tx = optimizer.make(config.optim, rate)
    programs = step.compile_programs(plan, forward, tx, rate, mesh, state.params, config.optim.seed)
    all_of_them = config.data.train_on_inputs or sources.is_own(config.data.dataset)
    labels = labels or (config.data.max_length if all_of_them else ANSWER)
    return Job(
        config, mesh, model, plan, programs.update, programs.shapes, state.consts, base, labels
    )


def shape_of(job: Job, batch: int) -> Shape:
    """A batch of examples that all have the full length: a row each.

    Packing puts several short examples in a row, and what prompts begin with stands once, so a real
    run has fewer tokens than this.
    """
    multiple = meshes.row_multiple(job.mesh)
    width = packing.round_up(job.config.data.max_length, 8)
    labels = packing.round_up(batch * min(job.labels, width), math.lcm(8, multiple))
    rows = packing.round_up(batch, multiple)
    return Shape(job.config.optim.grad_acc, rows, width, labels)


def batch_of(job: Job, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
    """An update's batch as `train.batching` makes it and `train.mesh.put` lays it out."""

    def array(dtype: Any, *rest: int) -> jax.ShapeDtypeStruct:
        full = (shape.micro, *rest)
        return jax.ShapeDtypeStruct(full, dtype, sharding=meshes.split(job.mesh, full, axis=1))

    grid, flat = (shape.rows, shape.width), (shape.labels,)
    tokens = {name: array(jnp.int32, *grid) for name in ('tokens', 'positions', 'segment_ids')}
    picked = {name: array(jnp.int32, *flat) for name in ('select', 'labels')}
    return tokens | picked | {'weights': array(jnp.float32, *flat)}


def trace(job: Job, batch: int) -> Any:
    """The update traced for a batch of this many examples: `.jaxpr`, `.lower()`."""
    return job.update.trace(job.train, job.consts, job.base, batch_of(job, shape_of(job, batch)))


def _tokenizer(name: str) -> Any:
    """Of a local folder; a well-known model's would need the network, and few methods ask."""
    here = name == 'embedded' or pathlib.Path(name).expanduser().is_dir()
    return load_tokenizer(folder_of(name)) if here else None
