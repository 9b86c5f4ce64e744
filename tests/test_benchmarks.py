"""The eight benchmarks: hub rows become exactly the LLM-Adapters text."""

import gzip
import json

import pytest

from train import benchmarks, hub, sources

# What the hub calls the fields, from the fields of the local copies: raw, choices, label.
HUB_SHAPES = {
    'boolq': lambda raw, choices, label: {
        'question': raw['question'].removesuffix('?'),
        'answer': label == 0,
        'passage': 'A passage that LLM-Adapters leaves out.',
    },
    'piqa': lambda raw, choices, label: {
        'goal': raw['goal'],
        'sol1': choices[0],
        'sol2': choices[1],
        'label': label,
    },
    'social_i_qa': lambda raw, choices, label: {
        'context': raw['context'],
        'question': raw['question'],
        **{f'answer{letter}': text for letter, text in zip('ABC', choices, strict=True)},
        'label': str(label + 1),
    },
    'hellaswag': lambda raw, choices, label: {
        'ind': 1,
        'activity_label': raw['ctx_with_label'].partition(': ')[0],
        'ctx': raw['ctx_with_label'].partition(': ')[2],
        'endings': choices,
        'label': str(label),
    },
    'winogrande': lambda raw, choices, label: {
        'sentence': raw['sentence'],
        'option1': choices[0],
        'option2': choices[1],
        'answer': str(label + 1),
    },
    'openbookqa': lambda raw, choices, label: {
        'question_stem': raw['question'],
        'choices': {'text': choices, 'label': list('ABCD')},
        'answerKey': 'ABCD'[label],
    },
}


def _arc(raw, choices, label):
    names = 'ABCDE' if len(raw['question']) % 2 else '12345'  # the hub has both kinds
    return {
        'id': 'Mercury_1',
        'question': raw['question'],
        'choices': {'text': choices, 'label': list(names[: len(choices)])},
        'answerKey': names[label],
    }


HUB_SHAPES |= {'ARC-Easy': _arc, 'ARC-Challenge': _arc}


def _records(path):
    with gzip.open(path, 'rt', encoding='utf-8') as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize('task', benchmarks.EIGHT)
def test_every_row_of_every_local_file_converts_from_the_hub_exactly(shared_data, task):
    files = sorted((shared_data / 'commonsense').glob(f'{task}.*.jsonl.gz'))
    assert files
    for path in files:
        for record in _records(path):
            shaped = HUB_SHAPES[task](record['raw'], record['choices'], record['label'])
            row = benchmarks.from_hub(task, shaped)
            assert row.instruction == record['prompt']
            assert (row.input, row.output, row.answer, row.task) == (
                record['input'],
                record['output'],
                record['answer'],
                task,
            )


TEXTS = {
    'boolq': (
        {'question': 'is ice cold', 'answer': True, 'passage': 'Ice.'},
        'Please answer the following question with true or false, question: is ice cold?\n\n'
        'Answer format: true/false',
        'true',
    ),
    'piqa': (
        {'goal': 'Cool tea', 'sol1': 'Add ice', 'sol2': 'Add fire', 'label': 0},
        'Please choose the correct solution to the question: Cool tea\n\n'
        'Solution1: Add ice\n\nSolution2: Add fire\n\nAnswer format: solution1/solution2',
        'solution1',
    ),
    'social_i_qa': (
        {
            'context': 'Al fell.',
            'question': 'How does Al feel?',
            'answerA': 'hurt',
            'answerB': 'tall',
            'answerC': 'rich',
            'label': '1\n',
        },
        'Please choose the correct answer to the question: Al fell. How does Al feel?\n\n'
        'Answer1: hurt Answer2: tall Answer3: rich\n\nAnswer format: answer1/answer2/answer3',
        'answer1',
    ),
    'hellaswag': (
        {
            'activity_label': 'Health',
            'ctx': '[header] How to rest [title] Lie down.',
            'endings': ['a', 'b', 'c', 'd'],
            'label': '3',
        },
        'Please choose the correct ending to complete the given sentence: Health: '
        '[header] How to rest [title] Lie down.\n\nEnding1: a Ending2: b Ending3: c Ending4: d\n\n'
        'Answer format: ending1/ending2/ending3/ending4',
        'ending4',
    ),
    'winogrande': (
        {'sentence': 'Al met Bo as _ waited.', 'option1': 'Al', 'option2': 'Bo', 'answer': '2'},
        'Please choose the correct answer to fill in the blank to complete the given sentence: '
        'Al met Bo as _ waited.\n\nOption1: Al Option2: Bo Answer format: option1/option2',
        'option2',
    ),
    'ARC-Easy': (
        {
            'question': 'What melts?',
            'choices': {'text': ['ice', 'rock', 'air'], 'label': ['1', '2', '3']},
            'answerKey': '1',
        },
        'Please choose the correct answer to the question: What melts?\n\n'
        'Answer1: ice Answer2: rock Answer3: air\n\nAnswer format: answer1/answer2/answer3',
        'answer1',
    ),
    'openbookqa': (
        {
            'question_stem': 'Stars are',
            'choices': {'text': ['hot', 'cold', 'wet', 'dry'], 'label': list('ABCD')},
            'answerKey': 'A',
        },
        'Please choose the correct answer to the question: Stars are\n\n'
        'Answer1: hot Answer2: cold Answer3: wet Answer4: dry\n\n'
        'Answer format: answer1/answer2/answer3/answer4',
        'answer1',
    ),
}
TEXTS['ARC-Challenge'] = TEXTS['ARC-Easy']


@pytest.mark.parametrize('task', benchmarks.EIGHT)
def test_hub_rows_become_this_text(task):
    shaped, text, answer = TEXTS[task]
    row = benchmarks.from_hub(task, shaped)
    assert row == (text, '', f'the correct answer is {answer}', answer, task)
    assert answer in benchmarks.options(row)
    assert set(benchmarks.options(row)) <= set(benchmarks.get(task).LABELS)


def test_names_and_aliases():
    assert benchmarks.names() == list(benchmarks.EIGHT)
    aliases = {'siqa': 'social_i_qa', 'hellas': 'hellaswag', 'winog': 'winogrande'}
    aliases |= {'arce': 'ARC-Easy', 'arcc': 'ARC-Challenge', 'obqa': 'openbookqa'}
    for alias, name in aliases.items():
        assert name == benchmarks.get(alias).NAME
        assert name == benchmarks.get(alias.upper()).NAME
    with pytest.raises(ValueError, match=r"no benchmark 'bolq'; nearest: boolq"):
        benchmarks.get('bolq')


def test_hub_places():
    """The repositories and splits, as their cards have them (their labelled splits)."""
    places = {n: benchmarks.get(n).HUB for n in benchmarks.names()}
    assert {n: (h.repo, h.config, h.splits['test']) for n, h in places.items()} == {
        'boolq': ('google/boolq', None, 'validation'),
        'piqa': ('ybisk/piqa', None, 'validation'),
        'social_i_qa': ('allenai/social_i_qa', None, 'validation'),
        'hellaswag': ('Rowan/hellaswag', None, 'validation'),
        'winogrande': ('allenai/winogrande', 'winogrande_xl', 'validation'),
        'ARC-Easy': ('allenai/ai2_arc', 'ARC-Easy', 'test'),
        'ARC-Challenge': ('allenai/ai2_arc', 'ARC-Challenge', 'test'),
        'openbookqa': ('allenai/openbookqa', 'main', 'test'),
    }
    assert all(place.splits['train'] == 'train' for place in places.values())


@pytest.mark.parametrize(
    ('task', 'change', 'reason'),
    [
        ('piqa', {'label': -1}, 'label -1 is not an index into 2 choices'),
        ('hellaswag', {'label': ''}, "'label' is '', not a number"),
        ('winogrande', {'answer': ''}, "'answer' is '', not a number"),
        ('boolq', {'answer': 'yes'}, "'answer' is 'yes', of type str"),
        ('ARC-Easy', {'answerKey': 'E'}, "'answerKey' 'E' is not one of the labels"),
        ('openbookqa', {'question_stem': None}, "'question_stem' is None"),
    ],
)
def test_hub_rows_that_cannot_be_converted_say_why(task, change, reason):
    with pytest.raises(ValueError, match=reason):
        benchmarks.from_hub(task, TEXTS[task][0] | change)


def test_a_missing_hub_column_is_named():
    row = {k: v for k, v in TEXTS['piqa'][0].items() if k != 'sol2'}
    with pytest.raises(ValueError, match=r"no column 'sol2'; the hub row has \['goal'"):
        benchmarks.from_hub('piqa', row)


def test_load_from_the_hub_converts_counts_and_skips(monkeypatch):
    asked = []

    def download(place, split):
        asked.append((place.repo, place.splits[split]))
        return [TEXTS['piqa'][0], TEXTS['piqa'][0] | {'label': -1}]

    monkeypatch.setattr(hub, 'download', download)
    with pytest.raises(ValueError, match=r'ybisk/piqa \(validation\), row 2: label -1'):
        sources.load('piqa', 'test')
    notes = []
    rows = sources.load('piqa', 'test', skip_bad_rows=True, report=notes.append)
    assert [row.answer for row in rows] == ['solution1']
    assert notes == [
        'ybisk/piqa (validation): skipped 1 of 2 rows: '
        'row 2: label -1 is not an index into 2 choices: no usable label'
    ]
    assert asked == [('ybisk/piqa', 'validation')] * 2


def test_common_170k_from_the_hub(monkeypatch):
    record = {'instruction': 'Q', 'input': '', 'output': 'the correct answer is true'}

    def download(place, split):
        if place.repo == 'zwhe99/commonsense_170k':
            return [record | {'answer': 'true'}]
        task = next(n for n in benchmarks.EIGHT if place == benchmarks.get(n).HUB)
        return [TEXTS[task][0]]

    monkeypatch.setattr(hub, 'download', download)
    (row,) = sources.load('common_170k')
    assert row == ('Q', '', 'the correct answer is true', 'true', 'common_170k')
    assert [r.task for r in sources.load('common_170k', 'test')] == list(benchmarks.EIGHT)


def test_without_a_network_the_error_says_how_to_go_on():
    with pytest.raises(ConnectionError, match=r"cannot load 'google/boolq'.*--data_dir FOLDER"):
        sources.load('boolq')
