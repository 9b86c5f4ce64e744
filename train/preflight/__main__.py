"""`python -m train.preflight`: does this run fit on that hardware, and where does it all go?"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import tyro

from train import cli, errors, outs, rundir
from train import config as configs
from train import mesh as meshes
from train.config import Config
from train.preflight import largest, memory, program, report, target
from train.preflight.memory import Memory

DESCRIPTION = """Compile the update that `python -m train.run` would make, for hardware that need
not be here, and say what it takes: memory a chip and whose it is, whether that fits, arithmetic
against the least possible, and what the chips send each other. No weights, no network, no TPU.

  python -m train.preflight --model_name EleutherAI/gpt-neo-1.3B --dtype bfloat16 \\
      --method lora --topology v5e:2x4 --mesh 1,8,1 --batch 8

All flags of `python -m train.run` mean what they mean there; --dataset may be left out. --batch
counts examples over all chips, each taken as --max_length tokens long. --mesh is
data,fsdp,tensor: fsdp splits rows and kernels alike, tensor splits heads and inner units. A TPU
topology needs libtpu: pip install 'jax[tpu]'. If a run does not fit: --remat full, a smaller
--batch with more --grad_acc, or more chips along fsdp. Not covered: loading the base, the SVDs of
knowhira and kasa at the start, validation, evaluation."""

REFUSED = jax.errors.JaxRuntimeError


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of the preflight itself."""

    topology: str = ''
    """TPU generation and chips: v5e:2x4, v6e:4x4, v5p:2x2x1, v4:2x2x1. Empty: this machine."""
    hbm: float = 0.0
    """GiB of memory a chip, where it is not known or to be taken smaller."""
    labels: int = 0
    """Labelled tokens an example at most. 0: 16, more than a known data set's answers have; all of
    them for a file of your own, and with --train_on_inputs."""
    largest: bool = False
    """Also find the largest --batch that fits; costs about five compilations."""
    out: str = ''
    """Write everything to this file, as JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: Sequence[str]) -> None:
    options, rest = tyro.cli(
        Options,
        args=list(argv),
        prog='python -m train.preflight',
        description=DESCRIPTION,
        use_underscores=True,
        return_unknown_args=True,
    )
    if _names(rest, 'model_name') and not _names(rest, 'dataset'):
        rest = [*rest, '--dataset=common_170k']  # what the rows say is not looked at
    config, notes = cli.parse(rest)
    for note in notes:
        print(note)
    settings = settings_of(config, options)
    if options.out:
        outs.check_free(pathlib.Path(options.out), settings)
    place = target.find(options.topology, options.hbm)
    job = program.prepare(config, place, options.labels)
    head = {'command': ' '.join(argv), 'config': settings}
    found = head | run(job, place, config.optim.batch)
    if options.largest:
        found['largest'] = search(job, place, config.optim.batch)
    print(report.table(found))
    if options.out:
        rundir.write_json(pathlib.Path(options.out), found)


def settings_of(config: Config, options: Options) -> dict[str, Any]:
    """What two commands of one and the same preflight have in common, as JSON holds it."""
    mine = {name: getattr(config.model, name) for name in ('mesh', 'attention')}
    asked = {k: v for k, v in dataclasses.asdict(options).items() if k != 'out'}
    return json.loads(json.dumps(configs.identity(config) | mine | asked))


def _names(argv: Sequence[str], flag: str) -> bool:
    return any(token.split('=')[0].replace('-', '_') == f'__{flag}' for token in argv)


def compile_batch(job: program.Job, place: target.Target, batch: int) -> tuple[Any, Any, Memory]:
    """(the traced update, the compiled one or None where it was refused, its memory)."""
    shape, traced = program.shape_of(job, batch), program.trace(job, batch)
    try:
        compiled = traced.lower().compile()
    except REFUSED as error:
        refused = memory.of_refusal(job, shape, error)
        if refused is None:
            raise
        return traced, None, refused
    return traced, compiled, memory.of_compiled(job, shape, compiled, place)


def run(job: program.Job, place: target.Target, batch: int) -> dict:
    """The report of one batch size."""
    traced, compiled, bytes_used = compile_batch(job, place, batch)
    text = '' if compiled is None else compiled.as_text()
    return report.build(job, place, program.shape_of(job, batch), traced, bytes_used, text)


def search(job: program.Job, place: target.Target, first: int) -> dict:
    """The largest batch that fits.

    Raises:
      ValueError: where nobody knows what a device can hold.
    """
    hbm = place.hbm
    if hbm is None:
        raise ValueError(f'--largest needs to know what a {place.kind} holds: give --hbm GIB')
    tried: dict[int, float] = {}

    def share(batch: int) -> float:
        used = compile_batch(job, place, batch)[2]
        tried[batch] = used.total / hbm if used.fits else max(used.total / hbm, 1.01)
        return tried[batch]

    multiple = meshes.row_multiple(job.mesh)
    return {
        'batch': largest.largest(share, multiple, first),
        'multiple': multiple,
        'tried': tried,
    }


if __name__ == '__main__':
    sys.exit(main())
