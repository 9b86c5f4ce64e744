"""What a method's form in an adapter folder is made of: entries, places, the form itself."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxpeft.peft.names import Module

Config = Mapping[str, Any]
Leaves = dict[str, np.ndarray]


class Entry(NamedTuple):
    """Where a leaf lies: the end of its key, and its shape there in letters.

    `n` and `m` are in and out features, `r` the rank. Turned: our leaf is the transpose.
    """

    key: str
    dims: str
    turned: bool = True

    def shape(self, module: Module, rank: int) -> tuple[int, ...]:
        """The entry's shape in the file."""
        sizes = {'n': module.n, 'm': module.m, 'r': rank, '1': 1}
        return tuple(sizes[d] for d in self.dims)

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """A leaf of one layer as PEFT keeps it: contiguous float32."""
        value = np.asarray(value, np.float32)
        if '1' in self.dims:
            value = np.expand_dims(value, self.dims.index('1'))
        elif self.turned:
            value = value.T
        return np.ascontiguousarray(value)

    def from_torch(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `to_torch`."""
        value = np.asarray(value, np.float32)
        if '1' in self.dims:
            return value.reshape(-1)
        return np.ascontiguousarray(value.T if self.turned else value)


class Place(NamedTuple):
    """One module under an adapter.

    Attributes:
      module: the module.
      rank: its own rank, 0 where the method has none.
      alpha: its own alpha, 0 where the method has none.
      kind: 'linear', 'table' (an embedding) or 'input' (IA3 on a layer's input).
    """

    module: Module
    rank: int
    alpha: float
    kind: str


class Form(NamedTuple):
    """One method's form in PEFT.

    Attributes:
      method: the name of its factory in `jaxpeft.methods`.
      peft_type: PEFT's name of the family.
      leaves: kind of place -> leaf name -> Entry; a kind that is not there has no form in PEFT.
      claims: whether a config is of this form; the first form that claims it reads it.
      fields: spec -> the config's fields that belong to the method, without ranks and targets;
        None for a form that is only read.
      options: (config, place) -> the factory's arguments.
      reads: the config's fields that `options` interprets.
      refuses: config -> `name=value` of fields whose value cannot be read.
      made: trained leaves that the file never holds and that start as the method starts them.
      plain: (spec, leaves of one layer) -> (leaves, factor of the rank): what PEFT can hold.
      alpha: whether the form has `lora_alpha`.
      rank_field: the config's rank.
      one_rank: PEFT builds each module with the config's rank, whatever rank_pattern says. Smaller
        ones are filled up with zeros, which a method without a scale does not see; a rank is what
        the tensor has.
      notes: what a reader of this form must be told; import warns with it.
    """

    method: str
    peft_type: str
    leaves: Mapping[str, Mapping[str, Entry]]
    claims: Callable[[Config], bool]
    options: Callable[[Config, Place], dict[str, Any]]
    reads: tuple[str, ...]
    fields: Callable[[Config], dict[str, Any]] | None = None
    refuses: Callable[[Config], list[str]] = lambda config: []
    made: tuple[str, ...] = ()
    plain: Callable[[Config, Leaves], tuple[Leaves, int]] = lambda spec, leaves: (leaves, 1)
    alpha: bool = False
    rank_field: str | None = 'r'
    one_rank: bool = False
    notes: str = ''
