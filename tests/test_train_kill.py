"""Real processes killed at random moments and started again: the same bits as an unbroken run.

JAXPEFT_KILL_SEED chooses other moments, JAXPEFT_KILLS another number of them.
"""

import concurrent.futures
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests import train_tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get('JAXPEFT_KILLS', '10'))
STEPS = 240
MOMENTS = ('starts', 'trains', 'ends')
# torch is hidden from transformers and tensorboardX, which would import it at every start; tyro
# wants to see it or not before that.
PROGRAM = """import sys
from train import cli, run
cli.parse(['--method', 'lora'])
sys.modules['torch'] = None
sys.exit(run.main(sys.argv[1:]))"""


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


def start(tiny, folder):
    """The process of one and the same command."""
    flags = train_tiny.flags(
        tiny,
        f'--run_dir={folder}',
        f'--max_steps={STEPS}',
        '--batch=4',
        '--eval_steps=7',
        '--save_steps=5',
        '--log_steps=2',
        '--dropout=0.1',
        '--rank_strategy=decreasing',
    )
    env = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '',
        'JAX_COMPILATION_CACHE_DIR': str(tiny / 'compiled'),
        'PYTHONPATH': str(ROOT),
    }
    with (tiny / 'output.txt').open('a') as output:
        return subprocess.Popen(
            [sys.executable, '-c', PROGRAM, *flags],
            cwd=tiny,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def finish(tiny, folder):
    """Runs the command to its end."""
    process = start(tiny, folder)
    assert process.wait(timeout=300) == 0, (tiny / 'output.txt').read_text()[-4000:]


def logged(folder):
    """Complete lines of metrics.jsonl without the times."""
    path = folder / 'metrics.jsonl'
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]
    lines = [json.loads(line) for line in whole]
    return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]


def last_step(folder):
    return (logged(folder) or [{'step': 0}])[-1]['step']


def result(folder):
    """Everything of a finished run that must not depend on how often it was cut."""
    train = json.loads((folder / 'results.json').read_text())['train']
    times = ('seconds', 'tokens_per_second')
    return (
        logged(folder),
        (folder / 'adapter' / 'adapter_model.safetensors').read_bytes(),
        json.loads((folder / 'adapter' / 'adapter.json').read_text()),
        {k: v for k, v in train.items() if k not in times},
    )


@pytest.fixture(scope='module')
def reference(tiny):
    """What an unbroken run gives; it compiles, the others find what it compiled."""
    finish(tiny, tiny / 'reference')
    expected = result(tiny / 'reference')
    assert expected[0][-1]['step'] == STEPS
    return expected


def wait_for(process, moment, folder, draw):
    """Waits for a random moment of the process: while it starts, trains, or ends."""
    begun, line = time.time(), folder / 'metrics.jsonl'
    if moment == 'starts':
        time.sleep(draw.uniform(0, 8))
        return
    while process.poll() is None and not (line.exists() and line.stat().st_mtime > begun):
        time.sleep(0.01)  # until it has cut the lines that an earlier process wrote too far
    further = last_step(folder) + draw.randrange(1, STEPS // 3)
    goal = min(further, STEPS) if moment == 'trains' else STEPS
    while process.poll() is None and last_step(folder) < goal:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.3 if moment == 'trains' else 1.5))


def chain(tiny, expected, seed):
    """Kills half of KILLS processes, one after the other; a run that ends makes way for a new."""
    draw, kills, told = random.Random(seed), 0, []
    for number in itertools.count():
        folder = tiny / f'seed{seed}-{number}'
        while not (folder / 'results.json').exists():
            moment = draw.choices(MOMENTS, (2, 6, 1))[0] if kills < -(-KILLS // 2) else None
            process = start(tiny, folder)
            if moment:
                wait_for(process, moment, folder, draw)
            if moment and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
                told.append((moment, last_step(folder)))
            code = process.wait(timeout=300)
            assert code in (0, -signal.SIGKILL), (tiny / 'output.txt').read_text()[-4000:]
        assert result(folder) == expected, f'{seed=} {told=}'
        if kills >= -(-KILLS // 2):
            return told


def test_killed_at_random_moments_it_ends_with_the_same_bits(tiny, reference):
    seed = int(os.environ.get('JAXPEFT_KILL_SEED', '0'))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda n: chain(tiny, reference, 2 * seed + n), range(2))
        told = [*itertools.chain(*both)]
    print(f'{seed=} killed while it .. at step ..: {told}')
    assert len(told) >= KILLS
    assert any(0 < step < STEPS for _, step in told), told


def test_sigterm_saves_exits_0_and_the_same_command_goes_on(tiny, reference):
    folder = tiny / 'terminated'
    process = start(tiny, folder)
    while last_step(folder) < 8 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    assert not (folder / 'results.json').exists()
    last = last_step(folder)
    newest = max(int(p.name) for p in (folder / 'checkpoints').iterdir())
    assert last <= newest < STEPS
    assert newest - last < 2  # --log_steps=2: nothing that was done is lost
    finish(tiny, folder)
    assert result(folder) == reference
