"""Facts as (thing, relation, value), read from the tables, and the split of the things.

A fact's id is `name/relation`. The split is by thing, not by fact: a question of the train set and
one of the test set have no thing in common, neither asked about nor offered as a choice. What
the base knows of a test thing it knows from its own pretraining text and from nowhere else.
"""

import functools
import random
from collections.abc import Sequence
from typing import NamedTuple

from train.embedded.tables import KINDS

RELATIONS = ('kind', 'colour', 'place', 'act')
ANIMALS = ('bird', 'fish', 'insect', 'mammal')
MANNERS = ('good', 'creature')
SPLITS = ('train', 'validation', 'test')
TEST_SHARE, VALIDATION_SHARE = 0.375, 0.25


class Thing(NamedTuple):
    """One line of the tables; `mass` drops the article."""

    name: str
    kind: str
    colour: str
    place: str
    act: str
    mass: bool


@functools.cache
def things() -> tuple[Thing, ...]:
    """Returns every thing in the order of the tables."""
    found = []
    for kind, table in KINDS.items():
        for line in table.strip().splitlines():
            name, colour, place, act = (cell.strip() for cell in line.split('|'))
            mass = name.endswith('~')
            found.append(Thing(name.rstrip('~'), kind, colour, place, act, mass))
    return tuple(found)


@functools.cache
def split(seed: int = 0) -> dict[str, tuple[Thing, ...]]:
    """Deals the things of every kind to train, validation and test (3, 2 and 3 of each 8)."""
    rng = random.Random(seed)
    dealt: dict[str, list[Thing]] = {name: [] for name in SPLITS}
    for kind in KINDS:
        group = [thing for thing in things() if thing.kind == kind]
        rng.shuffle(group)
        test = round(TEST_SHARE * len(group))
        validation = max(1, round(VALIDATION_SHARE * len(group)))
        dealt['test'] += group[:test]
        dealt['validation'] += group[test : test + validation]
        dealt['train'] += group[test + validation :]
    return {name: tuple(group) for name, group in dealt.items()}


def value(thing: Thing, relation: str) -> str:
    """Returns the value of a relation."""
    return getattr(thing, relation)


def differing(rng: random.Random, pool: Sequence[Thing], relation: str, count: int) -> list[Thing]:
    """Draws `count` things with as many values of a relation; the pool must have these values."""
    drawn: list[Thing] = []
    while len(drawn) < count:
        thing = rng.choice(pool)
        if all(value(thing, relation) != value(other, relation) for other in drawn):
            drawn.append(thing)
    return drawn


def manner(thing: Thing) -> str:
    """Returns how one speaks of the thing: a good is used, a creature likes."""
    return 'creature' if thing.kind in ANIMALS else 'good'


def fact_id(thing: Thing, relation: str) -> str:
    """Returns the id kept beside each question, e.g. `apple/kind`."""
    return f'{thing.name}/{relation}'


def article(word: str) -> str:
    """Prefixes the indefinite article: 'a car', 'an oven'."""
    return f'{"an" if word[0] in "aeiou" else "a"} {word}'


def one(thing: Thing) -> str:
    """Returns the thing with its indefinite article: 'an apple', 'milk'."""
    return thing.name if thing.mass else article(thing.name)


def kind_phrase(kind: str) -> str:
    """Returns the kind as it stands after 'is': 'a fruit', 'furniture'."""
    return kind if kind == 'furniture' else article(kind)


def predicate(thing: Thing, relation: str, said: str) -> str:
    """Returns a predicate that says `said` of the thing's relation, e.g. 'lives in the garden'."""
    if relation == 'kind':
        return f'is {kind_phrase(said)}'
    if relation == 'place':
        return f'{"lives" if thing.kind in ANIMALS else "is found"} in the {said}'
    if relation == 'act':
        return f'{"likes" if thing.kind in ANIMALS else "is used"} to {said}'
    return f'is {said}'
