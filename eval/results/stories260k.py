"""stories260K with a tokenizer that Hugging Face loads, for the text figures of README.

python eval/results/stories260k.py FOLDER OUT

FOLDER has stories260K of karpathy/tinyllamas in Hugging Face's form (config.json, safetensors) and
tok512_pieces_latin1.json, the list of its 512 sentencepiece pieces with each UTF-8 byte as a letter
(BPE with bytes to fall back on; the earlier of two pieces merges first). A pair of pieces that
together are a piece is a merge of that piece's rank.
"""

import json
import pathlib
import shutil
import sys

from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ('<unk>', '<s>', '</s>')


def tokenizer(listed: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a list of pieces whose letters are the bytes of their UTF-8."""
    texts = [
        piece if piece.startswith('<0x') else piece.encode('latin1').decode() for piece in listed
    ]
    texts[: len(SPECIAL)] = SPECIAL
    vocab = {piece: i for i, piece in enumerate(texts)}
    pairs = [(p[:k], p[k:]) for p in texts for k in range(1, len(p))]
    merges = sorted(
        ((a, b) for a, b in pairs if a in vocab and b in vocab and not (a + b).startswith('<')),
        key=lambda pair: vocab[pair[0] + pair[1]],
    )
    made = Tokenizer(models.BPE(vocab, merges, unk_token='<unk>', byte_fallback=True))
    made.normalizer = normalizers.Prepend(' ')
    made.post_processor = processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', vocab['<s>'])]
    )
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token='<unk>', bos_token='<s>', eos_token='</s>'
    )


def main(source: str, out: str) -> None:
    """Copies the model and writes the tokenizer beside it."""
    folder = pathlib.Path(out)
    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    listed = json.loads((folder / 'tok512_pieces_latin1.json').read_text())
    tokenizer(listed).save_pretrained(folder)


if __name__ == '__main__':
    main(*sys.argv[1:])
