"""What every worker of a benchmark knows: the shape, where files are, how many rounds.

The driver and the other sides' workers import this too, so that JAX is imported by need.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np

FULL_MODEL = 'EleutherAI/gpt-neo-125m'
QUICK_MODEL = {
    'model_type': 'gpt_neo',
    'vocab_size': 50257,  # that of GPT-2's tokenizer, which the real rows need
    'hidden_size': 32,
    'num_layers': 4,
    'num_heads': 2,
    'attention_types': [[['global', 'local'], 2]],
    'window_size': 16,
    'max_position_embeddings': 1024,
    'eos_token_id': 50256,
}
LR = 1e-4  # AdamW without decay, gradient clipped to norm 1: the same on all sides


@dataclasses.dataclass(frozen=True)
class Context:
    """Settings of a benchmark run.

    Attributes:
      work: a folder for weights, adapters and compiled programs.
      data: the folder of real data, with `commonsense/` and `tokenizers/gpt2/`.
      quick: a tiny shape, to see that everything runs; its ratios mean nothing.
      rounds: timed repetitions of each subject.
      threads: of torch: all cores, as JAX takes them.
    """

    work: str
    data: str = ''
    quick: bool = False
    rounds: int = 5
    threads: int = len(os.sched_getaffinity(0))

    @property
    def batch(self) -> int:
        """Rows of a training step."""
        return 2 if self.quick else 4

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return 32 if self.quick else 256

    @property
    def rank(self) -> int:
        """The adapters' rank."""
        return 4 if self.quick else 32

    @property
    def answers(self) -> int:
        """Labelled tokens of an answer-only step: one in 16, as in packed commonsense rows."""
        return self.batch * self.length // 16


def config_of(context: Context) -> Any:
    """The model's configuration."""
    import jaxpeft as jp

    return jp.models.from_hf(QUICK_MODEL) if context.quick else jp.models.config_of(FULL_MODEL)


def base_folder(context: Context) -> pathlib.Path:
    """The folder of the base, in Hugging Face's format; written by the first who asks.

    Random weights at the named shape, N(0, 0.02) as GPT-Neo starts; no network.
    """
    folder = pathlib.Path(context.work) / 'base'
    if not folder.exists():
        import jaxpeft as jp

        model = jp.models.build(config_of(context))
        part = folder.with_name(f'base.{os.getpid()}')
        jp.models.save_pretrained(part, model, random_params(model))
        part.rename(folder)
    return folder


def adapter_folder(context: Context, method: str, targets: str) -> pathlib.Path:
    """Where an adapter lies: in `native/` and, where PEFT knows the method, in `peft/`."""
    return pathlib.Path(context.work) / 'adapters' / f'{method}-{targets}'


def random_params(model: Any) -> dict[str, Any]:
    """Kernels and embeddings N(0, 0.02), norms 1, biases 0, float32."""
    import jaxpeft as jp

    rng = np.random.default_rng(0)

    def draw(name: str, leaf: Any) -> np.ndarray:
        if name in ('scale', 'weight'):
            return np.ones(leaf.shape, np.float32)
        if name == 'bias':
            return np.zeros(leaf.shape, np.float32)
        return np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32)

    def fill(tree: Any) -> Any:
        return {k: fill(v) if isinstance(v, dict) else draw(k, v) for k, v in tree.items()}

    return fill(jp.models.param_shapes(model))


@functools.lru_cache(maxsize=2)
def tokens(context: Context) -> np.ndarray:
    """The token ids of the training step, int32 [batch, length]."""
    vocab = config_of(context).vocab_size
    shape = (context.batch, context.length)
    return np.random.default_rng(1).integers(0, vocab, shape, dtype=np.int32)
