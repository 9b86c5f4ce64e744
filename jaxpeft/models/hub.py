"""From a name to a folder: a local one, the embedded default, or a snapshot of the hub."""

from __future__ import annotations

import pathlib

EMBEDDED = pathlib.Path(__file__).resolve().parents[1] / 'assets' / 'tiny_gpt_neo'
COMMON = ['*.json', 'tokenizer*', '*.model', 'merges.txt', 'vocab.txt']
SAFE = ['model.safetensors', 'model-*.safetensors']
MSGPACK = ['flax_model.msgpack']


def folder_of(name: str) -> pathlib.Path:
    """The folder that holds a model's files; downloads a hub id (never its pickles).

    Raises:
      FileNotFoundError: nothing by that name, here or on the hub; says what to do offline.
    """
    if name == 'embedded':
        if not EMBEDDED.exists():
            raise FileNotFoundError(
                f'the embedded model should be in {EMBEDDED}: this installation lacks its assets; '
                'reinstall jaxpeft'
            )
        return EMBEDDED
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise FileNotFoundError(
            f'{name} is a file; give the folder that holds config.json and the weights'
        )
    return _download(name)


def _download(name: str) -> pathlib.Path:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise FileNotFoundError(
            f'no folder {name}, and it is not a hub id of the form owner/name'
        ) from error
    folder = _snapshot(name, COMMON + SAFE)
    if not any(folder.glob('model*.safetensors')):
        # Some early repositories have Flax weights and no safetensors; asking for both would
        # download the model twice.
        folder = _snapshot(name, COMMON + MSGPACK)
    return folder


def _snapshot(name: str, patterns: list[str]) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f'no folder {name!r} here, and no such model on the hub (or it is private: run '
            '`hf auth login`)'
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f'no folder {name!r} here, and the hub cannot be reached (offline?). '
            'On a machine with a network run\n'
            f'  hf download {name} --exclude "*.bin" --local-dir models/{name.split("/")[-1]}\n'
            'and give that folder instead of the name'
        ) from error
