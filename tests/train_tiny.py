"""A tiny model, its tokenizer and a data set, written to a folder for the tests of train."""

import json
import pathlib
import random

import jax
import jax.numpy as jnp

import jaxpeft as jp
from jaxpeft.models.spread import Spread
from train import config as configs

TEXT = """Below is an instruction that describes a task . Write response appropriately completes the
request # Instruction Response : please answer with the correct format true false red green blue big
small old new cat dog bird fish house tree"""
WORDS = TEXT.split()
SUBJECTS = ('cat', 'dog', 'bird', 'fish', 'house', 'tree')
KINDS = ('red', 'green', 'blue', 'big', 'small', 'old', 'new')
END = '<end>'


def where(batch):
    """What a forward pass over a micro-batch is told beside its tokens."""
    told = {name: batch[name] for name in ('positions', 'segment_ids')}
    if 'take' in batch:
        told['spread'] = Spread(batch['take'], batch['back'])
    return told


def write_tokenizer(folder: pathlib.Path) -> int:
    """A word-level tokenizer in HF's files; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(dict.fromkeys(['<unk>', END, *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token='<unk>'
    ).save_pretrained(folder)
    return len(vocab)


def write_model(folder: pathlib.Path, layers: int = 2, hidden: int = 32) -> pathlib.Path:
    """A random GPT-Neo in HF's format, with a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-write_tokenizer(folder) // 8) * 8
    config = jp.models.ModelConfig(
        model_type='gpt_neo',
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=hidden // 4,
        max_positions=128,
        activation='gelu_new',
        norm_eps=1e-5,
        tie_embeddings=True,
        windows=(None, 8) * (layers // 2),
        eos_token_ids=(1,),
    )
    model = jp.models.build(config)
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(1), tokens)['params']
    # Larger than an initial model's, so that the base already says something and adapting matters.
    params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)
    jp.models.save_pretrained(folder, model, params)
    return folder


def write_data(file: pathlib.Path, rows: int = 96) -> pathlib.Path:
    """Statements that are true when subject and kind come from the same half of their lists."""
    draw = random.Random(0)
    with file.open('w') as out:
        for _ in range(rows):
            s, k = draw.randrange(len(SUBJECTS)), draw.randrange(len(KINDS))
            extra = ' '.join(draw.choices(WORDS, k=draw.randrange(12)))
            answer = 'true' if (s < 3) == (k < 3) else 'false'
            row = {
                'instruction': f'{extra} {SUBJECTS[s]} is {KINDS[k]}',
                'input': '',
                'output': f'the correct answer is {answer}',
                'answer': answer,
            }
            print(json.dumps(row), file=out)
    return file


def flags(folder: pathlib.Path, *more: str) -> list[str]:
    """A short command line on the files in `folder`; `more` wins over it."""
    return [
        f'--model_name={folder / "model"}',
        f'--dataset={folder / "data.jsonl"}',
        f'--run_dir={folder / "run"}',
        '--r_ab=4',
        '--target_modules=q_proj,v_proj',
        '--max_length=48',
        '--batch=8',
        '--lr=1e-2',
        '--max_steps=6',
        '--val_size=16',
        '--eval_steps=3',
        '--save_steps=2',
        '--log_steps=1',
        '--eval_tasks=none',
        *more,
    ]


def config(folder: pathlib.Path, *more: str) -> configs.Config:
    """The same as a resolved configuration."""
    from train import cli

    return cli.parse(flags(folder, *more))[0]


def write_all(folder: pathlib.Path) -> pathlib.Path:
    """`folder/model` and `folder/data.jsonl`."""
    write_model(folder / 'model')
    write_data(folder / 'data.jsonl')
    return folder
