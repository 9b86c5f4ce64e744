"""What both sides are given: real rows of the eight commonsense tasks, and prompts."""

import functools
import gzip
import itertools
import json
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.bench.context import Context, base_folder, config_of
from eval.bench.rows import TIMED
from eval.questions import Question, build
from train import benchmarks, common, data
from train.batching import Batcher
from train.rows import Row, to_row

# Rows in a hundred of commonsense_170k; the local HellaSwag file is the test split's.
SHARES = {
    'boolq': 6, 'piqa': 9, 'social_i_qa': 20, 'hellaswag': 23, 'winogrande': 37, 'ARC-Easy': 1,
    'ARC-Challenge': 1, 'openbookqa': 3,
}  # fmt: skip
MAX_LENGTH = 256
END = '<|endoftext|>'


def rows(context: Context, task: str, count: int, split: str = 'train') -> list[Row]:
    """The first rows of a task's file.

    Raises:
      FileNotFoundError: where this machine does not have the real data.
    """
    folder = pathlib.Path(context.data) / 'commonsense'
    name = benchmarks.get(task).NAME
    file = folder / f'{name}.{split}.jsonl.gz'
    file = file if file.exists() else folder / f'{name}.test.jsonl.gz'
    with gzip.open(file, 'rt') as lines:
        return [to_row(json.loads(line), name) for line in itertools.islice(lines, count)]


def tokenizer(context: Context) -> Any:
    """GPT-2's, which GPT-Neo has, from its vocabulary and merges.

    Raises:
      FileNotFoundError: where this machine does not have them.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = pathlib.Path(context.data) / 'tokenizers' / 'gpt2'
    vocab = json.loads(gzip.decompress((folder / 'vocab.json.gz').read_bytes()))
    lines = gzip.decompress((folder / 'merges.txt.gz').read_bytes()).decode().splitlines()
    pairs = (line.split() for line in lines if not line.startswith('#version'))
    merges = [(left, right) for left, right in pairs]
    inner = Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, bos_token=END)


@functools.lru_cache(maxsize=1)
def batcher(context: Context) -> Batcher:
    """The examples of the run in the order that both sides see, 16 an update (4 if quick)."""
    size = 4 if context.quick else 16
    mixed = [row for task, n in SHARES.items() for row in rows(context, task, 4 * n)]
    examples = data.encode(mixed, tokenizer(context), max_length=MAX_LENGTH)
    return Batcher(examples, size, max_length=MAX_LENGTH, steps=1 + (1 + TIMED) * context.rounds)


class Packed(NamedTuple):
    """Our batches of the same examples.

    Attributes:
      at: the arrays of the update that follows so many.
      fresh: of the updates timed here, one of each shape.
    """

    at: Callable[[int], dict[str, np.ndarray]]
    fresh: list[int]


def packed(context: Context) -> Packed:
    """Packed as `train.run` packs an epoch of commonsense_170k: labels apart, a few shapes."""
    from train import config, feed, mesh

    plain = batcher(context)
    epoch = common.ROWS // plain.batch
    setting = config.Config(
        adapter=config.Adapter(method='lora'),  # of methods on kernels none makes a difference
        model=config.Model(model_name=str(base_folder(context))),
        data=config.Data(max_length=MAX_LENGTH, val_size=0),
        optim=config.Optim(batch=plain.batch, max_steps=epoch, seed=plain.seed),
    )
    made, _ = feed.batchers(setting, list(plain.examples), mesh.make('1,1,1'))
    fresh = {made.fits(step): step for step in range(plain.steps)}
    at = lambda step: {name: x for name, x in made.at(step).items() if name != 'rows'}
    return Packed(at, list(fresh.values()))


def padded(context: Context, step: int, pad: int) -> dict[str, np.ndarray]:
    """The same update's examples as transformers' collator pads them: to the longest, times 8.

    Returns:
      input_ids, attention_mask, labels: int64 [B, T]; labels are -100 on prompt and padding.
    """
    made = batcher(context)
    chosen = [made.examples[i] for i in made.indices(step).ravel()]
    width = -(-max(len(e.tokens) for e in chosen) // 8) * 8
    ids = np.full((len(chosen), width), pad, np.int64)
    mask, labels = np.zeros_like(ids), np.full_like(ids, -100)
    for row, example in enumerate(chosen):
        length = len(example.tokens)
        ids[row, :length], mask[row, :length] = example.tokens, 1
        labels[row, :length] = np.where(example.labelled, example.tokens, -100)
    return {'input_ids': ids, 'attention_mask': mask, 'labels': labels}


def asked(context: Context) -> list[Question]:
    """Test questions of the eight tasks, 2 of each (1 if quick), with their labels."""
    each = 1 if context.quick else 2  # torch needs half a minute for them
    found = {task: rows(context, task, each, 'test') for task in benchmarks.EIGHT}
    return build(found, tokenizer(context), 'flat')


def spread(scores: Sequence[np.ndarray]) -> float:
    """One number that two scorings agree on if their rows do.

    Scores are up to a constant of the row: the root of the mean square after the row's mean is
    taken out, which weighs every label of every row.
    """
    flat = np.concatenate([np.asarray(row, np.float64) - np.mean(row) for row in scores])
    return float(np.sqrt(np.mean(flat**2)))


def new_tokens(context: Context) -> int:
    """Tokens that generation adds to each row."""
    return 8 if context.quick else 32


def prompts(context: Context, count: int) -> list[np.ndarray]:
    """Prompts of random tokens, all of one length, so that nobody pads."""
    length = 16 if context.quick else 64
    vocab = config_of(context).vocab_size
    return list(np.random.default_rng(3).integers(0, vocab, (count, length), dtype=np.int32))


def digest(texts: Sequence[np.ndarray]) -> float:
    """A checksum of all tokens in their order: two generations have the same where they agree."""
    whole = b''.join(np.asarray(row, '<i4').tobytes() for row in texts)
    return float(zlib.crc32(whole))
