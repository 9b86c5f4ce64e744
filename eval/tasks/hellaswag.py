"""HellaSwag: which of four endings continues a scene."""

from eval.tasks.parsers import first_of
from train.benchmarks.hellaswag import LABELS, NAME

__all__ = ['LABELS', 'NAME', 'parse']

parse = first_of('ending1', 'ending2', 'ending3', 'ending4')
