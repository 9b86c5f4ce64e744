"""The configuration of a run: frozen dataclasses, one a group of flags; every field is a flag.

A field's docstring is the flag's help. `train.cli.parse` fills them; `to_dict` is what
`config.json` holds, with the values that the run really uses.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tyro

METHOD_FLAGS = {
    'r_ab': 'rank',
    'knowledge_alpha': 'knowledge_alpha',
    'ortho_lambda': 'ortho_lambda',
    'svd_rank_ratio': 'svd_rank_ratio',
    'spectrum_init_scale': 'spectrum_init_scale',
    'adaptive_gating': 'adaptive_gating',
    'dropout': 'dropout',
    'init_ab': 'init_ab',
    'train_ab': 'train_ab',
}  # flag -> argument of the method's factory

DECODINGS = ('loglik', 'greedy', 'beam', 'fixed')  # what eval.run.evaluate knows

# What may differ between two commands that mean the same run.
FREE = ('run_dir', 'resume', 'wandb', 'out', 'traceback', 'mesh', 'attention', 'save_total_limit')


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is trained beside the frozen base. The defaults shown are knowhira's; another method
    keeps its own unless the flag is given, and a flag that it does not take is an error."""

    method: str = 'knowhira'
    """The method: a file of jaxpeft/methods (knowhira, hira, lora, ...); several joined by + act
    together, each on its own part: hylorada+sparse_mlp+daa."""
    r_ab: int = 32
    """Rank r of the factors a [in, r] and b [r, out]."""
    knowledge_alpha: float = 0.6
    """KnowHiRA: factor on the whole update; larger means more change, 0 is the base."""
    ortho_lambda: float = 1e-4
    """KnowHiRA: weight of the orthogonality penalty (kept out of the validation loss)."""
    svd_rank_ratio: float = 0.85
    """KnowHiRA: at most this share of a kernel's singular values gates the ranks."""
    spectrum_init_scale: float = 0.1
    """KnowHiRA: scale of the initial a, whose columns follow the spectrum."""
    adaptive_gating: bool = True
    """KnowHiRA: learn a gate for each rank; without it the singular values alone weigh them."""
    dropout: float = 0.0
    """Dropout on the input of the adapter's branch."""
    init_ab: str = 'kaiming,zero'
    """Initial a and b: kaiming, gaussian or zero each."""
    train_ab: str = 'yy'
    """Which of a and b are trained: yy, yn or ny."""
    target_modules: str = ''
    """Comma-separated layer names, or all-linear; empty means the method's own list."""
    exclude_modules: str = ''
    """Comma-separated layer names to leave out."""
    layers: str = ''
    """Numbers of the layers to adapt, such as 0,2,5-7; all when empty. Needs --no_scan."""
    rank_pattern: str = ''
    """Other ranks for some targets: name=rank,.., a name or regex of the path's end as in PEFT."""
    alpha_pattern: str = ''
    """Other alphas for some targets: name=alpha,.."""
    rank_strategy: Literal['uniform', 'importance', 'decreasing'] = 'uniform'
    """A rank for each layer: --r_ab for all, less in the middle, or less towards the end."""
    bias: Literal['none', 'adapted', 'all'] = 'none'
    """Biases trained too: none, those of the adapted layers, or all."""
    adapter_dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Type that the adapter is kept in; it computes in float32 either way."""
    init_from: str = ''
    """Start from the numbers of this adapter folder instead of fresh ones."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Any other argument of a method's factory: daa.num_buckets=64; method.key=value goes to each
    that takes it."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The base model, which is never changed, and the devices it lies on."""

    model_name: str = 'embedded'
    """A Hugging Face hub id, a local folder, or embedded (a tiny GPT-Neo in the package)."""
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Type of the base's weights; the adapter is always float32."""
    scan: bool = True
    """One compiled layer for all layers (--no_scan: each layer apart, slower to compile)."""
    remat: str = 'none'
    """What the backward pass computes anew: none (elementwise operations at most), full (all: least
    memory), dots, dots_no_batch."""
    attention: Literal['auto', 'plain', 'splash', 'cudnn'] = 'auto'
    """auto: the platform's kernel where it is right, else plain in blocks. A kernel by name is for
    training: splash (TPU) or cudnn (GPU), an error where it cannot; evaluation is as with auto."""
    mesh: str = '-1,1,1'
    """Devices along data,fsdp,tensor; -1 means all that are left."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What it is trained on."""

    dataset: str = 'embedded'
    """common_170k, a benchmark (boolq, piqa, siqa, hellas, winog, arce, arcc, obqa), embedded, or
    a .json, .jsonl(.gz) or .parquet file with columns instruction, input, output, answer; or plain
    text: a .txt(.gz) file, or one of those with the column text."""
    data_dir: str = ''
    """Folder with local copies (TASK.SPLIT.jsonl.gz). Empty: the hub."""
    template: Literal['flat', 'llm-adapters'] = 'flat'
    """The prompt's layout: flat, or LLM-Adapters' indented one."""
    train_on_inputs: bool = False
    """Loss on prompt and answer instead of the answer only. Of plain text every token counts."""
    max_length: int = 256
    """Tokens an example may have; a longer one loses the start of its prompt. Plain text is cut
    into windows of so many, and loses nothing."""
    packing: bool = True
    """Several examples in one row, each blind to the others; the updates hold the same examples
    (under --dropout other masks)."""
    share_prefix: bool = True
    """Of --packing: what prompts begin with stands once a batch, not once an example. Loss and
    gradients are the same, but under --dropout, whose masks follow the layout. Off by itself where
    a method reads the row as it is laid out."""
    skip_bad_rows: bool = False
    """Leave malformed rows out, counted and reported, instead of stopping at the first."""
    val_size: int = 120
    """Rows held out for validation, chosen by the seed."""
    train_rows: int = 0
    """Train on this many of the other rows, chosen by the seed; 0 is all."""


@dataclasses.dataclass(frozen=True)
class Optim:
    """How it is trained: AdamW on the adapter alone."""

    batch: int = 16
    """Examples in a micro-batch, over all devices."""
    grad_acc: int = 1
    """Micro-batches in an update, weighted by their tokens: the same as one batch of the sum."""
    lr: float = 5e-4
    """Peak learning rate. Usual: 1e-3 for KnowHiRA and HiRA, 1e-4 to 3e-4 for LoRA."""
    epoch: float = 3.0
    """Passes over the training rows; a fraction is fine."""
    max_steps: int = 0
    """Updates to make instead of --epoch, where above 0."""
    schedule: Literal['cosine', 'linear', 'constant'] = 'cosine'
    """The learning rate after warm-up: to zero by a cosine or a line, or unchanged."""
    warmup: float = 0.05
    """Warm-up: below 1 a share of all updates, from 1 on a number of updates."""
    weight_decay: float = 0.0
    """Decoupled weight decay on the factors a and b only, never on gates or magnitudes."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this global norm; 0 does not clip."""
    loraplus: bool = False
    """LoRA+: the factors b learn at --loraplus_ratio times the rate of everything else."""
    loraplus_ratio: float = 16.0
    """LoRA+'s ratio of the two rates; 16 is the paper's rule of thumb, beside half the usual lr."""
    seed: int = 0
    """Seed of the adapter, the order of the rows, the validation rows and dropout."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """Validation loss while training; the best adapter by it is what adapter/ holds in the end."""

    eval_strategy: Literal['no', 'steps', 'epoch'] = 'steps'
    """When: every --eval_steps updates, after each epoch, or never (adapter/ is then the last)."""
    eval_steps: int = 200
    """Updates between validations."""
    early_stop_patience: int = 0
    """Stop after this many validations without a better loss (penalties left out); 0 never."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The benchmarks, before and after training, into results.json."""

    eval_tasks: str = 'auto'
    """Comma-separated benchmarks, all, none, or auto: those of the data set, none for a file."""
    eval_limit: int = 0
    """Test rows a task at most; 0 is all."""
    eval_decodings: str = 'loglik,greedy'
    """Comma-separated: loglik (likelihood of the labels), greedy, beam, fixed."""
    eval_batch: int = 32
    """Test rows at once; no prediction depends on it."""
    max_new_tokens: int = 16
    """Tokens that greedy and beam may write."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where it goes, and what a second start does."""

    run_dir: str = ''
    """The run's folder; empty means runs/ and a name made of the configuration, so that the same
    command finds its run again."""
    resume: Literal['auto', 'never', 'must'] = 'auto'
    """auto continues from the last checkpoint if there is one;
    never refuses a folder that has a run, must one that has no checkpoint."""
    save_steps: int = 200
    """Updates between checkpoints."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    log_steps: int = 10
    """Updates between lines of metrics.jsonl."""
    wandb: bool = False
    """Log to Weights & Biases too."""
    out: str = ''
    """Write the results to this file as well."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""
    preset: str = ''
    """Start from train/presets/NAME.yaml; flags and --config win over it."""
    config: str = ''
    """Start from a YAML file of flag: value; flags win over it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

    `options` is what the methods' factories are called with, by name; `cli.parse` fills it.
    """

    adapter: Adapter = Adapter()
    model: Model = Model()
    data: Data = Data()
    optim: Optim = Optim()
    validation: Validation = Validation()
    evaluation: Evaluation = Evaluation()
    run: Run = Run()
    options: tyro.conf.Suppress[dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)


GROUPS = tuple(f.name for f in dataclasses.fields(Config) if f.name != 'options')


def listed(text: str) -> list[str]:
    """The items of a comma-separated flag, stripped."""
    return [part.strip() for part in text.split(',') if part.strip()]


def flags() -> dict[str, str]:
    """Every flag and the group that holds it."""
    default = Config()
    return {
        field.name: group
        for group in GROUPS
        for field in dataclasses.fields(getattr(default, group))
    }


def values(config: Config) -> dict[str, Any]:
    """Flag -> value, as the dataclasses hold them."""
    return {flag: getattr(getattr(config, group), flag) for flag, group in flags().items()}


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration: flag -> value, and `method_options` by method.

    The methods' own flags hold what they really got; those that none takes or that differ between
    methods, and the ways in which values came (`set`, `preset`, `config`), are left out.
    """
    flat = values(config)
    for name in ('set', 'preset', 'config'):
        del flat[name]
    for flag, argument in METHOD_FLAGS.items():
        del flat[flag]
        got = [options[argument] for options in config.options.values() if argument in options]
        if got and all(value == got[0] for value in got):
            flat[flag] = got[0]
    return flat | {'method_options': {name: dict(o) for name, o in config.options.items()}}


def from_dict(saved: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
      ValueError: for a key that is no flag.
    """
    groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    where = flags()
    for name, value in saved.items():
        if name == 'method_options':
            continue
        if name not in where:
            raise ValueError(f'config.json holds {name!r}, which is no setting of this version')
        groups[where[name]][name] = value
    default = Config()
    parts = {g: dataclasses.replace(getattr(default, g), **v) for g, v in groups.items()}
    return Config(**parts, options=dict(saved['method_options']))


def identity(config: Config) -> dict[str, Any]:
    """What two commands of one and the same run have in common, as JSON would hold it."""
    kept = {k: v for k, v in to_dict(config).items() if k not in FREE}
    return json.loads(json.dumps(kept))


def run_dir(config: Config) -> pathlib.Path:
    """`--run_dir`, or a folder under runs/ whose name is a function of the configuration."""
    if config.run.run_dir:
        return pathlib.Path(config.run.run_dir)
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    model = pathlib.PurePath(config.model.model_name).name
    data = pathlib.PurePath(config.data.dataset).name.split('.')[0]
    return pathlib.Path('runs') / f'{config.adapter.method}-{model}-{data}-{digest}'
