"""The model class that lm-evaluation-harness asks: a run of train.run, or a bare base.

Importing this file registers it there under the name `jaxpeft`. It needs `lm_eval` (the extra
`harness`) and no torch. What it answers is what lm_eval's own torch backend answers on the same
weights: the same tokens before and after a text, the same windows, the same cuts.
"""

import bisect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from eval import decode, gen_kwargs, likelihood, subject, until
from eval.bar import rows_bar
from eval.likelihood import Pair
from eval.sampling import Sampling
from eval.subject import Subject
from jaxpeft import models


@register_model('jaxpeft')
class JaxPEFT(TemplateLM):
    """A jaxpeft model as lm_eval sees it.

    Args:
      ckpt: directory of a run of train.run; with `method='none'` its base.
      model_name: a bare base model (hub id, folder, or embedded); with `ckpt` too, where that run's
        base lies now.
      method: 'none' is without the adapter; so is None, which lm_eval makes of that word.
      dtype: of a bare base's weights; a run has its own.
      batch_size: contexts at once; no answer depends on it.
      max_length: tokens the model may read; 0 is all its positions.
      max_gen_toks: tokens that a generation may have where its task does not say.
      add_bos_token: begin texts with the BOS token; None: as the tokenizer does by itself.
      prefix_token_id: what an empty context is replaced by; None: BOS, or EOS where there is none.
      seed: of the samples, where a task samples.
      progress: show progress bars.
      device: not looked at: lm_eval's command line passes torch's name 'cuda:0' on any machine. JAX
        takes the best device there is; JAX_PLATFORMS (cpu, cuda, tpu) chooses another.
      max_batch_size: there for lm_eval; it goes with `batch_size='auto'`.
      subject: a loaded model in place of the first four.

    Raises:
      ValueError: for what `eval.subject.either` refuses, a batch size that is no number, or a
        max_length beyond the model's positions.
    """

    backend = 'causal'

    def __init__(
        self,
        ckpt: str = '',
        model_name: str = '',
        method: str | None = '',
        dtype: str = 'float32',
        batch_size: int | str = 16,
        max_length: int = 0,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 0,
        progress: bool = True,
        device: str | None = None,
        max_batch_size: int | None = None,
        subject: Subject | None = None,
    ):
        super().__init__()
        del device
        _check_batch(batch_size, max_batch_size)
        self.subject = subject or _load(ckpt, model_name, method, dtype)
        positions = self.subject.model.config.max_positions
        if not 0 <= max_length <= positions:
            raise ValueError(
                f"max_length must be within the model's {positions} positions, got {max_length}"
            )
        self.tokenizer = self.subject.tokenizer
        self.max_length = max_length or positions
        self.max_gen_toks, self.batch_size = max_gen_toks, int(batch_size)
        self.add_bos_token, self.custom_prefix = add_bos_token, prefix_token_id
        self.seed, self.progress = seed, progress
        self.cut = {'requests': 0, 'tokens': 0}  # what was too long, over all calls

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        own, bos = self.custom_prefix, self.tokenizer.bos_token_id
        found = next((t for t in (own, bos, self.eot_token_id) if t is not None), None)
        if found is None:
            raise ValueError('the tokenizer has no BOS and no EOS token: give prefix_token_id')
        return found

    @property
    def tokenizer_name(self) -> str:
        """By which lm_eval tells its caches of requests apart."""
        return str(self.tokenizer.name_or_path).replace('/', '__')

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes beside its results."""
        return {'jaxpeft': self.subject.identity, 'cut': dict(self.cut)}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; a text that already begins with the prefix token gets no second one."""
        del kwargs
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        prefix = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None and string.startswith(prefix):
            special = False
        options = {} if special is None else {'add_special_tokens': special}
        return self.tokenizer.encode(string, **options)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as one text, by the tokenizer's template."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Answers (strings, context tokens, continuation tokens), in their order."""
        del kwargs
        pairs, cuts = [], []
        for strings, context, continuation in requests:
            pair, cut = _fitted(strings, context, continuation, self.max_length)
            pairs.append(pair)
            cuts.append(cut)
        self._tell('loglikelihood', cuts)
        with rows_bar('loglikelihood', len(pairs), self._shown(disable_tqdm)) as advance:
            found = likelihood.loglik(*self._parts, pairs, batch=self.batch_size, advance=advance)
        for (strings, *_), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial('loglikelihood', strings, answer)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts, window after window, each token once with all the context it can.

        The tokens of the first window follow the prefix token alone; later windows reach back as
        far as the model's positions allow. Nothing is cut.
        """
        pairs, owners = [], []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                pairs.append(_pair(context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        with rows_bar('windows', len(pairs), self._shown(disable_tqdm)) as advance:
            found = likelihood.sequences(
                *self._parts, pairs, batch=self.batch_size, advance=advance
            )
        for owner, (logp, _) in zip(owners, found, strict=True):
            totals[owner] += logp
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to their first stop string, end token, or `max_gen_toks` tokens.

        Contexts keep the last `max_length - max_gen_toks` of their tokens, as in lm_eval's torch
        backend; how many were cut is told. Where a task samples, filters that it does not ask for
        are off (transformers has top_k 50 then).
        """
        out = [''] * len(requests)
        loop = models.apart(self.subject.params)  # once for all sets of options
        with rows_bar('generate', len(requests), self._shown(disable_tqdm)) as advance:
            for own in gen_kwargs.alike([request.args[1] for request in requests]):
                texts = self._generate([requests[i].args for i in own], loop, advance)
                for i, text in zip(own, texts, strict=True):
                    out[i] = text
                    self.cache_hook.add_partial('generate_until', requests[i].args, text)
        return out

    def _generate(self, asked: Sequence[Any], loop: Any, advance: Any) -> list[str]:
        """Requests of one set of options."""
        new_tokens, stops, sampling = self._options(asked[0][1])
        room = self.max_length - new_tokens
        if room < 1:
            raise ValueError(
                f'max_gen_toks {new_tokens} leaves no room for a context: the model reads '
                f'{self.max_length} tokens in all. Ask for fewer (--gen_kwargs max_gen_toks=N)'
            )
        encoded = [self.tok_encode(context) or [self.prefix_token_id] for context, _ in asked]
        self._tell('generate_until', [max(len(ids) - room, 0) for ids in encoded])
        tokens = until.generate(
            *self._parts,
            [np.asarray(ids[-room:], np.int32) for ids in encoded],
            new_tokens=new_tokens,
            eos=self._ends(),
            stopped=lambda row: self._stopped(row, stops),
            batch=self.batch_size,
            sampling=sampling,
            seed=self.seed,
            advance=advance,
            loop=loop,
        )
        texts = [self._text(self._cut(row, stops)) for row in tokens]
        return [text[: gen_kwargs.first(text, stops)] for text in texts]

    def _options(self, given: Mapping[str, Any]) -> tuple[int, list[str], Sampling]:
        """(tokens at most, stop strings, sampling) of a request's `gen_kwargs`."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        new_tokens, samples = options.pop('max_gen_toks'), options.pop('do_sample', False)
        stops = [*options.pop('until', []), self.tokenizer.decode([self._ends()[0]])]
        return new_tokens, [stop for stop in stops if stop], gen_kwargs.sampling(options, samples)

    def _ends(self) -> tuple[int, ...]:
        """The tokens that end a text: the tokenizer's, and those of the model's config."""
        return decode.ends(self.tokenizer, self.subject.model.config)

    def _stopped(self, row: np.ndarray, stops: Sequence[str]) -> bool:
        """Whether a stop string is there; it may be a special token, which no text keeps."""
        return gen_kwargs.first(self.tokenizer.decode(row.tolist()), stops) is not None

    def _cut(self, row: np.ndarray, stops: Sequence[str]) -> np.ndarray:
        """A row up to the token with which its first stop string is there."""
        there = lambda n: self._stopped(row[: n + 1], stops)
        return row[: bisect.bisect_left(range(len(row)), True, key=there) + 1]

    def _text(self, row: np.ndarray) -> str:
        return self.tokenizer.decode(row.tolist(), skip_special_tokens=True)

    @property
    def _parts(self) -> tuple[Any, Any, Any, Any]:
        found = self.subject
        return found.forward, found.state, found.params, found.model

    def _shown(self, disable_tqdm: bool) -> bool:
        return self.progress and not disable_tqdm

    def _tell(self, what: str, cuts: Sequence[int]) -> None:
        """Counts what was cut and says so once a call."""
        texts, tokens = sum(cut > 0 for cut in cuts), sum(cuts)
        self.cut['requests'] += texts
        self.cut['tokens'] += tokens
        if texts:
            print(
                f'warning: {what}: {texts} of {len(cuts)} contexts did not fit the '
                f'{self.max_length} tokens that the model reads and lost their beginning, '
                f'{tokens:,} tokens in all',
                file=sys.stderr,
            )


def _load(ckpt: str, model_name: str, method: str | None, dtype: str) -> Subject:
    """lm_eval's argument strings turn 'none' into None, and names of digits into numbers."""
    return subject.load(str(ckpt), str(model_name), 'none' if method is None else method, dtype)


def _check_batch(batch_size: int | str, largest: int | None) -> None:
    if not str(batch_size).isdigit() or int(batch_size) < 1 or largest is not None:
        raise ValueError(
            f'batch_size must be a number of at least 1, got {batch_size!r}; sizes are not tried '
            'out (auto, max_batch_size), and no answer depends on them'
        )


def _pair(context: Sequence[int], continuation: Sequence[int]) -> Pair:
    return Pair(np.asarray(context, np.int32), np.asarray(continuation, np.int32))


def _fitted(
    strings: Any, context: Sequence[int], continuation: Sequence[int], room: int
) -> tuple[Pair, int]:
    """A request within `room` read tokens, cut from the left; and how many tokens that cost."""
    if not continuation or len(continuation) > room:
        raise ValueError(
            f'the continuation {strings and strings[1]!r} has {len(continuation)} tokens of its '
            f'own; the model scores 1 to {room}'
        )
    cut = max(len(context) + len(continuation) - 1 - room, 0)
    return _pair(context[cut:], continuation), cut
