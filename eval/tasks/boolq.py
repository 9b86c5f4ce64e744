"""BoolQ: a yes/no question, closed book (LLM-Adapters leaves the passage out)."""

from eval.tasks.parsers import first_of
from train.benchmarks.boolq import LABELS, NAME

__all__ = ['LABELS', 'NAME', 'parse']

parse = first_of('true', 'false')
