"""`python -m eval.generate --ckpt RUN --prompt "..."`: what a run's model answers."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import tyro

import jaxpeft as jp
from eval import cli, decode, files, subject
from eval.bar import rows_bar
from eval.sampling import Sampling
from eval.subject import Subject
from train import data, errors
from train.rows import Row
from train.rundir import write_json

DESCRIPTION = """Generate text from a run's adapter, or from a bare base model.
Prompts run in batches, with a key/value cache; greedy unless --temperature or --num_beams says
otherwise."""

_FREE = (
    'ckpt',
    'model_name',
    'method',
    'dtype',
    'batch',
    'out',
    'traceback',
)  # no part of a result


@dataclasses.dataclass(frozen=True)
class Args:
    """What to generate from, and how."""

    ckpt: str = ''
    """Directory of a run of train.run."""
    model_name: str = ''
    """A bare base model (hub id, folder, or embedded) instead of a run."""
    method: str = ''
    """none: the run's base without the adapter."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A prompt; give the flag once for each."""
    raw: bool = False
    """Take the prompt as it is. Otherwise it is an instruction, put into the template
    that the run was trained with."""
    merge: bool = False
    """Merge the adapter into the base's weights first (float32), instead of running beside them."""
    max_new_tokens: int = 32
    """Tokens to generate at most."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach p; 1 is all."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of the prompt and of the text so far become less likely."""
    seed: int = 0
    """Seed of the samples."""
    num_beams: int = 1
    """Above 1: beam search."""
    batch: int = 16
    """Prompts at once; no result depends on it."""
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Type of a bare base's weights; a run has its own."""
    out: str = ''
    """Write prompts and texts to this file too, as JSON."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: list[str]) -> None:
    args = cli.parse(Args, argv, 'python -m eval.generate', DESCRIPTION)
    if not args.prompt or not all(args.prompt):
        raise ValueError('give at least one --prompt "...", and none that is empty')
    model = subject.load(args.ckpt, args.model_name, args.method, args.dtype)
    settings = {k: v for k, v in dataclasses.asdict(args).items() if k not in _FREE}
    config = model.identity | json.loads(json.dumps(settings))
    if args.out:
        files.check_free(pathlib.Path(args.out), config)
    texts = texts_for(args, merged(model) if args.merge else model)
    for prompt, text in zip(args.prompt, texts, strict=True):
        print(f'> {prompt}\n{text}\n')
    if args.out:
        pairs = [{'prompt': p, 'text': t} for p, t in zip(args.prompt, texts, strict=True)]
        write_json(pathlib.Path(args.out), {'config': config, 'texts': pairs})
        print(args.out)


def merged(model: Subject) -> Subject:
    """The same model with its adapter in the weights, which are float32 and computed with as such.

    A bfloat16 module would round them first, and a small adapter away.
    """
    wide = model.model.clone(dtype=jnp.float32)
    return model._replace(
        forward=jp.bind({}, wide.apply),
        model=wide,
        state=jp.State({}, {}),
        params=jp.merge(model.plan, model.state, model.params),
        plan={},
    )


def texts_for(args: Args, model: Subject) -> list[str]:
    """The generated text of each prompt, without the prompt.

    Raises:
      ValueError: settings out of range, a model without end token, a prompt that is too long.
      FloatingPointError: logits that are not finite.
    """
    tokenizer = model.tokenizer
    ends = decode.ends(tokenizer, model.model.config)
    if args.raw:
        prompts = [np.asarray(tokenizer(text)['input_ids'], np.int32) for text in args.prompt]
    else:
        asked = [Row(text, '', '', '', 'prompt') for text in args.prompt]
        prompts = data.prompt_tokens(asked, tokenizer, style=model.style, room=1 << 30)
    with rows_bar('generate', len(prompts), len(prompts) > args.batch) as advance:
        tokens = decode.generate(
            model.forward,
            model.state,
            model.params,
            model.model,
            prompts,
            new_tokens=args.max_new_tokens,
            eos=ends,
            batch=args.batch,
            sampling=Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty),
            beams=args.num_beams,
            seed=args.seed,
            advance=advance,
        )
    return [tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in tokens]


if __name__ == '__main__':
    sys.exit(main())
