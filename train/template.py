"""The prompt, one text for training and evaluation alike.

Two styles (facts: LLM-Adapters 4.2, HiRA 4.4; both end the preamble with two blanks):
  flat          HiRA's: no indentation; the default.
  llm-adapters  LLM-Adapters' training form: each line after the preamble indented by 16 spaces,
                and the line between two sections holds 16 spaces. Its evaluation form differs (one
                blank after the preamble, empty lines between sections); here evaluation uses the
                training form too, since a model should be asked as it was taught.

Where the prompt ends and the target begins: after the line break of '### Response:'. In the
indented style the last of the 16 spaces goes to the target (' the correct ...'): byte-level BPE
takes a space together with the word after it, so the parts tokenise as the whole would. In both
styles `prompt(row, style) + target(row.output, style)` is the reference's training text, character
for character.
"""

from train.near import nearest
from train.rows import Row

PROMPT_STYLES = ('flat', 'llm-adapters')

_PLAIN = (
    'Below is an instruction that describes a task. '
    'Write a response that appropriately completes the request.  '
)
_WITH_INPUT = (
    'Below is an instruction that describes a task, '
    'paired with an input that provides further context. '
    'Write a response that appropriately completes the request. '
)
_INDENT = {'flat': '', 'llm-adapters': ' ' * 16}
_LEAD = {'flat': '', 'llm-adapters': ' '}  # the part of the last indent that the target carries


def check_style(style: str) -> None:
    """Raises ValueError for a style that does not exist."""
    if style not in PROMPT_STYLES:
        raise ValueError(f'no prompt style {style!r}; {nearest(style, PROMPT_STYLES)}')


def closing(style: str) -> str:
    """The end of every prompt: what is never cut."""
    check_style(style)
    indent = _INDENT[style]
    return f'\n{indent}\n{indent}### Response:\n{indent[len(_LEAD[style]) :]}'


def parts(row: Row, style: str) -> tuple[str, str]:
    """The prompt as (head, body), to be tokenised one by one.

    Without an input the body is everything. With one the head ends before the input, so that a long
    input can be cut from its own beginning and the question stays (see train.encoding).
    """
    check_style(style)
    indent = _INDENT[style]
    question = f'\n\n{indent}### Instruction:\n{indent}{row.instruction}'
    if not row.input:
        return '', f'{_PLAIN}{question}{closing(style)}'
    head = f'{_WITH_INPUT}{question}\n{indent}\n{indent}### Input:\n'
    return head, f'{indent}{row.input}{closing(style)}'


def prompt(row: Row, style: str = 'flat') -> str:
    """The text that the model reads; `row.output` is not looked at.

    Example:
      >>> prompt(Row('Is ice cold?', '', 'yes', 'yes', ''))[-28:]
      'Is ice cold?\\n\\n### Response:\\n'
    """
    return ''.join(parts(row, style))


def target(output: str, style: str = 'flat') -> str:
    """The text that follows the prompt: what is learned, generated and scored."""
    check_style(style)
    return _LEAD[style] + output
