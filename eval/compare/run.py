"""Starts the workers, one after another, and stops them when it is stopped."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from eval.compare import cost, worker
from eval.compare.jobs import Job

ROOT = pathlib.Path(__file__).resolve().parents[2]
TAIL = 12  # lines of a failed worker's log that are shown
WIDTH = 80  # characters of a running one's last line


class Tally:
    """Counts jobs for the lines that are shown.

    Args:
      total: of the whole comparison.
    """

    def __init__(self, total: int):
        self.total, self.done = total, 0


class Runner:
    """Does jobs in processes of their own.

    Args:
      work: the folder for logs and job lists.
      together: jobs of one entry train as one program.
      threads: of that program, see `train.sweep.train`; 0 is its own choice.
      say: told of each job.
    """

    def __init__(
        self,
        work: pathlib.Path,
        together: bool,
        threads: int = 0,
        say: Callable[[str], None] = print,
    ):
        self._work, self._say = work, say
        self.together, self._threads = together, threads
        self._stopped = False  # by a SIGTERM while a worker ran
        (work / 'logs').mkdir(parents=True, exist_ok=True)

    def ordered(self, plan: Sequence[Sequence[Job]]) -> list[list[Job]]:
        """An entry's runs together; or the first seed of all entries, then the second, ..."""
        if self.together:
            return [list(own) for own in plan]
        longest = max((len(own) for own in plan), default=0)
        return [[own[i]] for i in range(longest) for own in plan if i < len(own)]

    def do(self, jobs: Sequence[Job], tally: Tally) -> bool:
        """Does those of the jobs that are not done, in one process.

        Args:
          jobs: of one kind and entry.
          tally: counts them.

        Returns:
          Whether there was anything to do.

        Raises:
          ValueError: for a worker that failed, with the end of its log.
          SystemExit: after a SIGTERM.
        """
        left = [job for job in jobs if not job.done]
        tally.done += len(jobs)
        if not left:
            return False
        name = left[0].file.stem if len(left) == 1 else f'{left[0].kind}-{left[0].file.stem}'
        how = {'together': self.together, 'threads': self._threads}
        what = ', '.join(job.file.stem for job in left)
        self._say(f'[{tally.done}/{tally.total}] {left[0].kind}: {what}')
        self._perform(name, what, jobs if self.together else left, how)
        return True

    def measure(self, file: pathlib.Path, jobs: Sequence[Job], rounds: int) -> None:
        """What an update of each job costs, all in one process, unless the file holds just that.

        Args:
          file: of the costs.
          jobs: a run of each entry.
          rounds: see `cost.measure`.

        Raises:
          ValueError, SystemExit: as `do`.
        """
        if len(cost.read(file, jobs, rounds)) == len(jobs):
            return
        what = ', '.join(job.label for job in jobs)
        self._say(f'cost of an update, {rounds} turns: {what}')
        self._perform(file.stem, what, jobs, {'costs': str(file), 'rounds': rounds})

    def _perform(self, name: str, what: str, jobs: Sequence[Job], how: dict[str, Any]) -> None:
        """Starts a worker and waits for its end."""
        file, log = (self._work / 'logs' / f'{name}.{end}' for end in ('job.json', 'log'))
        file.write_text(json.dumps({**how, 'jobs': [worker.written(job) for job in jobs]}))
        began = time.perf_counter()
        code = self._wait(file, log)
        if self._stopped or code == worker.STOPPED:
            self._say('SIGTERM: stopped; the same command continues here')
            raise SystemExit(0)
        if code:
            end = '\n'.join(log.read_text(errors='replace').splitlines()[-TAIL:])
            raise ValueError(f'{what} failed (exit code {code}); the end of {log}:\n{end}')
        self._say(f'    {time.perf_counter() - began:,.0f} s')

    def _wait(self, file: pathlib.Path, log: pathlib.Path) -> int:
        """Runs a worker to its end; a SIGTERM of ours is handed on."""
        paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
        env = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, paths))}
        workers: list[subprocess.Popen] = []

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            self._stopped = True
            for one in workers:
                one.send_signal(number)

        previous = signal.signal(signal.SIGTERM, stop)  # first: one may come while a worker starts
        try:
            with log.open('a') as out:
                process = subprocess.Popen(
                    [sys.executable, '-m', 'eval.compare.worker', str(file)],
                    stdin=subprocess.PIPE,  # never written to: its end tells the worker of ours
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=env,
                )
            workers.append(process)
            if self._stopped:
                process.terminate()
            return _watched(process, log)
        finally:
            signal.signal(signal.SIGTERM, previous)
            for one in workers:
                if one.poll() is None:
                    one.kill()


def _watched(process: subprocess.Popen, log: pathlib.Path) -> int:
    """Waits for a worker; on a terminal the last line of its log is shown meanwhile."""
    console = Console()
    if not console.is_terminal:
        return process.wait()
    with console.status('') as status:
        while process.poll() is None:
            lines = log.read_text(errors='replace').splitlines()
            status.update(Text(lines[-1][-WIDTH:] if lines else ''))
            time.sleep(1.0)
    return process.returncode
