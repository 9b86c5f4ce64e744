"""Words for names and for filler sentences; no digit among them, so that numbers are facts only."""

import re
from collections.abc import Sequence

import numpy as np

_SENTENCE_END = re.compile(r'(?<=[.!?])\s+')


def _phrases(text: str) -> list[str]:
    """What stands between bars or, without any, between spaces."""
    one = ' '.join(text.split())
    return [part.strip() for part in one.split('|' if '|' in one else ' ')]


KINDS = _phrases("""amber ancient black blue brass brave bright broken bronze brown calm clay clever
    cold copper crimson dark dusty early empty fair faint fierce gentle glass golden grand green
    grey heavy hidden hollow iron ivory keen late lemon light little lonely lucky marble mild narrow
    noble northern odd old orange pale patient plain proud purple quick quiet rapid red round rusty
    salty scarlet""")
THINGS = _phrases("""anchor apple arrow badge barrel basket bell boat book bottle bridge broom
    bucket button candle carpet castle chain chair clock coat compass cradle crown cup curtain desk
    door drum engine feather fence flag flute fork garden gate glove hammer harp hat helmet horn
    kettle key ladder lamp lantern letter mirror needle oar paddle pencil piano pillow plate ribbon
    ring rope saddle sail spoon""")
_WHO = _phrases("""The baker | The teacher | A farmer | The old sailor | My neighbour | The doctor |
    A young painter | The captain | The gardener | A traveller | The miller | The librarian |
    Her uncle | The carpenter | A musician | The shepherd""")
_DID = _phrases("""carried | forgot | cleaned | found | bought | lost | repaired | painted |
    borrowed | hid | watched | sold | counted | admired | described | looked for""")
_WHAT = _phrases("""a wooden box | the long table | two grey horses | a loaf of bread |
    the garden tools | an old map | the winter coats | a small boat | some dry leaves |
    the silver spoons | a heavy book | the morning paper | a pair of boots | the kitchen stove |
    three clay pots | a blue umbrella""")
_WHERE = _phrases("""near the river | before breakfast | in the village | after the rain |
    behind the church | on the way home | at the market | under the bridge | late in the evening |
    by the sea | with great care | during the storm | for the third time | in the cold barn |
    without a word | next to the well""")


def names(rng: np.random.Generator, count: int) -> list[str]:
    """Different names of two words, such as 'amber anchor', as many as there are at most.

    Many share a word, so that one word of the question does not find the line.
    """
    chosen = rng.permutation(len(KINDS) * len(THINGS))[:count]
    return [f'{KINDS[i // len(THINGS)]} {THINGS[i % len(THINGS)]}' for i in chosen]


def numbers(rng: np.random.Generator, count: int) -> list[str]:
    """Different numbers of five digits, as text."""
    return [str(n) for n in 10_000 + rng.choice(90_000, count, replace=False)]


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Plain sentences that say nothing about numbers."""
    parts = (_WHO, _DID, _WHAT, _WHERE)
    drawn = [rng.integers(0, len(part), count) for part in parts]
    return [
        ' '.join(part[i] for part, i in zip(parts, row, strict=True)) + '.'
        for row in zip(*drawn, strict=True)
    ]


def stretch(rng: np.random.Generator, haystack: Sequence[str], count: int) -> list[str]:
    """`count` sentences that follow each other in a text, or all, from a place that is drawn.

    A prompt takes as many from the front as fit, far fewer than `count`: the place may be any, and
    the text goes on from its end at its beginning.
    """
    first = int(rng.integers(0, len(haystack)))
    return [*haystack[first:], *haystack[:first]][:count]


def split(text: str) -> list[str]:
    """A text as sentences, each on one line.

    Example:
      >>> split('He came. He\\nsaw! ')
      ['He came.', 'He saw!']
    """
    return [s for s in _SENTENCE_END.split(' '.join(text.split())) if s]
