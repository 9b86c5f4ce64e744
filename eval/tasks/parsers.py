"""What the task files share: the parser that takes the first label it finds.

It is that of LLM-Adapters' evaluation, which the published numbers of this protocol use: the FIRST
label anywhere in the generated text, case-sensitive and with no word boundary. So 'answer12' counts
as answer1 and 'untrue' as true. It is kept so that figures compare.
"""

import re
from collections.abc import Callable


def first_of(*labels: str) -> Callable[[str], str]:
    """The parser that returns the first of `labels` in a text, '' when there is none.

    Example:
      >>> first_of('true', 'false')('it is untrue')
      'true'
    """
    pattern = re.compile('|'.join(map(re.escape, labels)))

    def parse(text: str) -> str:
        found = pattern.search(text)
        return found.group() if found else ''

    return parse
