"""A preflight as one dict for JSON, and as a table of at most 100 columns."""

import importlib.metadata
from typing import Any

from train import model as models
from train.preflight import floor as floors
from train.preflight import flops, hlo, kept, traffic
from train.preflight.memory import Memory
from train.preflight.program import Job, Shape
from train.preflight.target import GIB, Target

OWNERS = {
    'base': 'base, frozen',
    'adapter': 'adapter',
    'moments': "optimizer's moments",
    'consts': "adapter's constants",
    'batch': 'batch',
    'temporaries': 'temporaries',
    'outputs': 'results not donated',
    'code': 'program',
    'padding': 'tiling of the arguments',
}
TAKEN = 'each example taken as of full length with {} labels; packing needs fewer rows'


def build(job: Job, target: Target, shape: Shape, traced: Any, memory: Memory, text: str) -> dict:
    """Everything known of one compiled update.

    Args:
      job, target, shape: what was compiled, for what.
      traced: the traced update.
      memory: its bytes a chip.
      text: the compiled program; '' where it did not fit.
    """
    config = job.config
    arithmetic = floors.floor(job, shape)
    asked, inside = flops.count(traced.jaxpr), flops.count(traced.jaxpr, kernels_only=True)
    found = {
        'model': config.model.model_name,
        'method': config.adapter.method,
        'options': config.options,
        'trained': models.count(job.plan, job.base, config.optim.seed),
        'dtype': config.model.dtype,
        'adapter_dtype': config.adapter.adapter_dtype,
        'remat': config.model.remat,
        'scan': config.model.scan,
        'target': {
            'name': target.name,
            'kind': target.kind,
            'hbm': target.hbm,
            'source': target.source,
            'versions': _versions(target),
        },
        'mesh': dict(job.mesh.shape),
        'shape': {**shape._asdict(), 'note': TAKEN.format(min(job.labels, shape.width))},
        'fits': memory.fits,
        'memory': {**memory._asdict(), 'total': memory.total},
        'flops': {
            'floor': {**arithmetic._asdict(), 'total': arithmetic.total},
            'asked': asked,
            'kernels': inside,
            'ratio': asked / arithmetic.total if arithmetic.total else None,
        },
    }
    return found | (_compiled(job, text, asked, inside) if text else {})


def _versions(target: Target) -> dict[str, str]:
    names = ('jax', 'jaxlib', 'libtpu') if target.platform == 'tpu' else ('jax', 'jaxlib')
    return {name: importlib.metadata.version(name) for name in names}


def _compiled(job: Job, text: str, asked: int, inside: int) -> dict[str, Any]:
    """What only the compiled program tells, and of its kernels the jaxpr: an even share a chip."""
    module = hlo.parse(text)
    visits, unknown = hlo.walk(module)
    runs = traffic.kernel_runs(visits)
    done = traffic.matmul_flops(visits) + (inside // job.mesh.size if runs else 0)
    return {
        'kernel_runs': runs,
        'chip_flops': done,
        'chip_share': done * job.mesh.size / asked,
        'collectives': traffic.by_kind(traffic.collectives(visits, job.mesh.size)),
        'loops_without_a_count': unknown,
        'kept': [
            {'array': f'{k.array[0]}{list(k.array[1])}', 'count': k.number, 'bytes': k.bytes}
            for k in kept.stacked(module, visits)
        ],
    }


def table(found: dict) -> str:
    """The same for a reader."""
    lines = [*_head(found), '', verdict(found), '', *_memory(found)]
    lines += ['', *_flops(found)]
    if 'collectives' in found:
        lines += ['', *_collectives(found)]
    if 'largest' in found:
        lines += ['', _largest(found['largest'])]
    return '\n'.join(lines)


def verdict(found: dict) -> str:
    """'fits: 3.20 of 15.75 GiB a chip', 'does not fit: ...', or that no limit is known."""
    memory = found['memory']
    if found['fits'] is None:
        return f'{_gib(memory["total"])} GiB a chip; {found["target"]["source"]}'
    word = 'fits' if found['fits'] else 'does not fit'
    share = 100 * memory['total'] / memory['limit']
    source = found['target']['source']
    return (
        f'{word}: {_gib(memory["total"])} of {_gib(memory["limit"])} GiB a chip '
        f'({share:.0f} %; {source})'
    )


def _head(found: dict) -> list[str]:
    mesh, shape, target = found['mesh'], found['shape'], found['target']
    sizes = ', '.join(f'{axis} {n}' for axis, n in mesh.items())
    count = 1
    for n in mesh.values():
        count *= n
    return [
        f'{found["model"]}, {found["dtype"]} base, remat {found["remat"]}',
        f'{found["method"]}: {found["trained"]:,} trained numbers, {found["adapter_dtype"]}',
        f'{count} x {target["kind"]} ({target["name"]}), mesh {sizes}',
        f'an update: {shape["micro"]} x {shape["rows"]} rows x {shape["width"]} tokens, '
        f'{shape["labels"]:,} labelled in each',
        f'({shape["note"]})',
    ]


def _memory(found: dict) -> list[str]:
    memory = found['memory']
    lines = ['memory a chip                 GiB']
    for name, label in OWNERS.items():
        if round(memory[name] / GIB, 2) != 0:
            lines.append(f'  {label:<24}{_gib(memory[name]):>7}')
    lines.append(f'  {"all":<24}{_gib(memory["total"]):>7}')
    if found.get('kept'):
        lines.append('  of the temporaries, stacked by the loop over layers:')
        for k in found['kept']:
            lines.append(f'    {_gib(k["bytes"])} GiB  {k["count"]} x {k["array"]}')
    if 'collectives' not in found:
        lines.append("  temporaries as the compiler's refusal has them; the rest is not compiled")
    return lines


def _flops(found: dict) -> list[str]:
    flops = found['flops']
    names = ('forward', 'backward', 'attention', 'head', 'adapter', 'total')
    lines = ['arithmetic of an update     TFLOP   (formulas: train/preflight/floor.py)']
    for name in names:
        value = flops['floor'][name]
        text = 'no formula for this method' if value is None else f'{value / 1e12:.3f}'
        lines.append(f'  floor: {name:<17}{text:>9}')
    ratio = '' if flops['ratio'] is None else f'   {flops["ratio"]:.3f} of the floor'
    lines.append(f'  {"asked for (jaxpr)":<24}{flops["asked"] / 1e12:>9.3f}{ratio}')
    if flops['kernels']:
        runs = f'   {found["kernel_runs"]} runs a chip at most' if 'kernel_runs' in found else ''
        lines.append(f'  {"of it in kernels":<24}{flops["kernels"] / 1e12:>9.3f}{runs}')
    if 'chip_flops' in found:
        lines.append(
            f'  {"one chip, compiled":<24}{found["chip_flops"] / 1e12:>9.3f}   '
            f'{found["chip_share"]:.3f} of an even share'
        )
    return lines


def _collectives(found: dict) -> list[str]:
    lines = ['collectives of a chip, an update   runs  payload GiB     sent GiB (ring)']
    for kind, row in found['collectives'].items():
        lines.append(
            f'  {kind:<28}{row["runs"]:>9,}{row["payload"] / GIB:>13.3f}{row["sent"] / GIB:>13.3f}'
        )
    if not found['collectives']:
        lines.append('  none')
    if found['loops_without_a_count']:
        names = ', '.join(found['loops_without_a_count'][:3])
        lines.append(f'  counted once, for no trip count was found: {names}')
    return lines


def _largest(found: dict) -> str:
    if found['batch'] == 0:
        return f'largest batch: none, {found["multiple"]} do not fit either'
    return (
        f'largest batch: {found["batch"]} examples ({len(found["tried"])} compilations, '
        f'in steps of {found["multiple"]})'
    )


def _gib(number: float) -> str:
    return f'{number / GIB:.2f}'
