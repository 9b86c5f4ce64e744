"""From rows to figures: ask every question in one decoding, and summarise by task."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval import decode, questions, scoring, stats, tasks
from eval.bar import rows_bar
from eval.questions import Question
from eval.sampling import GREEDY, Sampling
from jaxpeft.near import nearest
from train.rows import Row

DECODINGS = ('loglik', 'greedy', 'beam', 'fixed')

# What the reference program calls 'fixed' decoding. Its length_penalty and early_stopping act on
# beams only and it has one beam, so they have no effect there and no place here.
FIXED = Sampling(temperature=0.3, top_k=10, top_p=0.8, repetition_penalty=1.5, no_repeat_ngram=2)
FIXED_WARNING = (
    "'fixed' decoding reproduces the reference program and should not be reported: it samples, so "
    'accuracy depends on the seed; its repetition penalty (1.5) and its ban of repeated pairs of '
    'tokens count the PROMPT, which names the labels, so the right answer is often forbidden. '
    'Use --decoding loglik or greedy.'
)
_FIXED_ENDS = ('Q:', 'R:')  # where the reference cuts the text, besides the end token


class Answer(NamedTuple):
    """The model's answer: `label` ('' when unparsable) and the text or the scores behind it."""

    question: Question
    label: str
    text: str | None
    scores: list[float] | None

    def record(self) -> dict:
        """One line of the predictions file."""
        q = self.question
        said = (
            {'text': self.text}
            if self.scores is None
            else {'scores': dict(zip(q.labels, self.scores, strict=True))}
        )
        return {
            'task': q.task,
            'row': q.number,
            'answer': q.row.answer,
            'prediction': self.label,
            'correct': self.label == q.row.answer,
            **said,
            'instruction': q.row.instruction,
        }


def evaluate(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    tokenizer: Any,
    *,
    tasks: Sequence[str],
    rows: Mapping[str, Sequence[Row]],
    style: str = 'flat',
    decoding: str = 'loglik',
    batch: int = 32,
    max_new_tokens: int = 16,
    progress: bool = True,
    beams: int = 4,
    seed: int = 0,
    answers: list[Answer] | None = None,
) -> dict:
    """Accuracy on benchmarks.

    Args:
      forward: `jp.bind(plan, model.apply)`; for the bare base `jp.bind({}, model.apply)`.
      state: the adapter; for the bare base `jp.State({}, {})`.
      params: the base.
      model: the Linen module.
      tokenizer: its tokenizer.
      tasks: names or aliases of benchmarks.
      rows: their rows, by canonical name.
      style: prompt style, the one that was trained with.
      decoding: 'loglik' compares the labels' log-likelihoods; 'greedy', 'beam' and 'fixed' generate
        and parse.
      batch: rows at once; no prediction depends on it.
      max_new_tokens: how much is generated.
      progress: show a bar.
      beams: of 'beam'.
      seed: of 'fixed'.
      answers: when given, every answer is appended to it, in the order of the rows.

    Returns:
      {"tasks": {name: {"n", "accuracy", "interval", "majority", "parsable", "histogram"}}, "mean",
      "majority_mean", "tasks_in_mean"}.

    Raises:
      ValueError: unknown decoding or task, a task without rows, no end token, or a prompt longer
        than the model's positions.
      FloatingPointError: a likelihood or logits that are not finite.
    """
    names = _names(tasks, rows)
    if decoding == 'fixed':
        print(f'warning: {FIXED_WARNING}', file=sys.stderr)
    asked = questions.build({name: rows[name] for name in names}, tokenizer, style)
    labels = sum(len(q.outputs) for q in asked)
    total, unit = (labels, 'labels') if decoding == 'loglik' else (len(asked), 'rows')
    with rows_bar(decoding, total, progress, unit) as advance:
        said = _ask(
            (forward, state, params, model), tokenizer, asked, decoding,
            batch=batch, new_tokens=max_new_tokens, beams=beams, seed=seed, advance=advance,
        )  # fmt: skip
    if answers is not None:
        answers.extend(said)
    return stats.headline({name: _summary(name, said) for name in names})


def _names(asked: Sequence[str], rows: Mapping[str, Sequence[Row]]) -> list[str]:
    names = list(dict.fromkeys(tasks.get(task).NAME for task in asked))
    for name in names:
        if not rows.get(name):
            raise ValueError(f'no rows of {name} to evaluate; there are rows of {sorted(rows)}')
    if not names:
        raise ValueError('no task to evaluate')
    return names


def _summary(name: str, said: Sequence[Answer]) -> dict:
    own = [a for a in said if a.question.task == name]
    golds = [a.question.row.answer for a in own]
    return stats.summarise(golds, [a.label for a in own], tasks.get(name).LABELS)


def _ask(parts, tokenizer, asked, decoding, *, batch, new_tokens, beams, seed, advance):
    """The answers to `asked`, in its order."""
    if decoding not in DECODINGS:
        raise ValueError(f'no decoding {decoding!r}; {nearest(decoding, DECODINGS)}')
    positions = parts[-1].config.max_positions
    questions.check_lengths(asked, positions, None if decoding == 'loglik' else new_tokens)
    prompts = [q.prompt for q in asked]
    if decoding == 'loglik':
        outputs = [q.outputs for q in asked]
        scores = scoring.loglik(*parts, prompts, outputs, batch=batch, advance=advance)
        return [_best(q, s) for q, s in zip(asked, scores, strict=True)]
    eos = decode.ends(tokenizer, parts[-1].config)
    tokens = decode.generate(
        *parts, prompts,
        new_tokens=new_tokens, eos=eos, batch=batch, seed=seed, advance=advance,
        sampling=FIXED if decoding == 'fixed' else GREEDY,
        beams=beams if decoding == 'beam' else 1,
    )  # fmt: skip
    cuts = _FIXED_ENDS if decoding == 'fixed' else ()
    return [_parse(q, tokenizer, t, cuts) for q, t in zip(asked, tokens, strict=True)]


def _best(question: Question, scores: np.ndarray) -> Answer:
    label = question.labels[int(np.argmax(scores))]
    return Answer(question, label, None, [float(s) for s in scores])


def _parse(question: Question, tokenizer: Any, tokens: np.ndarray, ends: tuple[str, ...]) -> Answer:
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    for end in ends:
        text = text.partition(end)[0]
    return Answer(question, tasks.get(question.task).parse(text), text, None)
