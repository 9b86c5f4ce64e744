"""Holds README's word on the main job against the run that it left: `main_job.py runs`."""

import json
import pathlib
import sys

SECONDS = 300  # on 2 cores, from the first file that the run writes to its report
POINTS = 0.10  # of the mean accuracy above the mean majority baseline, for every decoding

(results,) = pathlib.Path(sys.argv[1]).glob('*/results.json')
folder = results.parent
found = json.loads(results.read_text())
seconds = (folder / 'report.md').stat().st_mtime - (folder / 'config.json').stat().st_mtime
print(f'{seconds:.0f} s from config.json to report.md; training {found["train"]["seconds"]:.0f} s')
assert seconds <= SECONDS, f'the main job took {seconds:.0f} s, README says at most {SECONDS}'
for decoding, after in found['after'].items():
    before = found['before'][decoding]['mean']
    ahead = after['mean'] - after['majority_mean']
    print(
        f'{decoding}: mean accuracy {before:.3f} before, {after["mean"]:.3f} after, '
        f'{after["majority_mean"]:.3f} by the commonest label'
    )
    print(f'{decoding}: {100 * ahead:+.1f} points against it')
    assert ahead >= POINTS, f'{decoding}: README says at least {100 * POINTS:.0f} points above it'
