"""Byte-level BPE trained on the corpus, saved as a tokenizer.json that transformers loads."""

import json
import pathlib
from collections.abc import Iterable

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
