"""Short questions about one fact, asked from either end: for the corpus and the questions."""

from train.embedded import facts
from train.embedded.facts import Thing, one


def forward(thing: Thing, relation: str, name: str) -> tuple[str, ...]:
    """Returns wordings that name the thing and ask for the value."""
    it, the = one(thing), f'the {thing.name}'
    if relation == 'kind':
        return (f'what is {it}', f'what kind of thing is {it}', f'the kind of {the}', f'{it} is a')
    if relation == 'colour':
        return (f'what colour is {it}', f'the colour of {the}', f'{it} has the colour')
    if relation == 'place':
        return (f'where is {it} found', f'the place of {the}', f'{name} finds {it} in the')
    if thing.kind in facts.ANIMALS:
        return (f'what does {it} like to do', f'the habit of {it}', f'{the} likes to')
    return (
        f'what is {it} used to do',
        f'{name} has {it} and will',
        f'{name} takes {the} to',
        f'what will {name} do with {it}',
    )


def backward(thing: Thing, relation: str, name: str) -> tuple[str, ...]:
    """Returns wordings that state the value and ask for the thing."""
    said = facts.value(thing, relation)
    if relation == 'kind':
        phrase = facts.kind_phrase(said)
        return (f'which is {phrase}', f'which one is {phrase}', f'the {said} is')
    if relation == 'colour':
        return (f'which is {said}', f'what has the colour {said}', f'the {said} one')
    if relation == 'place':
        return (
            f'which is found in the {said}',
            f'what is in the {said}',
            f'look in the {said} for',
        )
    if thing.kind in facts.ANIMALS:
        return (f'which likes to {said}', f'what has the habit to {said}', f'{name} sees it {said}')
    return (
        f'what is used to {said}',
        f'to {said}, {name} needs',
        f'{name} wants to {said} and gets',
        f'how can one {said}',
    )


def claim(thing: Thing, relation: str, said: str) -> str:
    """Returns a yes/no question: 'is an apple a fruit?'."""
    it = one(thing)
    if relation == 'kind':
        return f'is {it} {facts.kind_phrase(said)}?'
    if relation == 'place':
        return f'is {it} found in the {said}?'
    if relation == 'act':
        verb, end = ('does', 'like') if thing.kind in facts.ANIMALS else ('is', 'used')
        return f'{verb} {it} {end} to {said}?'
    return f'is {it} {said}?'
