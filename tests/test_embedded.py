"""The embedded data set and base: schema, balance, no fact in both splits, made again."""

import collections
import gzip
import json
import pathlib
import random
import re

import pytest

import jaxpeft as jp
from train import benchmarks
from train.embedded import corpus, questions

ASSETS = pathlib.Path(jp.__file__).parent / 'assets'
FIELDS = {'task', 'split', 'prompt', 'input', 'output', 'answer', 'choices', 'label', 'raw'}


def rows(task, split):
    with gzip.open(ASSETS / 'data' / f'{task}.{split}.jsonl.gz', 'rt') as file:
        return [json.loads(line) for line in file]


def things(found):
    return {fact.split('/')[0] for row in found for fact in row['raw']['facts']}


def test_all_of_it_is_at_most_8_megabytes():
    assert sum(file.stat().st_size for file in ASSETS.rglob('*') if file.is_file()) <= 8e6


@pytest.mark.parametrize('task', benchmarks.EIGHT)
def test_rows_are_of_the_schema_balanced_and_about_other_things(task):
    train, test = rows(task, 'train'), rows(task, 'test')
    for row in train + test:
        assert set(row) >= FIELDS
        assert row['output'] == f'the correct answer is {row["answer"]}'
        assert row['answer'] in benchmarks.get(task).LABELS
        assert row['raw']['facts']
    assert not things(train) & things(test)
    for found in (train, test):
        labels = collections.Counter(row['answer'] for row in found)
        most = max(labels.values()) / len(found)
        assert most <= 1 / len(labels) + 0.05


@pytest.mark.parametrize('task', [t for t in benchmarks.EIGHT if t != 'boolq'])
def test_no_choice_gives_itself_away(task):
    """A text offered often is right about as often as its share of the choices says."""
    found = rows(task, 'train') + rows(task, 'test')
    offered, right = collections.Counter(), collections.Counter()
    expected = collections.Counter()
    for row in found:
        for text in row['choices']:
            offered[text] += 1
            expected[text] += 1 / len(row['choices'])
        right[row['choices'][row['label']]] += 1
    often = [text for text, n in offered.items() if n >= 8]
    assert often
    for text in often:
        assert abs(right[text] - expected[text]) <= 0.5 * offered[text] ** 0.5 + 2


def test_the_generator_makes_the_shipped_files_again(tmp_path):
    questions.write(tmp_path)
    text = lambda folder: {f.name: gzip.decompress(f.read_bytes()) for f in folder.iterdir()}
    assert text(tmp_path) == text(ASSETS / 'data')


def test_the_generated_corpus_holds_no_question_template():
    rng = random.Random(5)
    text = '\n'.join(corpus.document(rng, i / 2000) for i in range(2000))
    assert not re.search(r'### |correct answer is|Please|Instruction|[Ff]ormat', text)


def test_the_base_loads_with_its_tokenizer():
    model, params, tokenizer = jp.models.load('embedded')
    assert model.config.family == 'gpt_neo'
    assert tokenizer.decode(tokenizer('A dog is an animal.')['input_ids']) == 'A dog is an animal.'
    assert len(tokenizer) <= model.config.vocab_size
    assert jp.targets(params, 'q_proj,o_proj')
