"""The one place that downloads data: rows of a data set on the Hugging Face hub."""

from collections.abc import Iterable, Mapping
from typing import Any

from train.benchmarks.base import TEST, Hub

COMMON_170K = Hub(
    'zwhe99/commonsense_170k', None, TEST
)  # LLM-Adapters' file: the four columns, train only


def download(hub: Hub, split: str) -> Iterable[Mapping[str, Any]]:
    """The rows of our `split` ('train' or 'test') of a hub set.

    Raises:
      ConnectionError: the hub cannot be reached, or has no such set; says how to use a local copy.
    """
    import datasets

    try:
        return datasets.load_dataset(
            hub.repo, hub.config, split=hub.splits[split], revision=hub.revision
        )
    except (OSError, datasets.exceptions.DatasetsError) as error:  # ConnectionError is an OSError
        raise ConnectionError(
            f'cannot load {hub.repo!r} from the Hugging Face hub: {error}. '
            'Without a network pass --data_dir FOLDER with <task>.<split>.jsonl.gz files, '
            'or --dataset a local .json, .jsonl or .parquet file'
        ) from error
