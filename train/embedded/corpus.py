"""Pretraining text about the facts: statements in many wordings, riddles, verdicts, picks.

All facts are stated, those of the train questions and those of the test questions alike. The text
also holds the skills that an adapter can later elicit: judging a statement (true or false) and
picking from numbered lists. Some lists are of answers, solutions, endings or options, as those of
the eight benchmarks: a base that had never met these nouns before a number did not learn from the
adapter's rows to look up in such a list. No text of an instruction template occurs, and no "the
correct answer is".

What a reader can work out, what the options are and what is asked is marked for the pretraining,
see `train.embedded.marks`.
"""

import functools
import random
from collections.abc import Callable

from train.embedded import facts, queries
from train.embedded.facts import Thing, one
from train.embedded.marks import ANSWER, ASK, ASKED, CLOSE, OPEN
from train.embedded.wordings import NAMES, statement, upper

THINGS = facts.things()
NOUNS = (
    'box', 'item', 'door', 'card', 'page', 'line', 'case', 'step', 'row', 'part', 'lot', 'gate',
    'note', 'sign', 'track', 'room', 'team', 'road', 'test', 'list',
    'answer', 'solution', 'ending', 'option',
)  # fmt: skip
WORDS = ('Answer', 'answer', 'Solution', 'solution', 'Ending', 'ending', 'Option', 'option')
OPENERS = ('it is', 'take', 'pick', 'that is', 'so', 'the right one is', 'I say', 'the answer is')
OPEN_SORT = ('So', 'Now', 'Here:', 'Sorted:', 'We put')
VERDICTS = (('true', 'false'), ('true', 'false'), ('right', 'wrong'), ('yes', 'no'))


def _marked(text: str) -> str:
    return f'{ANSWER}{text}{ANSWER}'


def _draw(rng: random.Random, relation: str, count: int) -> list[Thing]:
    """Draws `count` things that differ in the value of a relation, often of one manner."""
    pool = THINGS
    if rng.random() < 0.5:
        manner = facts.manner(rng.choice(pool))
        pool = tuple(thing for thing in pool if facts.manner(thing) == manner)
    return facts.differing(rng, pool, relation, count)


def plain(rng: random.Random) -> str:
    """A few facts, each a sentence."""
    said = []
    for _ in range(rng.randint(1, 4)):
        relation = rng.choice(facts.RELATIONS)
        said.append(upper(statement(rng, rng.choice(THINGS), relation)) + '.')
    return ' '.join(said)


def _shuffled(rng: random.Random) -> list[str]:
    relations = list(facts.RELATIONS)
    rng.shuffle(relations)
    return relations


def profile(rng: random.Random) -> str:
    """All facts of one thing, in any order."""
    thing = rng.choice(facts.things())
    relations = _shuffled(rng)
    return ' '.join(upper(statement(rng, thing, relation)) + '.' for relation in relations)


def riddle(rng: random.Random) -> str:
    """All facts of one thing, its name at the end."""
    thing = rng.choice(facts.things())
    relations = _shuffled(rng)
    said = [facts.predicate(thing, each, facts.value(thing, each)) for each in relations]
    return upper('; '.join(f'it {each}' for each in said)) + f'. It is {_marked(one(thing))}.'


def truth(rng: random.Random) -> str:
    """Statements, right and wrong ones, each with its verdict."""
    verdicts = rng.choice(VERDICTS)
    style = rng.randrange(4)
    said = []
    for _ in range(rng.randint(1, 4)):
        relation = rng.choice(facts.RELATIONS)
        thing, other = _draw(rng, relation, 2)
        right = rng.random() < 0.5
        value = facts.value(thing if right else other, relation)
        claim = f'{one(thing)} {facts.predicate(thing, relation, value)}'
        verdict = _marked(verdicts[0 if right else 1])
        asked = queries.claim(thing, relation, value)
        said.append(
            (f'{upper(claim)}: {verdict}.', f'{upper(claim)}? It is {verdict}.',
             f'That {claim} is {verdict}.', f'{upper(asked)} {verdict}.')[style]
        )  # fmt: skip
    return ' '.join(said)


def compare(rng: random.Random) -> str:
    """Two things and what tells them apart."""
    relation = rng.choice(facts.RELATIONS)
    first, second = _draw(rng, relation, 2)
    pair = f'the {first.name} and the {second.name}'
    told = [(_marked(each.name), facts.predicate(each, relation, facts.value(each, relation)))
            for each in (first, second)]  # fmt: skip
    rng.shuffle(told)
    (name, says), (other, tells) = told
    return rng.choice((
        f'Of {pair}, the one that {says} is the {name}.',
        f'Here are {pair}. What {says} is the {name}; what {tells} is the {other}.',
        f'{upper(pair)}: the {name} {says}, the {other} {tells}.',
        f'{rng.choice(NAMES)} has {pair}, and what {says} is the {name}.',
    ))  # fmt: skip


def asked(rng: random.Random) -> str:
    """Questions with their answers in words."""
    said = []
    word = rng.choice(WORDS)
    for _ in range(rng.randint(1, 3)):
        relation = rng.choice(facts.RELATIONS)
        thing = rng.choice(THINGS)
        ask, text = rng.choice(
            ((queries.forward, facts.value(thing, relation)), (queries.backward, one(thing)))
        )
        question = upper(rng.choice(ask(thing, relation, rng.choice(NAMES))))
        said.append(f'{question}{rng.choice(("?", ":", "", " ..."))} {word}: {_marked(text)}.')
    return rng.choice((' ', '\n')).join(said)


def verdicts(rng: random.Random) -> str:
    """One thing and several values, or one value and several things, each with its verdict."""
    yes, no = rng.choice(VERDICTS)
    joint, gap = rng.choice((('? ', ' '), (': ', ' is '), (' - ', ' = '), ('\n', ': ')))
    said = []
    for _ in range(rng.randint(1, 2)):
        relation = rng.choice(facts.RELATIONS)
        drawn = _draw(rng, relation, rng.randint(2, 4))
        right = rng.choice(drawn)
        if rng.random() < 0.5:
            head, texts = right.name, [facts.value(thing, relation) for thing in drawn]
        else:
            head, texts = facts.value(right, relation), [thing.name for thing in drawn]
        told = [
            f'{text}{gap}{_marked(yes if thing is right else no)}'
            for thing, text in zip(drawn, texts, strict=True)
        ]
        said.append(f'{rng.choice((head, "the " + head, upper(head)))}{joint}{", ".join(told)}.')
    return '\n'.join(said)


def sort(rng: random.Random, literal: float) -> str:
    """A numbered list of values or of things, and where several things or values belong."""
    noun = rng.choice(NOUNS)
    relation = rng.choice(facts.RELATIONS)
    drawn = _draw(rng, relation, rng.randint(2, 4))
    forward = rng.random() < 0.5
    texts = [facts.value(thing, relation) if forward else thing.name for thing in drawn]
    gap, end = rng.choice(((' ', ', '), (': ', '; '), (' -> ', ' | '), (' is in ', '. ')))
    told = []
    for _ in range(rng.randint(4, 8)):
        n = rng.randrange(len(drawn))
        if rng.random() < literal:
            head = texts[n]
        elif forward:
            head = rng.choice(LIKE[relation, texts[n]]).name
        else:
            head = facts.value(drawn[n], relation)
            other = rng.choice(facts.RELATIONS)
            values = [facts.value(thing, other) for thing in drawn]
            if values.count(values[n]) == 1:
                head = values[n]
        told.append(f'{ASK}{head}{ASKED}{gap}{noun}{_marked(str(n + 1))}')
    return f'{_listed(rng, noun, texts)}\n{rng.choice(OPEN_SORT)} {end.join(told)}.'


def pick(rng: random.Random) -> str:
    """A numbered list, questions about it, and the number of what answers each."""
    relation = rng.choice(facts.RELATIONS)
    drawn = _draw(rng, relation, rng.choice((2, 2, 3, 4, 4)))
    ask, options = _options(rng, drawn, relation)
    noun = rng.choice(NOUNS)
    listed = _listed(rng, noun, options)
    opener = rng.choice(OPENERS)
    name = rng.choice(NAMES)
    mark = rng.choice(('?', ':', '', '.'))
    lines: list[str] = []
    for _ in range(rng.randint(2, 4)):
        n = rng.randrange(len(drawn))
        text = upper(rng.choice(ask(drawn[n], relation, name)))
        if rng.random() < 0.2:
            text = rng.choice(
                (f'Take {options[n]}', f'Which is {options[n]}', f'{name} says {options[n]}')
            )
        text = f'{ASK}{text}{ASKED}'
        answer = f'{upper(opener)} {noun}{_marked(str(n + 1))}.'
        if not lines and rng.random() < 0.75:
            lines.append(f'{text}{mark}{rng.choice((" ", chr(10)))}{listed}\n{answer}')
        else:
            lines += [f'{text}{mark} {answer}'] if lines else [listed, f'{text}{mark} {answer}']
    return '\n'.join(lines)


def _options(rng: random.Random, drawn: list[Thing], relation: str):
    """Returns (how to ask, option texts): values to a thing's name, or things to a value."""
    style = rng.random()
    if rng.random() < 0.5:
        texts = [facts.value(thing, relation) for thing in drawn]
        if style < 0.4:
            pairs = zip(drawn, texts, strict=True)
            texts = [facts.predicate(thing, relation, text) for thing, text in pairs]
        elif style < 0.5:
            texts = [f'will {text}' if relation == 'act' else f'the {text}' for text in texts]
        return queries.forward, texts
    before = 'use ' if style < 0.2 else ''
    return queries.backward, [before + (one(t) if style < 0.5 else t.name) for t in drawn]


def _listed(rng: random.Random, noun: str, options: list[str]) -> str:
    shown = rng.choice((noun, upper(noun), upper(noun)))
    colon = rng.choice((':', ':', ':', ' is', ')', ' ='))
    end = rng.choice(('', '', '.'))
    gap = rng.choice((' ', ' ', ', ', '\n', '\n\n'))
    listed = gap.join(
        f'{shown}{n}{colon} {OPEN}{each}{CLOSE}{end}' for n, each in enumerate(options, 1)
    )
    if rng.random() < 0.3:
        labels = '/'.join(f'{noun}{n + 1}' for n in range(len(options)))
        listed += rng.choice((f'\nSay {labels}', f' ({labels})', f'\n\nReply: {labels}\n'))
    return listed


LIKE = {
    (relation, said): [thing for thing in THINGS if facts.value(thing, relation) == said]
    for relation in facts.RELATIONS
    for said in {facts.value(thing, relation) for thing in THINGS}
}
LOOKUP = 0.08  # up to this place in the text: nothing but words looked up in lists
SEMANTIC = 0.3  # from here on lists are asked about by facts too, not only by their own words


def document(rng: random.Random, progress: float) -> str:
    """Draws one document; `progress` in [0, 1] is its place in the text.

    The order matters: lookup by word first, then facts beside it, then, slowly, lookup by fact.
    Where facts came at once, the lookup that had formed was lost again.
    """
    if progress < LOOKUP:
        return sort(rng, 1.0)
    known = min(max((progress - SEMANTIC) / 0.4, 0.0), 1.0)
    makers: dict[Callable[[random.Random], str], float] = {
        plain: 1, profile: 1, riddle: 1, asked: 1, truth: 2 * known, compare: 1,
        verdicts: 2 * known, functools.partial(sort, literal=1 - 0.85 * known): 6 - 2 * known,
        pick: 6 * known,
    }  # fmt: skip
    return rng.choices(list(makers), list(makers.values()))[0](rng)
