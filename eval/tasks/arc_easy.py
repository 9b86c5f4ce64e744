"""ARC-Easy: science questions of school exams; most rows have four choices, some three or five."""

from eval.tasks.parsers import first_of
from train.benchmarks.arc_easy import LABELS, NAME

__all__ = ['LABELS', 'NAME', 'parse']

parse = first_of('answer1', 'answer2', 'answer3', 'answer4', 'answer5')
