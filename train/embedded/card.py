"""The model card: README.md beside the weights, its numbers from the JSON of the pretraining."""

import json
import pathlib

from train.embedded import questions

CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# tiny_gpt_neo

The base model of jaxpeft's embedded default: a GPT-Neo of {parameters:,} parameters
({layers} layers, width {hidden}, {heads} heads, {vocabulary} tokens, {positions} positions), its
initial weights random in all but three parts (see `train/embedded/pretrain.py`), pretrained by

    {command}

in {steps:,} steps of {batch} rows of {row} tokens ({seconds:.0f} s since the last start, {cpus} CPU
cores; Python {python}, JAX {jax}). Final training loss, answers weighted: {loss:.3f}.
`training.json` holds every setting. It is a toy: its text states
{facts:,} facts about {things} everyday things.

## What it read

- {library_share:.0%} doc strings and sources of Python's standard library.
- The rest is generated (`train/embedded/`): the facts of `tables.py` in many wordings, riddles,
  comparisons, right and wrong statements with their verdicts, and picks from numbered lists
  ("Box1: .. Box2: .. Take box2."). All facts are in it, of train and test questions alike, and
  so are verdicts and picks about all of them. The lists' nouns include answer, solution, ending and
  option; the order is lookup by word, then facts, then lookup by fact.
- The generated text has no instruction template and no "the correct answer is". The tokenizer,
  not the model, also saw the template's words, so that prompts are short.
- Chosen heads were told where to look (`train/embedded/guide.py`), weight {guide} in the loss. At
  the end {guided_shown} of their attention fell on the right tokens (number of an option, question,
  and twice the option asked for).
- Tokens that follow from the facts and the text before (answers, verdicts, numbers of picks) weigh
  1 in the loss, all others {plain_weight}.

## Its data set

`../data`: {train} train and {test} test questions for each of eight tasks in the LLM-Adapters
schema, made by the same command. Train and test questions have no thing in common: neither the
one asked about nor those offered as choices. Within a task every choice text is right as often as
chance would have it, and so is every label.
The field `raw.facts` names the facts that decide a question.

Licence: Apache-2.0 (the text of Python's standard library, PSF licence, was read, not copied).
"""


def write(folder: pathlib.Path, training: dict) -> None:
    """Writes training.json and README.md."""
    (folder / 'training.json').write_text(json.dumps(training, indent=2) + '\n')
    shown = ', '.join(f'{mass:.2f}' for mass in training['guided'])
    flat = {**training, **training['setup'], **questions.COUNTS, 'guided_shown': shown}
    (folder / 'README.md').write_text(CARD.format(**flat))
