"""A side of the benchmark that computes nothing: for the tests of the worker protocol."""

import itertools
import os


def prepare(context, spec):
    """`spec`: value (of the n-th call: value + n), loss; or fail, exit, say."""
    if spec.get('fail') == 'prepare':
        raise ValueError('no such thing')
    numbers = itertools.count()

    def call():
        number = next(numbers)
        if spec.get('fail') == number:
            raise RuntimeError(f'call {number} failed')
        if spec.get('exit') == number:
            os._exit(7)
        print('a library that prints')
        facts = {'loss': spec.get('loss', 1.0), 'pid': os.getpid(), 'call': number}
        return facts | ({'value': spec['value'] + number} if 'value' in spec else {})

    return call
