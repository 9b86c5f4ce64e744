"""WinoGrande: which of two names fills the blank."""

from eval.tasks.parsers import first_of
from train.benchmarks.winogrande import LABELS, NAME

__all__ = ['LABELS', 'NAME', 'parse']

parse = first_of('option1', 'option2')
