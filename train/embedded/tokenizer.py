"""Byte-level BPE trained on the corpus, saved as a tokenizer.json that transformers loads."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np

END = '<|endoftext|>'
# GPT-2's split, with each digit a token of its own: `answer2` is the word and the digit.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train(texts: Iterable[str], vocabulary: int):
    """Trains a `tokenizers.Tokenizer` of at most `vocabulary` tokens; token 0 ends a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def weighted(bpe, texts: list[str], mark: str, low: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Encodes texts in which pairs of `mark` enclose spans; adds the end-of-text token.

    Returns for each text (tokens int32 [n], weights float32 [n]): 1 for tokens that end within a
    span, `low` for the others. The marks themselves are removed first.
    """
    encoded = []
    plain = [text.replace(mark, '') for text in texts]
    for text, encoding in zip(texts, bpe.encode_batch(plain), strict=True):
        inside = np.zeros(sum(map(len, text.split(mark))) + 1, bool)
        at = 0
        for number, part in enumerate(text.split(mark)):
            inside[at + 1 : at + len(part) + 1] = number % 2
            at += len(part)
        ends = [end for _, end in encoding.offsets]
        weights = np.where(inside[ends], 1.0, low)
        encoded.append((np.array([*encoding.ids, 0], np.int32),
                        np.array([*weights, low], np.float32)))  # fmt: skip
    return encoded


def save(bpe, folder: pathlib.Path, positions: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    bpe.save(str(folder / 'tokenizer.json'))
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'bos_token': END,
        'eos_token': END,
        'pad_token': END,
        'unk_token': END,
        'model_max_length': positions,
        'padding_side': 'left',
        'clean_up_tokenization_spaces': False,
    }
    (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')
