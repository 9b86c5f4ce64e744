"""How a request of lm-evaluation-harness wants its text written: sampling, stop strings, groups."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.sampling import GREEDY, Sampling
from jaxpeft.near import nearest

_NAMES = {  # lm_eval's and transformers' names -> ours
    'temperature': 'temperature',
    'top_k': 'top_k',
    'top_p': 'top_p',
    'repetition_penalty': 'repetition_penalty',
    'no_repeat_ngram_size': 'no_repeat_ngram',
}
_GREEDY_TOO = ('repetition_penalty', 'no_repeat_ngram')  # what acts without a draw


def sampling(options: Mapping[str, Any], samples: bool) -> Sampling:
    """What is left of `gen_kwargs` without `until`, `max_gen_toks` and `do_sample`.

    Args:
      options: by transformers' names; None is not set.
      samples: `do_sample`; without it the filters of the draw are left aside, as transformers does.

    Raises:
      ValueError: for an option that there is not, with the nearest, or samples without temperature.

    Example:
      >>> sampling({'temperature': 0.7, 'top_k': 5}, True).top_k
      5
    """
    unknown = sorted(options.keys() - _NAMES.keys())
    if unknown:
        known = ['until', 'max_gen_toks', 'do_sample', *_NAMES]
        raise ValueError(f'no generation option {unknown[0]!r}; {nearest(unknown[0], known)}')
    asked = {_NAMES[k]: v for k, v in options.items() if v is not None}
    if samples and not asked.get('temperature'):
        raise ValueError('do_sample needs a temperature above 0: 0 is greedy')
    if not samples:
        asked = {k: v for k, v in asked.items() if k in _GREEDY_TOO}
    return Sampling(**asked) if asked else GREEDY


def alike(options: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The numbers of the requests that share their options, a list a set.

    Example:
      >>> alike([{'until': ['a']}, {}, {'until': ['a']}])
      [[0, 2], [1]]
    """
    groups: list[tuple[Mapping[str, Any], list[int]]] = []
    for i, one in enumerate(options):
        for there, own in groups:
            if there == one:
                own.append(i)
                break
        else:
            groups.append((one, [i]))
    return [own for _, own in groups]


def first(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins; None where there is none.

    Example:
      >>> first('one. two', ['two', '.'])
      3
    """
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return min(found, default=None)
