"""Log-likelihood of each row's labels: one prefill a row, then only the tokens that differ.

The score of a label is the sum of the token log-probabilities of the output that training would
have shown ('the correct answer is answer2'), without the end token. Whatever tokens a row's labels
have in common at the front add the same number to each, so they join the prompt and are not
counted. With the tokenizers of GPT-2, SmolLM2 and Qwen one token is left, and the prefill's last
logits score all labels at once; longer remainders continue from the cache, all labels from the same
one. There is no length normalisation: the labels of a task differ in one word.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval import batches, likelihood
from eval.likelihood import Pair, Shape


def loglik(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    prompts: Sequence[np.ndarray],
    outputs: Sequence[Sequence[np.ndarray]],
    *,
    batch: int = 16,
    advance: Callable[[int], Any] = lambda rows: None,
) -> list[np.ndarray]:
    """Scores every candidate output of every prompt.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base.
      model: the Linen module (for its cache).
      prompts: token arrays.
      outputs: for each prompt, the tokens of each candidate (at least one token, any number).
      batch: rows a batch; changes speed only.
      advance: called with the candidates done after each batch.

    Returns:
      For each prompt float32 [candidates]: log-probabilities up to a constant of the row.

    Raises:
      FloatingPointError: a log-probability that is not finite.
    """
    pairs: list[Pair] = []
    groups: list[list[int]] = []
    for prompt, own in zip(prompts, outputs, strict=True):
        context, tails = _split(prompt, own)
        groups.append(list(range(len(pairs), len(pairs) + len(tails))))
        pairs += [Pair(context, tail) for tail in tails]
    if not pairs:
        return []
    # one shape, one program: where a token is left, a candidate more costs nothing
    shape = Shape(max(map(len, groups)), max(len(pair.continuation) for pair in pairs))
    parts = (forward, state, params, model)
    found = likelihood.grouped(parts, pairs, {shape: groups}, batch, advance)
    return [np.array([found[i][0] for i in own], np.float32) for own in groups]


def _split(prompt: np.ndarray, outputs: Sequence[np.ndarray]):
    """(prompt and what all outputs begin with, what is left of each: at least one token)."""
    common = batches.shared_prefix(outputs)
    return np.concatenate([prompt, outputs[0][:common]]), [o[common:] for o in outputs]
