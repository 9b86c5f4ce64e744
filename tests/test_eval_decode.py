"""Generation: cached, padded, batched decoding gives what the plain forward pass gives."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from eval import batches, decode, until
from eval.evaluate import FIXED
from eval.sampling import Sampling
from tests import eval_tiny

NEW = 6
NEVER = 999  # an end token that the vocabulary does not have


steps = []  # one entry a forward pass that really ran


@pytest.fixture(scope='module')
def tiny():
    made = eval_tiny.make()

    def counted(*args, **kwargs):
        jax.debug.callback(lambda: steps.append(1))
        return made.forward(*args, **kwargs)

    return made._replace(forward=counted)


@pytest.fixture(autouse=True)
def prefix_is_shared(monkeypatch):
    """As with a large model; for a tiny one the program that it takes would cost more."""
    monkeypatch.setattr(batches, 'worth_sharing', lambda *args: True)


@pytest.fixture(scope='module')
def prompts():
    return eval_tiny.prompts()


@pytest.fixture(scope='module')
def greedy(tiny, prompts):
    """Greedy tokens by repeated plain forward passes over whole rows."""
    rows = [p.tolist() for p in prompts]
    for _ in range(NEW):
        logits = eval_tiny.padded_logits(tiny, rows, 64)
        rows = [[*row, int(one[-1].argmax())] for row, one in zip(rows, logits, strict=True)]
    return [row[len(p) :] for row, p in zip(rows, prompts, strict=True)]


def tolists(arrays):
    return [a.tolist() for a in arrays]


def test_greedy_is_the_argmax_of_repeated_full_forwards(tiny, prompts, greedy):
    found = decode.generate(*tiny, prompts, new_tokens=NEW, eos=NEVER, batch=4)
    assert tolists(found) == greedy  # 10 rows, 3 batches of 4: sorted, padded, put back
    assert len({tuple(row) for row in greedy}) > 3  # the rows really differ


def test_padding_and_prefix_change_nothing(tiny, prompts, greedy):
    shortest = min(range(len(prompts)), key=lambda i: len(prompts[i]))
    other = np.random.default_rng(0).integers(4, 61, 26, dtype=np.int32)  # shares no prefix
    found = decode.generate(*tiny, [other, prompts[shortest]], new_tokens=NEW, eos=NEVER)
    assert found[1].tolist() == greedy[shortest]


def test_a_row_ends_at_eos_and_the_loop_when_all_have(tiny, prompts, greedy):
    end = greedy[0][2]
    kept = [row[: row.index(end)] if end in row else row for row in greedy]
    assert len(kept[0]) < NEW - 1
    found = decode.generate(*tiny, prompts, new_tokens=NEW, eos=end, batch=4)
    assert tolists(found) == kept

    jax.effects_barrier()
    steps.clear()
    found = decode.generate(*tiny, prompts[:1] * 4, new_tokens=NEW, eos=end, batch=4)
    jax.effects_barrier()
    assert tolists(found) == kept[:1] * 4
    # the shared prefix, the rest of the prompt, one step a token up to the end token
    assert len(steps) == 2 + len(kept[0]) < 2 + NEW - 1


def test_several_end_tokens(tiny, prompts, greedy):
    pair = greedy[0][1], greedy[3][2]
    first = lambda row: min([row.index(end) for end in pair if end in row], default=NEW)
    cuts = [row[: first(row)] for row in greedy]
    assert min(map(len, cuts)) < NEW
    found = decode.generate(*tiny, prompts, new_tokens=NEW, eos=pair)
    assert tolists(found) == cuts
    found = until.generate(*tiny, prompts, new_tokens=NEW, eos=pair, stopped=lambda row: False)
    assert tolists(found) == cuts


def test_the_end_tokens_of_tokenizer_and_config(tiny):
    tokenizer, config = eval_tiny.tokenizer(), tiny.model.config
    assert decode.ends(tokenizer, config) == (eval_tiny.EOS, 3)
    tokenizer.eos_token = None
    assert decode.ends(tokenizer, config) == (3,)
    with pytest.raises(ValueError, match='tiny-gpt_neo names an EOS token'):
        decode.ends(tokenizer, dataclasses.replace(config, eos_token_ids=()))


def until_end(*args, **kwargs):
    return until.generate(*args, stopped=lambda row: False, **kwargs)


RUNS = [
    functools.partial(decode.generate, eos=NEVER),
    functools.partial(decode.generate, eos=NEVER, sampling=Sampling(1.0)),
    functools.partial(decode.generate, eos=NEVER, beams=2),
    functools.partial(until_end, eos=[NEVER]),
]


def spoiled(tiny, limit):
    """The same model, whose logits are NaN from a position on."""

    def forward(state, variables, tokens, *, positions, **kwargs):
        logits, cache = tiny.forward(state, variables, tokens, positions=positions, **kwargs)
        late = positions[-logits.shape[0] :, -1:] >= limit
        return jnp.where(late, jnp.nan, logits), cache

    return tiny._replace(forward=forward)


@pytest.mark.parametrize('run', RUNS)
def test_a_broken_model_writes_no_text(tiny, prompts, run):
    """From the first token on, or from a later one."""
    short, long = (sorted(prompts, key=len)[i] for i in (0, -1))
    with pytest.raises(FloatingPointError, match='prompt 1 has a token'):
        run(*eval_tiny.broken(tiny), [short, long], new_tokens=NEW)
    bad = spoiled(tiny, len(long) + 2)
    with pytest.raises(FloatingPointError, match='prompt 1 has a token'):
        run(*bad, [short, long], new_tokens=NEW)
    assert len(run(*bad, [short, long], new_tokens=2)[1]) == 2


def test_what_comes_after_a_rows_end_is_not_looked_at(tiny, prompts, greedy):
    number = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    other = min(range(len(prompts)), key=lambda i: len(prompts[i]))
    end = greedy[number][1]
    assert end not in greedy[other]
    bad = spoiled(tiny, len(prompts[number]) + 2)
    asked = [prompts[number], prompts[other]]
    for run in (decode.generate, until_end):
        found = run(*bad, asked, new_tokens=NEW, eos=[end])
        assert tolists(found) == [greedy[number][: greedy[number].index(end)], greedy[other]]


def test_samples_depend_on_seed_and_row_not_on_the_batch(tiny, prompts):
    run = functools.partial(
        decode.generate, *tiny, prompts[:5], new_tokens=NEW, eos=NEVER, sampling=Sampling(2.0)
    )
    once = tolists(run(batch=2, seed=1))
    assert once == tolists(run(batch=5, seed=1))
    assert once != tolists(run(batch=2, seed=2))
    assert len({tuple(row) for row in tolists(run(batch=2, seed=1))}) == 5


def test_fixed_decoding_never_repeats_a_pair_of_the_prompt(tiny, prompts):
    loop = np.asarray([7, 8, 9, 7, 8, 9, 7, 8, 9, 7], np.int32)
    for i, row in enumerate(
        decode.generate(*tiny, [loop, prompts[0]], new_tokens=NEW, eos=NEVER, sampling=FIXED)
    ):
        whole = np.concatenate([(loop, prompts[0])[i], row]).tolist()
        pairs = list(itertools.pairwise(whole))
        assert len(set(pairs[-NEW:]) - set(pairs[:-NEW])) == NEW


def test_sharded_over_eight_devices(tiny, prompts, greedy):
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((4, 2, 1), ('data', 'fsdp', 'tensor'), axis_types=auto)
    layout = jp.models.base_shardings(jax.eval_shape(lambda p: p, tiny.params), mesh)
    split = jax.block_until_ready(jax.device_put(tiny.params, layout))
    found = decode.generate(
        eval_tiny.make().forward,
        tiny.state,
        split,
        tiny.model,
        prompts,
        new_tokens=NEW,
        eos=NEVER,
        batch=4,
    )
    assert tolists(found) == greedy


def test_a_prompt_without_room_is_refused(tiny):
    with pytest.raises(ValueError, match=r'prompt 1 has 60 tokens; with 6 .* positions for 59'):
        decode.generate(
            *tiny, [np.ones(3, np.int32), np.ones(60, np.int32)], new_tokens=NEW, eos=NEVER
        )


def test_the_last_positions_of_the_model_can_be_used(tiny):
    row = np.random.default_rng(1).integers(4, 61, 59, dtype=np.int32)
    found = decode.generate(*tiny, [row, row[:9]], new_tokens=NEW, eos=NEVER)[0]
    expected = row.tolist()
    for _ in range(NEW):
        logits = eval_tiny.padded_logits(tiny, [expected] * 10, 64)
        expected.append(int(logits[0][-1].argmax()))
    assert found.tolist() == expected[59:]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'sampling': Sampling(-1.0)}, 'temperature must be >= 0'),
        ({'sampling': Sampling(1.0, top_p=0.0)}, r'top_p must be in \(0, 1\]'),
        ({'sampling': Sampling(1.0), 'beams': 2}, 'beam search takes no sampling'),
        ({'new_tokens': 0}, 'new_tokens >= 1'),
    ],
)
def test_settings_out_of_range(tiny, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        decode.generate(*tiny, prompts, **({'new_tokens': NEW, 'eos': NEVER} | settings))


class TestBatches:
    def test_widths_are_few_and_pad_least(self):
        longest = [9, 9, 9, 16, 17, 90, 100]
        assert batches.widths(longest) == [16, 24, 96, 104]
        assert batches.widths(longest, price=1e6) == [104]
        assert batches.widths(longest, price=50) == [24, 104]
        assert len(batches.widths(range(1, 400))) == batches.MAX_WIDTHS

    def test_every_row_comes_once_and_whole(self):
        prompts = eval_tiny.prompts(count=11)
        prefix, made = batches.make(prompts, 4)
        assert prefix.tolist() == prompts[0][:5].tolist()
        seen = {}
        for part in made:
            assert part.tokens.shape[0] == len(part.rows) == 4
            for number, row, length in zip(part.numbers, part.tokens, part.lengths, strict=False):
                assert not row[: len(row) - length].any()
                seen[int(number)] = row[len(row) - length :].tolist()
        assert seen == {i: p[5:].tolist() for i, p in enumerate(prompts)}

    @pytest.mark.parametrize(
        ('total', 'batch', 'multiple', 'rows'),
        [(104, 32, 1, 26), (10, 4, 1, 4), (3, 32, 1, 3), (3, 32, 8, 8), (9, 8, 8, 8)],
    )
    def test_batches_are_even(self, total, batch, multiple, rows):
        _, made = batches.make([np.ones(4, np.int32)] * total, batch, multiple=multiple)
        assert {len(part.tokens) for part in made} == {rows}
        assert sum(len(part.numbers) for part in made) == total

    def test_a_prefix_is_shared_where_it_pays(self, monkeypatch):
        monkeypatch.undo()
        prompts = eval_tiny.prompts(count=11)  # 5 tokens, 10 times
        assert [len(batches.make(prompts, 4, price=p)[0]) for p in (49, 50)] == [5, 0]
        assert len(batches.make(prompts, 4, share=False)[0]) == 0

    def test_equal_prompts_keep_a_token_each(self):
        prefix, (part,) = batches.make([np.arange(1, 5)] * 3, 8)
        assert prefix.tolist() == [1, 2, 3]
        assert part.lengths.tolist() == [1, 1, 1]

    def test_compile_price_falls_with_the_model(self):
        small, large = ({'w': jnp.zeros((n, n))} for n in (10, 100))
        assert batches.compile_price(small) == 100 * batches.compile_price(large)
