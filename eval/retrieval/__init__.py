"""Lost in the middle, measured: is a fact found wherever in a long prompt it stands?

words    the words that prompts are made of
prompts  deterministic prompts of a given length with the fact at a given depth
measure  accuracy and log-likelihood of the answer by depth and length, and the middle gap
show     the figures as a table, as Markdown, and as a heat-map
"""

from eval.retrieval.prompts import TASKS as TASKS
from eval.retrieval.prompts import Item as Item
from eval.retrieval.prompts import build as build
from eval.retrieval.scores import measure as measure
