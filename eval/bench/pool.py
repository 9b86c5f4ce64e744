"""The driver's end of the workers: one process a side, asked one at a time."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

from eval.bench.context import Context
from eval.bench.rows import Subject
from train import pages

SPAWNED = 'BENCH_SPAWNED'  # CLOCK_MONOTONIC when a worker was started: the clock is the machine's
ROOT = pathlib.Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """A worker could not do what it was asked."""


class Worker:
    """One process of one side.

    Ours has the memory pages that our programs ask for, another's those that a process gets
    unasked: torch frees and takes arrays all the time, and was a fifth slower with huge ones.

    Raises (every call):
      WorkerError: with the worker's own message, or that it has ended.
    """

    def __init__(self, side: str, context: Context, log: pathlib.Path, foreign: bool = False):
        self.context = context
        variables = pages.wanted(os.environ, '0') if foreign else os.environ
        module = side if '.' in side else f'eval.bench.sides.{side}'
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')]))
        with log.open('a') as errors:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'eval.bench.worker', module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=dict(variables)
                | {SPAWNED: repr(time.monotonic()), 'HF_HUB_OFFLINE': '1', 'PYTHONPATH': path},
            )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the empty reply below says with which code
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f'the worker ended with code {self.process.wait()}')
        reply = json.loads(line)
        if 'error' in reply:
            raise WorkerError(reply['error'])
        return reply

    def prepare(self, subject: Subject) -> None:
        """Loads and builds what the subject needs."""
        context = dataclasses.asdict(self.context)
        self._ask({'prepare': subject.key, 'spec': subject.spec, 'context': context})

    def run(self, subject: Subject) -> tuple[float, dict[str, Any]]:
        """One repetition: its seconds and facts."""
        reply = self._ask({'run': subject.key})
        return reply['seconds'], reply['facts']

    def close(self) -> None:
        """Ends the process: it stops when its requests do."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended with a request unread
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Pool:
    """The warm workers of a group, one a side; a context manager."""

    def __init__(self, context: Context):
        self.context = context
        self.log = pathlib.Path(context.work) / 'workers.log'
        self.workers: dict[str, Worker] = {}

    def __enter__(self) -> 'Pool':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            worker.close()

    def prepare(self, subject: Subject) -> None:
        """Makes a subject ready; one of fresh processes needs nothing."""
        if subject.fresh:
            return
        if subject.side not in self.workers:
            self.workers[subject.side] = self._worker(subject)
        self.workers[subject.side].prepare(subject)

    def run(self, subject: Subject) -> tuple[float, dict[str, Any]]:
        """One repetition of a subject, in its warm worker or a new one."""
        if not subject.fresh:
            return self.workers[subject.side].run(subject)
        worker = self._worker(subject)
        try:
            worker.prepare(subject)
            return worker.run(subject)
        finally:
            worker.close()

    def _worker(self, subject: Subject) -> Worker:
        return Worker(subject.side, self.context, self.log, subject.foreign)
