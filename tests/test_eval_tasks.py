"""Parsers, constant predictors, intervals: what turns texts into figures."""

import gzip
import json

import pytest

from eval import stats, tasks
from eval.evaluate import FIXED
from train import benchmarks
from train.benchmarks import EIGHT

ANSWERS = ('social_i_qa', 'ARC-Easy', 'ARC-Challenge', 'openbookqa')


class TestParsers:
    @pytest.mark.parametrize('name', EIGHT)
    def test_own_label_in_the_trained_sentence(self, name):
        task = tasks.get(name)
        assert name == task.NAME
        for label in task.LABELS:
            assert task.parse(f'the correct answer is {label}') == label

    @pytest.mark.parametrize('name', EIGHT)
    @pytest.mark.parametrize('text', ['', 'I do not know', 'Answer1 TRUE Option2', 'answer', '7'])
    def test_nothing_to_find(self, name, text):
        assert tasks.get(name).parse(text) == ''

    @pytest.mark.parametrize('name', ANSWERS)
    def test_answers(self, name):
        parse = tasks.get(name).parse
        assert parse('answer12') == 'answer1'  # no word boundary
        assert parse('not answer3 but answer1') == 'answer3'  # the first one
        assert parse('answer5') == 'answer5'  # even where no row has five
        assert parse('answer6 answer2') == 'answer2'
        assert parse('Answer1') == ''  # case-sensitive

    def test_the_others(self):
        assert tasks.get('boolq').parse('untrue') == 'true'
        assert tasks.get('boolq').parse('false, not true') == 'false'
        assert tasks.get('piqa').parse('solution12') == 'solution1'
        assert tasks.get('piqa').parse('solution3') == ''
        assert tasks.get('hellaswag').parse('the ending4.') == 'ending4'
        assert tasks.get('hellaswag').parse('ending5') == ''
        assert tasks.get('winogrande').parse('option2option1') == 'option2'

    @pytest.mark.parametrize(
        ('alias', 'name'),
        [
            ('siqa', 'social_i_qa'),
            ('hellas', 'hellaswag'),
            ('winog', 'winogrande'),
            ('arce', 'ARC-Easy'),
            ('arcc', 'ARC-Challenge'),
            ('obqa', 'openbookqa'),
        ],
    )
    def test_aliases_of_the_reference_programs(self, alias, name):
        assert name == tasks.get(alias).NAME

    def test_unknown_task(self):
        with pytest.raises(ValueError, match=r"no benchmark 'obqb'.*obqa"):
            tasks.get('obqb')


# The right answers of the real test halves (rows 1, 3, 5, ... of the published sets), counted with
# zcat and grep apart from this code.
COUNTS = {
    'boolq': {'true': 1012, 'false': 623},
    'piqa': {'solution1': 453, 'solution2': 466},
    'social_i_qa': {'answer1': 322, 'answer2': 316, 'answer3': 339},
    'hellaswag': {'ending1': 1240, 'ending2': 1241, 'ending3': 1317, 'ending4': 1223},
    'winogrande': {'option1': 321, 'option2': 313},
    'ARC-Easy': {'answer1': 294, 'answer2': 287, 'answer3': 319, 'answer4': 288},
    'ARC-Challenge': {'answer1': 136, 'answer2': 156, 'answer3': 149, 'answer4': 145},
    'openbookqa': {'answer1': 64, 'answer2': 68, 'answer3': 70, 'answer4': 48},
}


@pytest.mark.parametrize('name', EIGHT)
def test_constant_predictors_score_the_majority_table(shared_data, name):
    with gzip.open(shared_data / 'commonsense' / f'{name}.test.jsonl.gz', 'rt') as lines:
        golds = [json.loads(line)['answer'] for line in lines]
    task, counts = tasks.get(name), COUNTS[name]
    total = sum(counts.values())
    for label in task.LABELS:
        said = [task.parse(f'the correct answer is {label}')] * len(golds)
        figures = stats.summarise(golds, said, task.LABELS)
        assert figures['n'] == total
        assert figures['accuracy'] == pytest.approx(counts.get(label, 0) / total)
        assert figures['majority'] == pytest.approx(max(counts.values()) / total)
        assert figures['histogram'][label] == total
        assert figures['parsable'] == 1


def test_labels_of_every_real_row(shared_data):
    for name in ('ARC-Easy', 'ARC-Challenge', 'openbookqa'):
        sizes = set()
        with gzip.open(shared_data / 'commonsense' / f'{name}.test.jsonl.gz', 'rt') as lines:
            for line in lines:
                raw = json.loads(line)
                row = benchmarks.base.Row(raw['prompt'], '', raw['output'], raw['answer'], name)
                labels = benchmarks.options(row)
                assert labels == tasks.get(name).LABELS[: len(raw['choices'])]
                sizes.add(len(labels))
        assert sizes == ({4} if name == 'openbookqa' else {3, 4, 5})


class TestStats:
    def test_wilson_against_published_values(self):
        # Newcombe (1998), table I, method 3
        for (hits, n), low, high in [
            ((81, 263), 0.2553, 0.3662),
            ((15, 148), 0.0624, 0.1605),
            ((0, 20), 0.0, 0.1611),
            ((1, 29), 0.0061, 0.1718),
        ]:
            assert stats.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
        assert stats.wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)

    def test_wilson_refuses(self):
        for hits, n in [(0, 0), (3, 2), (-1, 5)]:
            with pytest.raises(ValueError, match='0 <= hits <= n'):
                stats.wilson(hits, n)

    def test_summary(self):
        found = stats.summarise(
            ['a', 'a', 'b', 'c', 'a'], ['a', '', 'b', 'x', 'b'], ['a', 'b', 'c']
        )
        assert found == {
            'n': 5,
            'accuracy': 0.4,
            'interval': list(stats.wilson(2, 5)),
            'majority': 0.6,
            'parsable': 0.8,
            'histogram': {'a': 1, 'b': 2, 'c': 0, 'x': 1, 'unparsable': 1},
        }

    def test_an_empty_answer_is_no_answer(self):
        assert stats.summarise(['a'], [''], ['a'])['accuracy'] == 0
        with pytest.raises(ValueError, match='row 1 has no right answer'):
            stats.summarise(['a', ''], ['a', ''], ['a'])

    def test_the_mean_is_that_of_the_tasks_not_of_the_rows(self):
        one = stats.summarise(['a'] * 9, ['a'] * 9, ['a', 'b'])
        two = stats.summarise(['a'], ['b'], ['a', 'b'])
        found = stats.headline({'x': one, 'y': two})
        assert (found['mean'], found['majority_mean'], found['tasks_in_mean']) == (0.5, 1.0, 2)


def test_fixed_decoding_is_the_reference_programs():
    assert FIXED._asdict() == {
        'temperature': 0.3,
        'top_p': 0.8,
        'top_k': 10,
        'repetition_penalty': 1.5,
        'no_repeat_ngram': 2,
    }
