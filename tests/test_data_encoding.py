"""Template, tokens, labels, truncation, the held-out rows."""

import gzip

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from train import benchmarks, data, encoding, template
from train.rows import Row

SHORT = Row('Is ice cold?\n\nAnswer format: true/false', '', 'the answer is true', 'true', 'boolq')
LONG = Row(' '.join(f'word{i}' for i in range(60)) + ' THE END?', '', 'it is blue', 'blue', 'mine')
WITH_INPUT = Row('What colour is the sky?', 'Some say grey. ' * 20 + 'LAST', 'blue', 'blue', 'mine')


def _tokenizer(single: str | None = None, **special):
    """Bytes as tokens; `single` is a post-processing template such as '<s> $A'."""
    names = ['<s>', '</s>']
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*names, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if single:
        pairs = list(zip(names, range(2), strict=True))
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)
    special = {'bos_token': '<s>', 'eos_token': '</s>'} | special
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.fixture(scope='module')
def plain():
    return _tokenizer()


BOS, EOS = 0, 1


def test_flat_prompt():
    assert template.prompt(SHORT) + template.target(SHORT.output) == (
        'Below is an instruction that describes a task. '
        'Write a response that appropriately completes the request.  \n\n'
        '### Instruction:\nIs ice cold?\n\nAnswer format: true/false\n\n'
        '### Response:\nthe answer is true'
    )


def test_llm_adapters_prompt():
    blank = ' ' * 16
    text = template.prompt(SHORT, 'llm-adapters') + template.target(SHORT.output, 'llm-adapters')
    assert text == (
        'Below is an instruction that describes a task. '
        'Write a response that appropriately completes the request.  \n\n'
        f'{blank}### Instruction:\n{blank}Is ice cold?\n\nAnswer format: true/false\n{blank}\n'
        f'{blank}### Response:\n{blank}the answer is true'
    )


def test_prompts_with_an_input():
    row = Row('Q', 'I', 'A', 'A', 'mine')
    start = (
        'Below is an instruction that describes a task, paired with an input that provides '
        'further context. Write a response that appropriately completes the request. \n\n'
    )
    assert template.prompt(row) == start + (
        '### Instruction:\nQ\n\n### Input:\nI\n\n### Response:\n'
    )
    b = ' ' * 16
    assert template.prompt(row, 'llm-adapters') == start + (
        f'{b}### Instruction:\n{b}Q\n{b}\n{b}### Input:\n{b}I\n{b}\n{b}### Response:\n{b[1:]}'
    )


@pytest.mark.parametrize('style', template.PROMPT_STYLES)
def test_prompts_end_with_the_closing_and_hold_no_output(style):
    for row in (SHORT, WITH_INPUT):
        prompt = template.prompt(row, style)
        assert prompt == template.prompt(row._replace(output='other', answer='other'), style)
        assert prompt.endswith(template.closing(style))


def test_an_unknown_style_names_the_nearest(plain):
    with pytest.raises(ValueError, match=r"no prompt style 'llm_adapters'; nearest: llm-adap"):
        template.prompt(SHORT, 'llm_adapters')
    with pytest.raises(ValueError, match=r"no prompt style 'x'; there are: flat, llm-adapters"):
        data.encode([], plain, style='x')


@pytest.mark.parametrize('style', template.PROMPT_STYLES)
@pytest.mark.parametrize('single', [None, '<s> $A', '<s> $A </s>'])
def test_evaluation_feeds_what_training_saw(style, single):
    tokenizer = _tokenizer(single)
    (example,) = data.encode([SHORT], tokenizer, max_length=512, style=style)
    (prompt,) = data.prompt_tokens([SHORT], tokenizer, style=style, room=512)
    np.testing.assert_array_equal(example.tokens[: len(prompt)], prompt)
    assert not example.labelled[: len(prompt)].any()
    assert example.labelled[len(prompt) :].all()
    assert (prompt[0] == BOS) == (single is not None)
    assert EOS not in prompt
    text = tokenizer.decode(prompt, skip_special_tokens=True)
    assert text == template.prompt(SHORT, style)


def test_answer_only_labels_and_eos(plain):
    (example,) = data.encode([SHORT], plain, max_length=512)
    assert plain.decode(example.tokens[example.labelled]) == 'the answer is true</s>'
    assert example.tokens.dtype == np.int32
    assert example.labelled.dtype == np.bool_
    (bare,) = data.encode([SHORT], plain, max_length=512, eos=False)
    assert plain.decode(bare.tokens[bare.labelled]) == 'the answer is true'


def test_train_on_inputs_labels_all_but_the_first_token(plain):
    (example,) = data.encode([SHORT], plain, max_length=512, train_on_inputs=True)
    assert not example.labelled[0]
    assert example.labelled[1:].all()


def test_no_eos_token():
    tokenizer = _tokenizer(eos_token=None)
    with pytest.raises(ValueError, match='the tokenizer has no EOS token'):
        data.encode([SHORT], tokenizer)
    assert data.encode([SHORT], tokenizer, eos=False)


@pytest.mark.parametrize('style', template.PROMPT_STYLES)
@pytest.mark.parametrize('single', [None, '<s> $A'])
def test_truncation_keeps_the_end_of_the_question_and_the_answer(style, single):
    tokenizer = _tokenizer(single)
    (whole,) = data.encode([LONG], tokenizer, max_length=2048, style=style)
    (example,) = data.encode([LONG], tokenizer, max_length=200, style=style)
    assert len(example.tokens) == 200
    begin = int(single is not None)
    np.testing.assert_array_equal(example.tokens[:begin], whole.tokens[:begin])
    np.testing.assert_array_equal(example.tokens[begin:], whole.tokens[begin - 200 :])
    np.testing.assert_array_equal(example.labelled[begin:], whole.labelled[begin - 200 :])
    text = tokenizer.decode(example.tokens)
    assert f'THE END?{template.closing(style)}{template.target("it is blue", style)}</s>' in text
    assert 'Below is an instruction' not in text


def test_a_long_input_is_cut_before_the_question(plain):
    (example,) = data.encode([WITH_INPUT], plain, max_length=320)
    assert len(example.tokens) == 320
    text = plain.decode(example.tokens)
    assert text.startswith('Below is an instruction that describes a task, paired')
    assert 'What colour is the sky?\n\n### Input:\n' in text
    assert text.endswith('LAST\n\n### Response:\nblue</s>')
    (example,) = data.encode([WITH_INPUT], plain, max_length=64)
    text = plain.decode(example.tokens)
    assert len(example.tokens) == 64
    assert '### Input:\n' in text
    assert text.endswith('LAST\n\n### Response:\nblue</s>')


@pytest.mark.parametrize('row', [LONG, WITH_INPUT])
def test_an_answer_that_does_not_fit_names_the_row_and_what_would_do(plain, row):
    with pytest.raises(ValueError, match=r"row 1 of 'mine' .*max_length of at least (\d+)") as e:
        data.encode([SHORT._replace(instruction='x', output='y'), row], plain, max_length=36)
    least = int(str(e.value).rpartition('at least ')[2].split(',')[0])
    assert least > 36
    (example,) = data.encode([row], plain, max_length=least)
    assert plain.decode(example.tokens[example.labelled]) == f'{row.output}</s>'
    with pytest.raises(ValueError, match='max_length of at least'):
        data.encode([row], plain, max_length=least - 1)


def test_evaluation_says_when_a_prompt_has_no_room(plain):
    (prompt,) = data.prompt_tokens([LONG], plain, room=60)
    assert plain.decode(prompt).endswith('word59 THE END?\n\n### Response:\n')
    assert len(prompt) == 60
    with pytest.raises(ValueError, match=r"row 0 of 'mine'.*there is room for 20"):
        data.prompt_tokens([LONG], plain, room=20)
    assert data.prompt_tokens([], plain, room=20) == []


def test_chunks_do_not_show(plain, monkeypatch):
    rows = [SHORT._replace(instruction=f'question {i}') for i in range(7)]
    whole = data.encode(rows, plain)
    monkeypatch.setattr(encoding, 'CHUNK', 3)
    for one, other in zip(whole, data.encode(rows, plain), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.row == other.row
    assert [e.row for e in whole] == list(range(7))


def _shared_tokenizer(folder, tmp_path, regex):
    for name in ('vocab.json', 'merges.txt'):
        (tmp_path / name).write_bytes(gzip.decompress((folder / f'{name}.gz').read_bytes()))
    model = models.BPE.from_file(str(tmp_path / 'vocab.json'), str(tmp_path / 'merges.txt'))
    inner = Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    inner.pre_tokenizer = byte_level
    if regex:
        from tokenizers import Regex

        split = pre_tokenizers.Split(Regex(regex), 'isolated')
        inner.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token='<|endoftext|>')


QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)


@pytest.mark.parametrize(('name', 'regex'), [('gpt2', None), ('qwen2.5', QWEN)])
def test_the_parts_tokenise_as_the_whole_does(shared_data, tmp_path, name, regex):
    """Where the prompt ends is a border of the real tokenizers' words, in both styles."""
    tokenizer = _shared_tokenizer(shared_data / 'tokenizers' / name, tmp_path, regex)
    folder = shared_data / 'commonsense'
    for task in benchmarks.EIGHT:
        for row in data.load(task, 'test', folder)[:10]:
            for style in template.PROMPT_STYLES:
                (example,) = data.encode([row], tokenizer, max_length=1024, style=style, eos=False)
                text = template.prompt(row, style) + template.target(row.output, style)
                whole = tokenizer(text, add_special_tokens=False)['input_ids']
                assert example.tokens.tolist() == whole


def test_split_is_disjoint_complete_and_drawn_by_seed():
    rows = list(range(500))
    training, held = data.split(rows)
    assert (len(training), len(held)) == (380, 120)
    assert sorted(training + held) == rows
    assert training == sorted(training)
    assert held == data.split(rows)[1]
    assert held != data.split(rows, seed=1)[1]
    assert data.split(rows, 0) == (rows, [])


@pytest.mark.parametrize('count', [0, 100, 120])
def test_too_few_rows_to_split(count):
    with pytest.raises(ValueError, match=f'120 validation rows of {count} leave nothing to train'):
        data.split(list(range(count)))


def test_a_negative_split():
    with pytest.raises(ValueError, match='must be 0 or more, got -1'):
        data.split([1, 2], -1)
