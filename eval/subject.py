"""What is evaluated: a run's adapter on its base, or a bare base."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

import jaxpeft as jp
from train import data
from train import model as train_model


class Subject(NamedTuple):
    """A model ready to be asked.

    forward, state, params, model, tokenizer: as `eval.evaluate` takes them.
    plan: of the adapter, {} for a bare base.
    folder: the run directory that results go to.
    style: the prompt style it was trained with ('flat' for a bare base).
    data_dir: where its benchmarks lie ('' is the hub).
    identity: what makes it this model and no other, as JSON.
    """

    forward: Callable
    state: jp.State
    params: Any
    model: Any
    tokenizer: Any
    plan: dict[str, Any]
    folder: pathlib.Path
    style: str
    data_dir: str
    identity: dict[str, Any]


def load(ckpt: str, model_name: str, method: str, dtype: str) -> Subject:
    """Reads `--ckpt RUN` (with `--method none` its base), or the bare base `--model_name X`.

    With both, it is the run's adapter on the base that now lies at `model_name`; the adapter's
    checksums say whether that is the same base.

    Raises:
      ValueError: neither of them, a method other than none, or a model without tokenizer.
      FileNotFoundError: a run or model that is not there.
    """
    if not (ckpt or model_name):
        raise ValueError(
            'give --ckpt RUN for a run of train.run, or --model_name NAME for a bare base model; '
            'neither came'
        )
    if method not in ('', 'none'):
        raise ValueError(
            f'--method {method!r}: an adapter comes from its run (--ckpt RUN); the only method to '
            'ask for here is none, the bare base'
        )
    bare = method == 'none' or not ckpt
    found = _run(ckpt, bare, model_name) if ckpt else _base(model_name, dtype)
    if found.tokenizer is None:
        raise ValueError(
            f'{found.identity["model_name"]} has no tokenizer files: questions are text'
        )
    return found


def _run(ckpt: str, bare: bool, base: str = '') -> Subject:
    run = train_model.load_run(ckpt, base)
    folder, config = pathlib.Path(ckpt), run.config
    embedded = config.data.dataset == 'embedded'
    weights = (folder / 'adapter' / 'adapter_model.safetensors').read_bytes()
    return Subject(
        jp.bind({}, run.model.apply) if bare else run.forward,
        jp.State({}, {}) if bare else run.state,
        run.params,
        run.model,
        run.tokenizer,
        {} if bare else run.plan,
        folder,
        config.data.template,
        str(data.ASSETS) if embedded else config.data.data_dir,
        {
            'model_name': config.model.model_name,
            'dtype': config.model.dtype,
            'method': 'none' if bare else config.adapter.method,
            'adapter': None if bare else hashlib.sha256(weights).hexdigest()[:16],
        },
    )


def _base(name: str, dtype: str) -> Subject:
    model, params, tokenizer = jp.models.load(name, dtype=jnp.dtype(dtype))
    return Subject(
        jp.bind({}, model.apply),
        jp.State({}, {}),
        params,
        model,
        tokenizer,
        {},
        pathlib.Path('runs') / f'base-{pathlib.PurePath(name).name}',
        'flat',
        str(data.ASSETS) if name == 'embedded' else '',
        {'model_name': name, 'dtype': dtype, 'method': 'none', 'adapter': None},
    )
