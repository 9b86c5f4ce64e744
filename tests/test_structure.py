"""Structure features and their encoder: what they see, and what they must not see."""

import ast
import datetime
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import structure
from jaxpeft.structure.code import NODE_ID, NODES, character_ids
from jaxpeft.structure.kinds import KINDS
from tests import models_tiny, toys

SOURCE = '''\
@cache
def area(r, *, \u03c0=3.14):  # of (a circle
    """Doc with a ( bracket."""
    if r < 0:
        raise ValueError(f'{r} is [negative')
    return [\u03c0 * r ** 2,
            {'k': (r,)}]

x = area(2)
'''
TEXTS = [
    "def f(x):\n    if x:\n        return [x, (1, 'a)b')]  # )) end\n\nprint(f(2))",
    'The dog\'s tail "wagged\nand (it" didn\'t stop.\n  \t He said: "no".',
    "x = {f'{a}': rb'\\'', 'it': b}['dogs']; it's 'so' fun's'",
    'a)]} b (\n\n    \n  c { [ "\\" ( \' )',
]


def at(text, number=0):
    """Where the text begins in SOURCE, its number-th occurrence."""
    return [i for i in range(len(SOURCE)) if SOURCE.startswith(text, i)][number]


@pytest.mark.parametrize(
    ('text', 'number', 'want'),
    [
        ('@cache', 0, (0, 0, None, 0)),
        ('def', 0, (0, 0, 'FunctionDef', 1)),
        ('(r', 0, (0, 1, 'FunctionDef', 1)),
        ('\u03c0=', 0, (0, 1, 'arg', 3)),
        ('3.14', 0, (0, 1, 'Constant', 3)),
        ('):', 0, (0, 1, 'FunctionDef', 1)),
        ('# of', 0, (0, 0, 'FunctionDef', 1)),
        ('Doc', 0, (1, 0, 'Constant', 3)),
        ('raise', 0, (2, 0, 'Raise', 3)),
        ('r < 0', 0, (1, 0, 'Name', 4)),
        ('return', 0, (1, 0, 'Return', 2)),
        ('** 2', 0, (1, 1, 'BinOp', 5)),
        ('r} is', 0, (2, 1, 'JoinedStr', 5)),
        ("{'k'", 0, (1, 2, 'Dict', 4)),
        ('(r,)', 0, (1, 3, 'Tuple', 5)),
        ('x =', 0, (0, 0, 'Name', 2)),
        ('2)', 0, (0, 1, 'Constant', 3)),
    ],
)
def test_code_features_of_a_real_source(text, number, want):
    start = at(text, number)
    found = structure.code_features(SOURCE, [(0, 0), (start, start + len(text))])
    assert found['positions'].tolist() == [0, 1]
    assert found['ids'][0].tolist() == [0, 0, 0, 0]
    indent, bracket, node, depth = found['ids'][1].tolist()
    name = NODES[node - 1] if node else None
    assert (indent, bracket, name, depth) == want


def test_a_tokens_features_are_of_its_first_character_that_is_no_blank():
    start = at('\n    if r')
    ids = structure.code_features(SOURCE, [(start, start + 7), (start + 5, start + 7)])['ids']
    assert ids[0].tolist() == ids[1].tolist() == [1, 0, NODE_ID['If'], 2]
    blank = structure.code_features('x\n\n', [(1, 2)])['ids'][0]
    assert blank.tolist() == [0, 0, 0, 0]


def test_code_features_stand_other_line_ends_and_an_open_last_line():
    windows = character_ids('if x:\r\n  (y)\r\nz')
    unix = character_ids('if x:\n  (y)\nz')
    keep = [i for i, c in enumerate('if x:\r\n  (y)\r\nz') if c != '\r']
    np.testing.assert_array_equal(windows[keep][:, :2], unix[:, :2])
    assert unix[-1].tolist() == [0, 0, NODE_ID['Name'], 2]


def test_every_node_of_this_python_that_has_a_place_has_a_number():
    placed = [*ast.stmt.__subclasses__(), *ast.expr.__subclasses__(), *ast.pattern.__subclasses__()]
    names = {node.__name__ for node in placed}
    deprecated = {'Num', 'Str', 'Bytes', 'NameConstant', 'Ellipsis'}
    assert names - deprecated <= set(NODES)
    assert max(NODE_ID.values()) < KINDS['code'].sizes[2]


def test_bad_code_and_spans_are_refused():
    with pytest.raises(ValueError, match=r'not a Python program: .* in line 2'):
        structure.code_features('x = 1\nif', [(0, 1)])
    with pytest.raises(ValueError, match=r'span 1 = \(3, 9\) is outside'):
        structure.code_features('x = 1', [(0, 1), (3, 9)])


def test_series_features_are_hours_and_gaps():
    times = ['2000-01-03T00:30', '2000-01-03T01:30', '2000-01-10T01:30']
    found = structure.series_features(times)
    np.testing.assert_allclose(found['times'], [0.5, 1.5, 169.5])
    np.testing.assert_allclose(found['values'][:, 0], np.log1p([0, 1, 168]), rtol=1e-6)
    as_dates = [datetime.datetime.fromisoformat(t) for t in times]
    as_numbers = np.array(times, 'datetime64[s]').astype(np.int64)
    for other in (as_dates, as_numbers):
        jax.tree.map(np.testing.assert_array_equal, structure.series_features(other), found)
    prefix = structure.series_features(times[:2])
    jax.tree.map(lambda p, w: np.testing.assert_array_equal(p, w[:2]), prefix, found)


def test_bad_series_are_refused():
    with pytest.raises(ValueError, match='number 2 lies before'):
        structure.series_features([0, 5, 3])
    with pytest.raises(ValueError, match='missing'):
        structure.series_features(['2000-01-01', 'NaT'])


def random_graph(n=9, seed=0):
    rng = np.random.default_rng(seed)
    return np.argwhere(np.triu(rng.random((n, n)) < 0.3, 1))


def test_graph_features_follow_the_nodes_when_they_are_renumbered():
    edges = random_graph()
    found = structure.graph_features(edges, 10)['values']
    order = np.random.default_rng(1).permutation(10)
    for turned in (order[edges], order[edges][:, ::-1], np.concatenate([order[edges]] * 2)):
        other = structure.graph_features(turned, 10)['values']
        np.testing.assert_allclose(other[order], found, atol=1e-6)
    assert len(np.unique(found.round(4), axis=0)) > 5


def test_graph_features_are_their_definitions():
    edges = random_graph()
    found = structure.graph_features(edges, 10, roots=[0], steps=3)['values']
    adjacency = np.zeros((10, 10))
    adjacency[edges[:, 0], edges[:, 1]] = adjacency[edges[:, 1], edges[:, 0]] = 1
    degree = adjacency.sum(1)
    np.testing.assert_allclose(found[:, 0], np.log1p(degree) / np.log1p(degree.max()), rtol=1e-6)
    reach = [np.linalg.matrix_power(adjacency + np.eye(10), k)[0] > 0 for k in range(11)]
    depth = [next((k for k in range(11) if reach[k][i]), np.inf) for i in range(10)]
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.array(depth)), rtol=1e-6)
    assert depth[9] == np.inf  # the last node has no edge
    walk = adjacency / np.maximum(degree, 1)[:, None]
    for k in (1, 2, 3):
        power = np.linalg.matrix_power(walk, k)
        np.testing.assert_allclose(found[:, 1 + k], np.diag(power), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r'edges name nodes in \[0, num_nodes=2\)'):
        structure.graph_features([(0, 2)], 2)


@pytest.fixture(scope='module')
def tokenizer():
    return jp.models.load('embedded')[2]


@pytest.fixture(scope='module')
def tables(tokenizer):
    return structure.token_tables(tokenizer)


@functools.lru_cache
def compiled():
    return models_tiny.jit(structure.token_features)


def whole(tables, rows, segments=None):
    """positions and ids of one call, as numpy [B, T, 5]."""
    rows = jnp.asarray(rows)
    seg = jnp.ones_like(rows) if segments is None else jnp.asarray(segments)
    found, _ = compiled()(tables, rows, seg)
    return np.concatenate([found['positions'][..., None], found['ids']], axis=-1)


def read(text):
    """(depth, indent, quote) behind a prefix, one character after the other."""
    depth = indent = quote = 0
    fresh, escaped, word = True, False, ''
    for c in text:
        depth = max(0, depth + (c in '([{') - (c in ')]}'))
        if c == '\n':
            indent, fresh, quote, escaped = 0, True, 0, False
        elif fresh and c.isspace():
            indent += 4 if c == '\t' else 1
        else:
            fresh = False
        own = {"'": 1, '"': 2}.get(c, 0)
        if quote and not escaped and own == quote:
            quote, c = 0, ' '
        elif not quote and own and (own == 2 or set(word) <= set('fFrRbBuU')):
            quote = own
        escaped = bool(quote) and c == '\\' and not escaped
        word = word + c if c.isalnum() and not quote else ''
    return depth, indent, quote


@pytest.mark.parametrize('text', TEXTS)
def test_token_features_are_what_a_reader_of_the_prefix_knows(text, tokenizer, tables):
    tokens = tokenizer(text)['input_ids']
    found = whole(tables, [tokens])[0]
    for t in range(len(tokens)):
        prefix = tokenizer.decode(tokens[: t + 1], clean_up_tokenization_spaces=False)
        assert tuple(found[t])[:4] == (t, *read(prefix)), prefix
    assert found[:, 1:4].any()


def test_token_tables_know_keywords_and_special_tokens(tokenizer, tables):
    tokens = tokenizer(' return if x')['input_ids']
    assert (tables['keyword'][tokens] > 0).tolist() == [True, True, *[False] * (len(tokens) - 2)]
    assert tables['keyword'].max() < KINDS['tokens'].sizes[3]
    special = tokenizer.all_special_ids[0]
    assert {k: v[special].tolist() for k, v in tables.items()} == {
        'delta': 0, 'floor': 0, 'newline': 0, 'lead': 0, 'blank': 1, 'quote': [*range(7)],
        'keyword': 0,
    }  # fmt: skip
    padded = structure.token_tables(tokenizer, size=len(tokenizer) + 5)
    assert padded['quote'].shape == (len(tokenizer) + 5, 7)
    with pytest.raises(ValueError, match='size must be at least'):
        structure.token_tables(tokenizer, size=3)


@pytest.fixture(scope='module')
def row(tokenizer):
    """24 tokens of code."""
    return np.array(tokenizer(TEXTS[0])['input_ids'][:24])


def test_a_later_token_changes_no_earlier_feature(row, tables):
    found = whole(tables, row[None])[0]
    for cut in (1, 7, 15, 23):
        other = row.copy()
        other[cut:] = np.random.default_rng(cut).integers(0, 1024, 24 - cut)
        np.testing.assert_array_equal(whole(tables, other[None])[0, :cut], found[:cut])


def test_padding_and_packing_change_nothing(row, tables):
    found = whole(tables, row[None])[0]
    segments = np.zeros((4, 24), int)
    rows = np.full((4, 24), row[3])
    rows[0, 7:], segments[0, 7:] = row[:17], 1  # padded in front
    rows[1, :17], segments[1, :17] = row[:17], 1  # behind
    rows[2], segments[2] = np.r_[row[:10], row[:14]], [1] * 10 + [2] * 14  # packed
    rows[3, :10], segments[3, :10] = row[:10], 1  # interrupted
    rows[3, 14:], segments[3, 14:] = row[10:20], 1
    got = whole(tables, rows, segments)
    np.testing.assert_array_equal(got[0, 7:], found[:17])
    np.testing.assert_array_equal(got[1, :17], found[:17])
    np.testing.assert_array_equal(got[2, :10], found[:10])
    np.testing.assert_array_equal(got[2, 10:], found[:14])
    np.testing.assert_array_equal(got[3, 14:], found[10:20])
    assert not got[segments == 0].any()


@pytest.mark.parametrize('size', [1, 8])
def test_chunk_by_chunk_is_the_whole(size, row, tables):
    rows = np.stack([row, np.r_[row[:5], row[:19]]])
    segments = np.stack([[0] * 3 + [1] * 21, [1] * 5 + [2] * 19])
    want, last = compiled()(tables, rows, segments)
    run, carry, parts = compiled(), None, []
    for start in range(0, 24, size):
        part = slice(start, start + size)
        found, carry = run(tables, rows[:, part], segments[:, part], carry)
        parts.append(found)
    got = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    jax.tree.map(np.testing.assert_array_equal, carry, last)
    assert run._cache_size() < 12


def features_of(kind, length=6, seed=0):
    """Random features of a kind, [2, length]."""
    rng, parts = np.random.default_rng(seed), KINDS[kind]
    found = {'positions': np.tile(np.arange(length), (2, 1))}
    if parts.sizes:
        found['ids'] = np.stack([rng.integers(0, n, (2, length)) for n in parts.sizes], axis=-1)
    if parts.periods:
        found['times'] = rng.uniform(0, 9000, (2, length)).astype(np.float32)
    if parts.values:
        found['values'] = rng.random((2, length, parts.values), np.float32)
    return found


def encode(encoder, state, features):
    return np.asarray(models_tiny.jit(encoder.call, static_argnums=1)(state, None, features))


@pytest.mark.parametrize('kind', KINDS)
def test_encoder_is_of_each_token_alone_and_every_leaf_learns(kind, key):
    encoder = structure.structure_encoder(kind, dim=8, width=16, max_len=64)
    state, features = encoder.init(key), features_of(kind)
    found = encode(encoder, state, features)
    assert found.shape == (2, 6, 8)
    assert 0.1 < found.std() < 1.0
    part = encode(encoder, state, {k: v[:, 2:4] for k, v in features.items()})
    np.testing.assert_allclose(part, found[:, 2:4], atol=1e-6)
    loss = lambda p: jnp.sum(
        encoder.call(jp.State(p, {}), None, features) * jnp.asarray(found) ** 2
    )
    for name, grad in models_tiny.jit(jax.grad(loss))(state.params).items():
        assert float(jnp.abs(grad).max()) > 0, name
    with pytest.raises(ValueError, match=f"kind '{kind}' needs"):
        encoder.call(state, None, {})


@pytest.mark.parametrize('kind', ['default', 'code', 'tokens'])
def test_ids_weigh_as_much_as_positions_at_the_start(kind, key):
    """In the reference the sinusoid outweighs them 35 to 1."""
    encoder = structure.structure_encoder(kind, width=32)
    state, features = encoder.init(key), features_of(kind, 64)
    found = encode(encoder, state, features)
    shares = {}
    for name in ('positions', 'ids'):
        turned = {**features, name: np.roll(features[name], 17, axis=1)}
        shares[name] = np.mean((encode(encoder, state, turned) - found) ** 2)
    assert 0.3 < shares['ids'] / shares['positions'] < 3


def test_encoder_of_a_graph_follows_the_nodes(key):
    encoder = structure.structure_encoder('graph')
    state, order = encoder.init(key), np.random.default_rng(1).permutation(10)
    edges = random_graph()
    found, turned = (
        encode(encoder, state, {'values': structure.graph_features(e, 10)['values'][None]})
        for e in (edges, order[edges])
    )
    np.testing.assert_allclose(turned[:, order], found, atol=1e-5)


def test_periods_start_at_the_calendars_and_stay_positive(key):
    encoder = structure.structure_encoder('temporal')
    state = encoder.init(key)
    np.testing.assert_allclose(jnp.exp(state.params['period']), [24, 168, 720, 8760], rtol=1e-5)
    day = {'positions': jnp.zeros((1, 2), int), 'values': jnp.zeros((1, 2, 1))}
    daily = structure.structure_encoder('temporal', periods=[24.0])
    found = encode(daily, daily.init(key), {**day, 'times': jnp.array([[5.0, 29.0]])})
    np.testing.assert_allclose(found[0, 0], found[0, 1], atol=1e-4)
    for size in (-30.0, 30.0):
        moved = toys.moved(state, key, 0.0)
        moved.params['period'] = moved.params['period'] + size
        assert float(jnp.exp(moved.params['period']).min()) > 0
        found = encode(encoder, moved, {**day, 'times': jnp.array([[1.0, 2.0]])})
        assert np.isfinite(found).all()


def test_positions_are_bucketed_from_the_start():
    """Exact below n/2, then even in the logarithm up to max_len: the facts' formula."""
    from jaxpeft.methods.daa import bucket, lower_edges

    p = np.arange(3000)
    far = 32 + np.trunc(np.log(np.maximum(p, 32) / 32 + 1e-9) / np.log(2048 / 32) * 32)
    want = np.where(p < 32, p, np.minimum(63, far))
    got = bucket(jnp.asarray(p), lower_edges(64, 2048))
    assert np.abs(np.asarray(got) - want).max() <= 1
    assert (np.asarray(got) == want).mean() > 0.99


def test_bad_encoders_and_features_are_refused(key):
    make = structure.structure_encoder
    with pytest.raises(ValueError, match="'temporl'; nearest: temporal"):
        make('temporl')
    for options in ({'width': 7}, {'dim': 0}, {'max_len': 8}, {'num_buckets': 1}):
        with pytest.raises(ValueError, match='structure_encoder'):
            make(**options)
    with pytest.raises(ValueError, match='positive'):
        make('temporal', periods=[24.0, 0.0])
    encoder = make('tokens')
    features = features_of('tokens')
    with pytest.raises(ValueError, match=r"'ids' of kind 'tokens' has shape \[B, T, 4\]"):
        encoder.call(encoder.init(key), None, {**features, 'ids': features['ids'][..., :2]})
    with pytest.raises(ValueError, match='dict of arrays, got int'):
        encoder.call(encoder.init(key), None, 3)


def test_the_spec_rebuilds_the_encoder():
    encoder = structure.structure_encoder('tokens', dim=8, sizes=[3, 4, 5, 6])
    assert jp.methods.rebuild(encoder.spec).spec == encoder.spec


# End to end: text -> features -> P -> logits.


@pytest.fixture(scope='module')
def language_model(tables):
    """`run(state, tokens, seg, cache, carry) -> (logits, cache, carry)` and a moved state."""
    model = jp.models.build(
        models_tiny.config('qwen2', num_hidden_layers=2, vocab_size=1024, hidden_size=8)
    )
    params = jax.tree.map(jnp.asarray, models_tiny.random_params(model))
    plan = {
        jp.targets(params, ['q_proj', 'v_proj']): jp.methods.hylorada_v2(rank=2, structure_dim=8),
        '~shared/structure': structure.structure_encoder('tokens', dim=8, width=16, max_len=64),
    }
    state = jp.init(plan, jax.random.key(0), params)
    forward = jp.bind(plan, model.apply)

    def run(state, tokens, seg, cache=None, carry=None):
        features, carry = structure.token_features(tables, tokens, seg, carry)
        out = forward(
            state, {'params': params}, tokens, segment_ids=seg, cache=cache,
            side={'structure': features},
        )  # fmt: skip
        return (out, None, carry) if cache is None else (*out, carry)

    return model, params, state, models_tiny.jit(run), plan


def test_the_shared_encoder_is_one_and_the_model_starts_as_its_base(language_model, row):
    model, params, state, run, _ = language_model
    one = jp.count(jp.State(state.params['~shared'], {}))
    encoder = structure.structure_encoder('tokens', dim=8, width=16)
    assert one == sum(leaf.size for leaf in jax.tree.leaves(encoder.init(jax.random.key(0))))
    rows, seg = jnp.asarray(row)[None], jnp.ones((1, 24), int)
    plain = models_tiny.jit(model.apply)({'params': params}, rows, segment_ids=seg)
    assert toys.worst(run(state, rows, seg)[0], plain) < 1e-4
    # It acts: other features, other logits.
    moved = toys.moved(state, jax.random.key(1), 0.5)
    other = moved._replace(params={**moved.params, '~shared': state.params['~shared']})
    assert toys.worst(run(moved, rows, seg)[0], run(other, rows, seg)[0]) > 1e-3


def test_no_logit_depends_on_later_text_or_on_padding(language_model, row):
    state, run = toys.moved(language_model[2], jax.random.key(1), 0.5), language_model[3]
    rows, seg = jnp.asarray(row)[None], jnp.ones((1, 24), int)
    want = run(state, rows, seg)[0]
    for cut in (5, 16):
        assert (
            toys.worst(run(state, rows.at[:, cut:].set(8), seg)[0][:, :cut], want[:, :cut]) < 1e-5
        )
    shifted = jnp.concatenate([jnp.full((1, 6), 8), rows[:, :18]], axis=1)
    padded = run(state, shifted, seg.at[:, :6].set(0))[0]
    assert toys.worst(padded[:, 6:], want[:, :18]) < 1e-4


def test_decoding_with_a_cache_gives_the_same_logits(language_model, row):
    model, _, state, run, _ = language_model
    state = toys.moved(state, jax.random.key(1), 0.5)
    rows, seg = jnp.asarray(row)[None], jnp.ones((1, 24), int).at[:, :2].set(0)
    want = run(state, rows, seg)[0]
    cache, carry, parts = model.init_cache(1, 24), None, []
    for start, end in itertools.pairwise((0, 16, 17, 18, 19)):
        out, cache, carry = run(state, rows[:, start:end], seg[:, start:end], cache, carry)
        parts.append(out)
    assert toys.worst(jnp.concatenate(parts, axis=1)[:, 2:], want[:, 2:19]) < 1e-4


def test_an_adapter_with_its_encoder_is_saved_and_loaded(language_model, tmp_path):
    _, params, state, _, plan = language_model
    state = toys.moved(state, jax.random.key(1))
    jp.save_adapter(tmp_path / 'adapter', plan, state, params)
    loaded_plan, loaded = jp.load_adapter(tmp_path / 'adapter', params)
    assert loaded_plan['~shared/structure'].spec == plan['~shared/structure'].spec
    assert toys.worst(loaded.params, state.params) == 0
