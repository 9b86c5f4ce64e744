"""From rows to figures: every decoding, any batch size, the same predictions."""

import dataclasses

import pytest

from eval import evaluate as evaluation
from eval import questions
from eval.run import evaluate
from tests import eval_tiny
from train import data, template

TASKS = ('boolq', 'piqa', 'ARC-Easy')


@pytest.fixture(scope='module')
def tokenizer():
    return eval_tiny.tokenizer()


@pytest.fixture(scope='module')
def tiny():
    return eval_tiny.make('gpt_neo', vocab=257, positions=384)


@pytest.fixture(scope='module')
def rows():
    return eval_tiny.rows(*TASKS)


def ask(tiny, tokenizer, rows, **settings):
    """(figures, [(label, text or scores) of each row])."""
    answers = []
    found = evaluate(
        *tiny, tokenizer, tasks=TASKS, rows=rows, progress=False, answers=answers, **settings
    )
    return found, answers


@pytest.mark.parametrize('decoding', ['loglik', 'greedy', 'beam'])
def test_no_prediction_depends_on_the_batch(tiny, tokenizer, rows, decoding):
    runs = [
        ask(tiny, tokenizer, rows, decoding=decoding, batch=batch, max_new_tokens=8, beams=3)
        for batch in (1, 3, 8)
    ]
    figures, answers = runs[0]
    assert [(a.question.task, a.question.number) for a in answers] == [
        (task, i) for task in TASKS for i in range(3)
    ]
    for other, same in runs[1:]:
        assert other == figures
        assert [a.label for a in same] == [a.label for a in answers]
        assert [a.text for a in same] == [a.text for a in answers]
    check_shape(figures)
    if decoding == 'loglik':
        assert all(t['parsable'] == 1 for t in figures['tasks'].values())
        assert all(a.label in a.question.labels for a in answers)
    else:
        assert len({a.text for a in answers}) > 3  # it says something, and not always the same


def check_shape(figures):
    assert list(figures['tasks']) == list(TASKS)
    assert figures['tasks_in_mean'] == 3
    for one in figures['tasks'].values():
        assert set(one) == {'n', 'accuracy', 'interval', 'majority', 'parsable', 'histogram'}
        assert one['n'] == sum(one['histogram'].values()) == 3
        low, high = one['interval']
        assert 0 <= low <= one['accuracy'] <= high <= 1
    mean = sum(one['accuracy'] for one in figures['tasks'].values()) / 3
    assert figures['mean'] == pytest.approx(mean)


@pytest.mark.parametrize('decoding', ['loglik', 'greedy'])
def test_a_broken_model_gets_no_figures(tiny, tokenizer, rows, decoding):
    with pytest.raises(FloatingPointError, match='likelihood is not a number'):
        ask(eval_tiny.broken(tiny), tokenizer, rows, decoding=decoding)


def test_an_end_token_of_the_config_ends_an_answer(tiny, tokenizer, rows):
    settings = {'decoding': 'greedy', 'max_new_tokens': 8}
    whole = ask(tiny, tokenizer, rows, **settings)[1][0].text
    end = tokenizer(whole[4])['input_ids']
    config = dataclasses.replace(tiny.model.config, eos_token_ids=tuple(end))
    model = tiny.model.clone(config=config)
    cut = ask(tiny._replace(model=model), tokenizer, rows, **settings)[1][0].text
    assert cut == whole[: whole.index(whole[4])] != whole


def test_fixed_decoding_cuts_where_the_reference_does(tiny, tokenizer, rows, monkeypatch):
    text = 'so Q: the correct answer is true'
    said = tokenizer(text)['input_ids']
    monkeypatch.setattr(
        evaluation.decode, 'generate', lambda *a, **k: [evaluation.np.array(said)] * 9
    )
    fixed, greedy = (
        ask(tiny, tokenizer, rows, decoding=decoding)[1][0] for decoding in ('fixed', 'greedy')
    )
    assert (fixed.text, fixed.label) == ('so ', '')
    assert (greedy.text, greedy.label) == (text, 'true')


def test_tokens_are_those_of_training(tokenizer, rows):
    for style in template.PROMPT_STYLES:
        for question in questions.build(rows, tokenizer, style):
            at = question.labels.index(question.row.answer)
            (trained,) = data.encode([question.row], tokenizer, max_length=999, style=style)
            asked = [*question.prompt, *question.outputs[at], tokenizer.eos_token_id]
            assert asked == trained.tokens.tolist()


def test_candidates_are_the_labels_that_the_row_has(tokenizer, rows):
    built = questions.build(rows, tokenizer, 'flat')
    assert [len(q.labels) for q in built if q.task == 'ARC-Easy'] == [3, 4, 5]
    assert built[0].labels == ('true', 'false')
    assert tokenizer.decode(built[0].outputs[1]) == 'the correct answer is false'


def test_a_question_is_never_cut(tiny, tokenizer, rows):
    long = rows['piqa'][0]._replace(instruction='why ' * 99 + rows['piqa'][0].instruction)
    rows = rows | {'piqa': [rows['piqa'][1], long]}
    for settings in ({'decoding': 'loglik'}, {'decoding': 'greedy'}):
        with pytest.raises(ValueError, match=r'piqa row 1 has a prompt of \d+ tokens.*384 pos'):
            ask(tiny, tokenizer, rows, **settings)
    prompt = questions.build(rows, tokenizer, 'flat')[4].prompt
    assert tokenizer.decode(prompt) == template.prompt(long, 'flat')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'decoding': 'greedyy'}, "no decoding 'greedyy'.*nearest: greedy"),
        ({'tasks': ['bolq']}, "no benchmark 'bolq'.*nearest: boolq"),
        ({'tasks': ['winog']}, 'no rows of winogrande to evaluate'),
        ({'tasks': []}, 'no task'),
    ],
)
def test_settings_that_no_evaluation_has(tiny, tokenizer, rows, change, message):
    settings = {'tasks': TASKS, 'rows': rows, 'progress': False} | change
    with pytest.raises(ValueError, match=message):
        evaluate(*tiny, tokenizer, **settings)


def test_a_row_whose_answer_is_not_offered(tokenizer, rows):
    bad = {'boolq': [rows['boolq'][0]._replace(answer='maybe')]}
    with pytest.raises(ValueError, match=r"boolq row 0: its answer 'maybe' must be one of"):
        questions.build(bad, tokenizer, 'flat')
