"""The program of a worker process: `python -m eval.bench.worker SIDE`, driven over its pipes.

A request is a line of JSON on stdin, the reply a line of JSON on what was stdout; the real stdout
goes to stderr, so that a library's print cannot end up among the replies.

    {"prepare": KEY, "spec": {...}, "context": {...}}  ->  {"ready": KEY}
    {"run": KEY}                                       ->  {"seconds": 1.5, "facts": {...}}
    anything that raises                               ->  {"error": "..."}
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

from eval.bench.context import Context

Call = Callable[[], dict[str, Any]]


def serve(side: Any, requests: IO[str], replies: IO[str]) -> None:
    """Answers requests until they end.

    Args:
      side: has `prepare(context, spec) -> call`; `call()` does one repetition, waits for its
        results and returns facts about them.
      requests: lines of JSON.
      replies: receives lines of JSON.
    """
    calls: dict[str, Call] = {}
    for line in requests:
        try:
            reply = _answer(side, calls, json.loads(line))
        except Exception as error:  # the driver decides what becomes of the row
            traceback.print_exc()
            reply = {'error': f'{type(error).__name__}: {error}'}
        replies.write(json.dumps(reply) + '\n')
        replies.flush()


def _answer(side: Any, calls: dict[str, Call], request: dict[str, Any]) -> dict[str, Any]:
    if 'prepare' in request:
        calls[request['prepare']] = side.prepare(Context(**request['context']), request['spec'])
        return {'ready': request['prepare']}
    start = time.perf_counter()
    facts = calls[request['run']]()
    return {'seconds': time.perf_counter() - start, 'facts': facts}


def main(argv: list[str]) -> None:
    """Serves the side that `argv` names."""
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    serve(importlib.import_module(argv[0]), sys.stdin, replies)


if __name__ == '__main__':
    main(sys.argv[1:])
