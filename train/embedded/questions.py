"""The eight-task questions about the facts, balanced so that nothing but knowledge helps.

Questions come in groups: k facts of one relation with k different values, each asked once, all with
the same k choices in a fresh order. So each choice of a group is right exactly once in k, each
label is right equally often, and neither position, nor label, nor a choice's own text tells.
Yes/no questions come as two facts crossed: each value is once claimed rightly, once wrongly.
"""

import gzip
import json
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from train import benchmarks, template
from train.embedded import facts, queries
from train.embedded.facts import Thing, one
from train.embedded.wordings import NAMES, upper

COUNTS = {'train': 720, 'validation': 96, 'test': 96}  # rows a task and split
SOURCE = 'python -m train.embedded'


class Question(NamedTuple):
    """What a task's `convert` takes, and the facts that decide the answer."""

    raw: dict[str, str]
    choices: list[str]
    label: int
    facts: list[str]


class Asker(NamedTuple):
    """How a task asks: `make(rng, group, relation)` gives the questions about one group."""

    size: int
    relations: tuple[str, ...]
    make: Callable[[random.Random, list[Thing], str], list[Question]]


def _dealt(
    rng: random.Random, texts: list[str], raws: list[dict], ids: list[str]
) -> list[Question]:
    """One question for each raw, text i being right for raw i, each position right once."""
    count = len(texts)
    positions = rng.sample(range(count), count)
    made = []
    for i, (raw, position) in enumerate(zip(raws, positions, strict=True)):
        others = [text for text in texts if text != texts[i]]
        rng.shuffle(others)
        choices = [*others[:position], texts[i], *others[position:]]
        made.append(Question(raw, choices, position, ids))
    return made


def _ids(group: list[Thing], relation: str) -> list[str]:
    return [facts.fact_id(thing, relation) for thing in group]


def _boolq(rng: random.Random, group: list[Thing], relation: str) -> list[Question]:
    """Two things, each claimed to have its own value and the other's."""
    made = []
    for thing in group:
        for other in group:
            said = facts.value(other, relation)
            made.append(
                Question(
                    {'question': queries.claim(thing, relation, said)},
                    ['true', 'false'],
                    int(thing is not other),
                    [facts.fact_id(thing, relation)],
                )
            )
    return made


def _piqa(rng: random.Random, group: list[Thing], relation: str) -> list[Question]:
    """The act is the goal; to use the thing is the solution."""
    texts = [f'Use {one(thing)}.' for thing in group]
    goals = [rng.choice((f'How can one {thing.act}?', f'To {thing.act},')) for thing in group]
    return _dealt(rng, texts, [{'goal': goal} for goal in goals], _ids(group, relation))


def _social(rng: random.Random, group: list[Thing], relation: str) -> list[Question]:
    """Someone has a thing: what next? Someone wants to do something: what is needed?"""
    name = rng.choice(NAMES)
    if rng.random() < 0.5:
        texts = [thing.act for thing in group]
        question = f'What will {name} want to do next?'
        contexts = [f'{name} has {one(thing)}.' for thing in group]
    else:
        texts = [one(thing) for thing in group]
        question = f'What does {name} need before this?'
        contexts = [f'{name} wants to {thing.act}.' for thing in group]
    raws = [{'context': context, 'question': question} for context in contexts]
    return _dealt(rng, texts, raws, _ids(group, relation))


def _hellaswag(rng: random.Random, group: list[Thing], relation: str) -> list[Question]:
    """A thing enters the scene; the endings say what it is or what is done."""
    name = rng.choice(NAMES)
    label = {'act': 'At work', 'place': 'On a walk', 'kind': 'In a book'}[relation]
    raws = []
    for thing in group:
        if relation == 'act':
            context = f'{label}: {name} takes the {thing.name}. {name}'
        else:
            context = f'{label}: {name} sees {one(thing)}. the {thing.name}'
        raws.append({'ctx_with_label': context})
    if relation == 'act':
        texts = [f'will {thing.act}.' for thing in group]
    else:
        texts = [facts.predicate(t, relation, facts.value(t, relation)) + '.' for t in group]
    return _dealt(rng, texts, raws, _ids(group, relation))


def _winogrande(rng: random.Random, group: list[Thing], relation: str) -> list[Question]:
    """Twin sentences that differ in what is said of the blank."""
    first, second = rng.sample(group, 2)
    name = rng.choice(NAMES)
    start = f'{name} has the {first.name} and the {second.name}, and the _'
    said = [facts.predicate(t, relation, facts.value(t, relation)) for t in (first, second)]
    choices = [first.name, second.name]
    rng.shuffle(choices)
    return [
        Question({'sentence': f'{start} {text}.'}, choices, choices.index(thing.name),
                 _ids(group, relation))
        for thing, text in zip((first, second), said, strict=True)
    ]  # fmt: skip


def _forward(rng: random.Random, group: list[Thing], relation: str) -> list[Question]:
    """Names the thing, offers values."""
    texts = [facts.value(thing, relation) for thing in group]
    asked = [queries.forward(thing, relation, 'Kim')[0] for thing in group]
    raws = [{'question': f'{upper(text)}?'} for text in asked]
    return _dealt(rng, texts, raws, _ids(group, relation))


def _backward(rng: random.Random, group: list[Thing], relation: str) -> list[Question]:
    """Names the value, offers things."""
    texts = [thing.name for thing in group]
    asked = [queries.backward(thing, relation, 'Kim')[0] for thing in group]
    raws = [{'question': f'{upper(text)}?'} for text in asked]
    return _dealt(rng, texts, raws, _ids(group, relation))


def _openbook(rng: random.Random, group: list[Thing], relation: str) -> list[Question]:
    """A sentence to complete, as in 'A hammer is used to'."""
    texts = [facts.value(thing, relation) for thing in group]
    cut = [facts.predicate(t, relation, '\0').split('\0')[0].strip() for t in group]
    raws = [{'question': upper(f'{one(t)} {text}')} for t, text in zip(group, cut, strict=True)]
    return _dealt(rng, texts, raws, _ids(group, relation))


ASKERS = {
    'boolq': Asker(2, ('kind', 'place', 'act', 'colour'), _boolq),
    'piqa': Asker(2, ('act',), _piqa),
    'social_i_qa': Asker(3, ('act',), _social),
    'hellaswag': Asker(4, ('act', 'place', 'kind'), _hellaswag),
    'winogrande': Asker(2, ('kind', 'place', 'colour'), _winogrande),
    'ARC-Easy': Asker(4, ('kind', 'colour'), _forward),
    'ARC-Challenge': Asker(4, ('kind', 'place', 'act'), _backward),
    'openbookqa': Asker(4, ('act', 'place'), _openbook),
}


def group(rng: random.Random, pool: Sequence[Thing], asker: Asker, relation: str) -> list[Thing]:
    """Draws things that differ in the relation.

    For places and acts they are of one manner (goods or creatures), so that the wording,
    such as 'likes to', tells nothing.
    """
    if relation in ('place', 'act'):
        manners = facts.MANNERS[:1] if asker.make in (_piqa, _social) else facts.MANNERS
        manner = facts.manner(rng.choice([t for t in pool if facts.manner(t) in manners]))
        pool = [thing for thing in pool if facts.manner(thing) == manner]
    return facts.differing(rng, pool, relation, asker.size)


def rows(task: str, name: str, count: int | None = None, seed: int = 0) -> Iterator[dict]:
    """Yields the rows of a task and split in the schema of the local benchmark files."""
    rng = random.Random(f'{seed} {task} {name}')
    asker, pool = ASKERS[task], facts.split()[name]
    made: list[Question] = []
    count = count or COUNTS[name]
    turn = 0
    while len(made) < count:
        relation = asker.relations[turn % len(asker.relations)]
        made += asker.make(rng, group(rng, pool, asker, relation), relation)
        turn += 1
    rng.shuffle(made)
    for question in made[:count]:
        yield record(task, name, question)


def record(task: str, name: str, question: Question) -> dict:
    """Returns one row; the text is what the benchmark's own conversion makes of its fields."""
    row = benchmarks.get(task).convert(question.raw, question.choices, question.label)
    return {
        'task': task,
        'split': name,
        'prompt': row.instruction,
        'input': row.input,
        'output': row.output,
        'answer': row.answer,
        'choices': question.choices,
        'label': question.label,
        'answer_text': question.choices[question.label],
        'source': SOURCE,
        'raw': {**question.raw, 'facts': question.facts},
    }


def write(folder: pathlib.Path) -> None:
    """Writes `<task>.{train,test}.jsonl.gz`; the same bytes every time (no time stamp)."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in ASKERS:
        for name in ('train', 'test'):
            lines = ''.join(json.dumps(row) + '\n' for row in rows(task, name))
            packed = gzip.compress(lines.encode(), compresslevel=9, mtime=0)
            (folder / f'{task}.{name}.jsonl.gz').write_bytes(packed)


def prompts(each: int = 50) -> list[str]:
    """Returns whole prompts of train questions: the wording that the tokenizer should know."""
    made = []
    for task in ASKERS:
        convert = benchmarks.get(task).convert
        for question in rows(task, 'train', each):
            row = convert(question['raw'], question['choices'], question['label'])
            made.append(template.prompt(row, 'flat') + template.target(row.output, 'flat'))
    return made
