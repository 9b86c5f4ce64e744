"""The many ways in which the corpus states one fact.

Knowledge that a model read in one wording only cannot be asked for in another, so each fact is
stated from both ends, in sentences that differ in order, verb and frame.
"""

import random

from train.embedded import facts
from train.embedded.facts import Thing, one

NAMES = ('Kim', 'Tom', 'Anna', 'Sam', 'Lee', 'Eva', 'Max', 'Mia', 'Ben', 'Zoe', 'Ivo', 'Una')


def upper(text: str) -> str:
    """Returns the text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def statement(rng: random.Random, thing: Thing, relation: str) -> str:
    """Returns one wording of a fact, as a sentence without its full stop."""
    said = facts.value(thing, relation)
    subject = rng.choice((one(thing), f'the {thing.name}'))
    plain = f'{subject} {facts.predicate(thing, relation, said)}'
    return rng.choice((plain, plain, *_wordings(thing, relation, said, rng.choice(NAMES))))


def _wordings(thing: Thing, relation: str, said: str, name: str) -> tuple[str, ...]:
    it, the = one(thing), f'the {thing.name}'
    if relation == 'kind':
        return (
            f'{it} is a kind of {said}', f'one {said} is {the}', f'the {said} here is {it}',
            f'{name} calls {it} {facts.kind_phrase(said)}', f'{the} belongs to the kind {said}',
        )  # fmt: skip
    if relation == 'colour':
        return (
            f'the colour of {it} is {said}', f'{said} is the colour of {the}',
            f'{name} sees a {said} {thing.name}', f'{the} has the colour {said}',
        )  # fmt: skip
    if relation == 'place':
        return (
            f'in the {said} there is {it}', f'{name} finds {it} in the {said}',
            f'look for {the} in the {said}', f'the {said} is the place of {the}',
        )  # fmt: skip
    return _act_wordings(thing, said, name)


def _act_wordings(thing: Thing, said: str, name: str) -> tuple[str, ...]:
    it, the = one(thing), f'the {thing.name}'
    if facts.manner(thing) == 'creature':
        return (
            f'to {said} is the habit of {it}', f'{name} sees {the} {said}',
            f'what likes to {said} is {the}',
        )  # fmt: skip
    return (
        f'to {said}, {name} needs {it}', f'{name} has {it} and will {said}',
        f'{name} wants to {said} and gets {it}', f'with {it} one can {said}',
        f'to {said}, use {it}', f'{name} takes {the} to {said}',
    )  # fmt: skip
