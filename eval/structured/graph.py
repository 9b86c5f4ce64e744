"""Questions about the nodes of a graph that is written out in front of them.

    (a b) x EDGES   ROOT r   (DEGREE x n | DEPTH x n) x QUESTIONS

Each row is a graph of its own: EDGES pairs of NODES nodes in a random order. The answer to DEGREE x
is the number of edges at x, to DEPTH x the length of the shortest way from the root, or NEVER. Only
answers are labelled. Every method reads the edges; the features say what follows from them: degree,
depth and return probabilities of the node that a token names (`jaxpeft.structure.graph_features`).
The graph lies wholly in the prompt, so nothing labelled lies in front of what the features know.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from eval.structured.series import padded_features
from eval.structured.task import Features, Hidden, Part, Task, part
from jaxpeft import structure

NODES = 8
EDGES = 8
QUESTIONS = 8
ANSWERS = NODES + 1  # 0 to NODES - 1, and NEVER
NEVER = NODES
# Ids: nodes, answers, three words.
ANSWER = NODES
ROOT, DEGREE, DEPTH = range(ANSWER + ANSWERS, ANSWER + ANSWERS + 3)
VOCABULARY = DEPTH + 1
PROMPT = 2 * EDGES + 2
LENGTH = PROMPT + 3 * QUESTIONS
PAIRS = np.argwhere(np.triu(np.ones((NODES, NODES)), 1))


class Raw(NamedTuple):
    """Edges [N, EDGES, 2], roots [N]; of each question [N, QUESTIONS] what, and of which node."""

    edges: np.ndarray
    roots: np.ndarray
    depth_asked: np.ndarray
    nodes: np.ndarray


def draw(rows: int, seed: Any) -> Raw:
    """Random graphs and questions."""
    rng = np.random.default_rng(seed)
    edges = np.stack([PAIRS[rng.permutation(len(PAIRS))[:EDGES]] for _ in range(rows)])
    turned = rng.random((rows, EDGES)) < 0.5
    edges = np.where(turned[..., None], edges[..., ::-1], edges)
    roots = rng.integers(0, NODES, rows)
    asked = rng.random((rows, QUESTIONS)) < 0.5
    return Raw(edges, roots, asked, rng.integers(0, NODES, (rows, QUESTIONS)))


def truths(edges: np.ndarray, root: int) -> tuple[np.ndarray, np.ndarray]:
    """(degree, depth) of each node; NEVER where no way leads from the root.

    Example:
      >>> [x.tolist() for x in truths(np.array([[0, 1], [1, 2]]), 0)]
      [[1, 2, 1, 0, 0, 0, 0, 0], [0, 1, 2, 8, 8, 8, 8, 8]]
    """
    degree = np.bincount(edges.ravel(), minlength=NODES)
    depth = np.full(NODES, NEVER)
    front, steps = {root}, 0
    while front:
        depth[list(front)] = steps
        steps += 1
        beside = {int(y) for x in front for e in edges if x in e for y in e}
        front = {node for node in beside if depth[node] == NEVER}
    return degree, depth


def tokens_of(raw: Raw, answers: np.ndarray) -> np.ndarray:
    """Token ids [N, LENGTH]; `answers` [ANSWERS]: which token says which answer."""
    rows = []
    for edges, root, asked, nodes in zip(*raw, strict=True):
        degree, depth = truths(edges, int(root))
        said = answers[np.where(asked, depth[nodes], degree[nodes])]
        questions = np.stack([np.where(asked, DEPTH, DEGREE), nodes, ANSWER + said], axis=1)
        rows.append(np.concatenate([edges.ravel(), [ROOT, root], questions.ravel()]))
    return np.stack(rows).astype(np.int32)


def features_of(raw: Raw) -> Features:
    """values [N, LENGTH, 6]: those of the node that a token names, zeros at words and answers."""
    found = np.zeros((len(raw.roots), LENGTH, 6), np.float32)
    for out, edges, root, nodes in zip(found, raw.edges, raw.roots, raw.nodes, strict=True):
        values = structure.graph_features(edges, NODES, roots=[int(root)])['values']
        out[: 2 * EDGES] = values[edges.ravel()]
        out[PROMPT - 1] = values[root]
        out[PROMPT + 1 :: 3] = values[nodes]
    return {'values': found}


def part_of(raw: Raw, answers: np.ndarray | None = None, every: bool = False) -> Part:
    """The rows as examples; `every` labels all tokens, to pretrain a base on."""
    tokens = tokens_of(raw, np.arange(ANSWERS) if answers is None else answers)
    place = np.arange(LENGTH)
    labelled = place > 0 if every else (place >= PROMPT) & ((place - PROMPT) % 3 == 2)
    features = {} if every else padded_features(features_of(raw))
    return part(list(tokens), [labelled] * len(tokens), features)


def make(train: int, valid: int, test: int, world: int = 1) -> Task:
    """The task, generated: rows of each part, and their seed."""
    raws = [draw(rows, [world, k]) for k, rows in enumerate((train, valid, test))]
    parts = [part_of(raw) for raw in raws]
    return Task(
        'graph',
        {'kind': 'graph'},
        parts[0],
        parts[1],
        parts[2],
        shuffled=('values',),
        hide=functools.partial(hide, raws[-1]),
        accuracy=True,
        floor=0.0,
        notes=(f'graphs of {NODES} nodes and {EDGES} edges, {QUESTIONS} questions each',),
    )


def pretraining(rows: int, world: int = 2) -> Part:
    """Other graphs in another language: answers are said by permuted tokens. All are labelled."""
    answers = np.random.default_rng([world, 17]).permutation(ANSWERS)
    return part_of(draw(rows, [world, 9]), answers, every=True)


def hide(raw: Raw, rows: int, seed: int) -> Hidden:
    """The first rows, each with other questions from a drawn one on."""
    whole = Raw(*(x[:rows] for x in raw))
    at = np.random.default_rng(seed).integers(1, QUESTIONS, rows)
    behind = np.arange(QUESTIONS)[None, :] >= at[:, None]
    nodes = np.where(behind, (whole.nodes + 1) % NODES, whole.nodes)
    asked = np.where(behind, ~whole.depth_asked, whole.depth_asked)
    replaced = whole._replace(nodes=nodes, depth_asked=asked)
    return Hidden(part_of(whole), part_of(replaced), PROMPT + 3 * at)
