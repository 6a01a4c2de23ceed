"""The keys of a configuration as typed dataclasses: defaults, checks and documentation follow from them."""

import dataclasses
import enum
import functools
import typing

from tubevit.config.key import Key
from tubevit.config.key import key as _key
from tubevit.data.augment import Augment
from tubevit.data.views import AVERAGES, PLACEMENTS
from tubevit.errors import unknown
from tubevit.ranges import COUNT, NOT_NEGATIVE, POSITIVE, PROCESSES, RATE, SHARE, THREADS, WHOLE, Range


class InputPath(enum.StrEnum):
    """What travels from the decoder to the model: whole clips, or only the pixels that the tubes read."""

    DENSE = "dense"
    TUBES = "tubes"

    @classmethod
    def _missing_(cls, value):
        raise unknown("input.path", str(value), cls)


_DEVICES = Range(int, least=1, also=-1)
_group = dataclasses.dataclass(frozen=True)


@_group
class _Input:
    path: str | None = _key(
        None, "what is sent to the model: `tubes`, only the pixels that its tubes read, or `dense`, whole clips; none "
        "chooses `tubes` where they are fewer numbers than the clip", choices=tuple(map(str, InputPath)),
    )  # fmt: skip


@_group
class _Optimizer:  # the defaults are those of the base model on Kinetics (Table 10)
    name: str = _key(
        "adam", "`adam` adds the weight decay to the gradient, `adamw` decouples it; `muon` is `adamw` with orthogonal "
        "updates of the matrices in encoder blocks, which learns small models in fewer steps",
        choices=("adam", "adamw", "muon"),
    )  # fmt: skip
    learning_rate: float = _key(
        5e-5, "peak learning rate, after the warm-up; it then decays to 0 along a cosine", NOT_NEGATIVE
    )
    warmup_steps: int = _key(10_000, "linear warm-up steps", WHOLE)
    weight_decay: float = _key(1e-3, "weight decay factor", NOT_NEGATIVE)
    grad_clip_norm: float | None = _key(
        None, "maximum global gradient norm; larger gradients are scaled down to it; none disables it", POSITIVE
    )
    b1: float = _key(0.9, "decay rate of Adam's first moment", RATE)
    b2: float = _key(0.999, "decay rate of Adam's second moment", RATE)
    ema_decay: float = _key(
        0.0, "decay rate of an exponential moving average of the parameters, which is what is evaluated and saved; 0 "
        "disables it", RATE,
    )  # fmt: skip
    mu_dtype: str = _key(
        "float32", "dtype in which Adam's first moment is stored; `bfloat16` saves 2 bytes per parameter",
        choices=("float32", "bfloat16"),
    )  # fmt: skip


@_group
class _Lora:
    rank: int = _key(8, "with `train.adapter`: columns of A and rows of B", COUNT)
    alpha: float = _key(16.0, "with `train.adapter`: A B is scaled by alpha / rank", POSITIVE)
    targets: str = _key("qkv,out,mlp", "with `train.adapter`: the layers of the blocks that have one, joined by commas",
                        choices=("qkv", "out", "mlp"), several=True)  # fmt: skip


@_group
class _Train:
    steps: int = _key(300_000, "training steps", COUNT)
    label_smoothing: float = _key(0.0, "share of each label that is spread over all classes", RATE)
    mixup: float = _key(
        0.0, "parameter of Beta(a, a), the share of its neighbour blended into a clip; 0 disables it", NOT_NEGATIVE
    )
    cutmix: float = _key(
        0.0, "like mixup, for a rectangle of the neighbour; with both, one is drawn per step", NOT_NEGATIVE
    )
    freeze_below: int = _key(0, "blocks before this index, and the tokenizer, are frozen", WHOLE)
    gate: bool = _key(False, "whether block `freeze_below` has the gate of equation 8 on its output")
    adapter: str = _key(
        "none", "`lora` freezes the model of `init.checkpoint` and trains low-rank adapters of its blocks, pooling and "
        "heads; checkpoints leave out what is frozen", choices=("none", "lora"),
    )  # fmt: skip
    lora: _Lora = _Lora()
    elastic: str = _key(
        "", "budgets joined by commas, such as `25%,50%,75%,100%`: each step trains the largest on the labels, and "
        "one of the others, drawn at random, on the predictions of the largest; the model then takes any of them; "
        "evaluation takes all tokens; empty trains with all tokens",
    )  # fmt: skip
    grad_accum_steps: int = _key(1, "gradient accumulation steps; each batch is split into this many parts", COUNT)
    skip_nonfinite: bool = _key(
        False, "skip the update of a step if its loss or gradient is not finite, instead of ending the run"
    )
    replay: int = _key(0, "compute every Nth step twice, the second time on other devices, to find those that compute "
                       "wrongly; 0 disables it; see docs/faults.md", WHOLE)  # fmt: skip


@_group
class _Init:
    checkpoint: str | None = _key(None, "a checkpoint to begin from, as `load_model` takes it")
    skip: str = _key(
        "", "path prefixes, joined by commas, that are neither taken from the checkpoint nor expected in it"
    )
    rename: str = _key("", "old=new,...: path prefixes in the checkpoint and their names in the model")
    tubes: str = _key(
        "same", "what to do about 3D tubes that the checkpoint lacks: `same` (it must have them all, but those of a "
        "plain ViT are inflated), `inflate`, `dense` (all tubes and positions come from its only tube), `zero`, "
        "`random`, or a checkpoint that has them",
    )  # fmt: skip


@_group
class _Eval:
    every: int = _key(5_000, "steps between evaluations", COUNT)
    views: str = _key("1x1", "temporal x spatial views of a video, e.g. 4x3")
    average: str = _key(
        "probabilities", "what is averaged over the views of a video: `probabilities`, or `logits`, whose mean is then "
        "converted to probabilities", choices=AVERAGES,
    )  # fmt: skip
    clip_placement: str = _key(
        "even", "where the n temporal views lie: `even`, from the beginning of the video to its end, a single one in "
        "the middle; `start`, view k after k/n of the time that one view leaves; `spread`, each over the whole video, "
        "whatever `input.fps` is, with view k at k/n of T equal parts, a single one at their middles",
        choices=PLACEMENTS,
    )  # fmt: skip
    short_side: int | None = _key(
        None, "short side that frames are resized to before squares of `input.size` are cut from them; none takes the "
        "largest squares", COUNT,
    )  # fmt: skip


@_group
class _Checkpoint:
    every: int = _key(1_000, "steps between checkpoints", COUNT)
    keep: int = _key(3, "number of latest checkpoints to keep", COUNT)
    keep_best: str | None = _key(None, "a metric, e.g. eval/k600/top1; the checkpoint with its best value is also kept")


@_group
class _Loader:
    threads: int = _key(4, "decoding threads of each process", THREADS)
    workers: int = _key(0, "loading processes; 0 loads in threads of the training process", PROCESSES)
    max_broken: float = _key(0.01, "largest share of broken files in a data set; more end the run", SHARE)


@_group
class _Mesh:
    data: int = _key(
        -1, "devices that split the batch; -1, also for fsdp and tensor, takes all remaining devices", _DEVICES
    )
    fsdp: int | None = _key(
        None, "devices that split the batch and the parameters; none chooses the smallest number with which a training "
        "step fits in memory by arithmetic, or 1 if `mesh.data` is set", _DEVICES,
    )  # fmt: skip
    tensor: int = _key(1, "devices that split attention heads and MLPs", _DEVICES)
    slices: int = _key(1, "TPU slices of the job", COUNT)


@_group
class _Log:
    every: int = _key(50, "steps between two lines of metrics", COUNT)
    to: str = _key(
        "tensorboard", "where metrics go besides metrics.jsonl, joined by commas: `tensorboard`, `wandb` (Weights & "
        "Biases) and `mlflow`; empty for nowhere", choices=("tensorboard", "wandb", "mlflow"), several=True,
    )  # fmt: skip


@_group
class _Dataset:
    source: str = _key("", "the files, e.g. clips.csv or k600:LIST@CLIPS_DIR; see `open_source`")
    split: str = _key("train", "`train`, `val` or `test`")
    head: str | None = _key(None, "its label set; by default that of the embedded data, else the name of the data set")
    batch_size: int = _key(32, "global batch size", COUNT)
    loss_weight: float = _key(1.0, "factor of its loss", NOT_NEGATIVE)
    allow_overlap: bool = _key(False, "accept a csv that lists a file in two splits")
    copy_short_side: int | None = _key(
        None, "in `data.train`: short side of copies of larger files, which are made once in the cache and decode in a "
        "fraction of the time; training reads them instead; none reads the files themselves", Range(int, least=16),
    )  # fmt: skip
    published_top1: float | None = _key(
        None, "in `data.eval`: a published top-1 accuracy, which is shown beside the measured one", SHARE
    )
    augment: Augment = Augment()


@_group
class _Recipe:
    name: str = _key("", "which of the two", choices=("finetune", "bootstrap"))
    closest: bool = _key(False, "finetune: begin from the closest released checkpoint if there are few files")
    model: str | None = _key(None, "finetune: the architecture, if there is no checkpoint")
    tubes: str | None = _key(None, "finetune: other tubes for the checkpoint of a dense video model")
    small: str | None = _key(None, "bootstrap: the tube model")
    large: str | None = _key(None, "bootstrap: the plain ViT")
    widen: str = _key("concatenate", "bootstrap: see `bootstrapped_config`")
    position: str = _key("learned_2d", "bootstrap: see `bootstrapped_config`")
    train_last: int | None = _key(
        None, "bootstrap: number of blocks to train, the last ones; None trains everything", WHOLE
    )
    unset: tuple = _key((), "keys that the user set to none and that are not derived")


@_group
class Config:
    """All keys but the fields of `ModelConfig`. Durations are in steps."""

    seed: int = _key(0, "seed of the run; all randomness follows from it and from the step", WHOLE)
    compilation_cache: str | None = _key(None, "a folder or bucket where compiled programs are cached")
    input: _Input = _Input()
    optimizer: _Optimizer = _Optimizer()
    train: _Train = _Train()
    init: _Init = _Init()
    eval: _Eval = _Eval()
    checkpoint: _Checkpoint = _Checkpoint()
    loader: _Loader = _Loader()
    mesh: _Mesh = _Mesh()
    log: _Log = _Log()
    data: _Dataset = _Dataset()  # each of `data.train` and `data.eval`
    recipe: _Recipe = _Recipe()  # what `resolve` derives and then removes


def _keys_of(group: type, prefix: str = "") -> dict[str, Key]:
    found, hints = {}, typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        hint = hints[field.name]
        if type(None) in typing.get_args(hint):  # int | None
            hint = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(field.default):
            found |= _keys_of(hint, f"{prefix}{field.name}.")
        else:
            kind = typing.get_origin(hint) or hint
            found[prefix + field.name] = Key(group, field.name, kind, field.default, **field.metadata)
    return found


@functools.cache
def _model_keys() -> dict[str, Key]:
    """The fields of `ModelConfig`: None where the architecture sets them."""
    from tubevit.models.config import CHOICES, ModelConfig  # here, as it imports jax
    from tubevit.models.variants import ARCHITECTURES

    by_architecture = {"mean", "std"}.union(*ARCHITECTURES.values())
    groups, found = {"frames": "input.", "fps": "input.", "size": "input.", "precision": ""}, {}
    for name, key in _keys_of(ModelConfig).items():
        if name in (
            "heads",
            "freeze_below",
            "lora",
            "quantize",
            "budget",
        ):  # from the data, from `train`, of inference only
            continue
        default = None if name in by_architecture or key.default is dataclasses.MISSING else key.default
        kind = key.kind if key.kind in (str, int, float, bool, tuple) else str
        choices = tuple(CHOICES.get(name, ()))
        found[groups.get(name, "model.") + name] = dataclasses.replace(key, kind=kind, default=default, choices=choices)
    return found | {"model.name": dataclasses.replace(found["model.name"], default="tubevit_b16")}


def defining_keys() -> list[str]:
    """List the keys of `model` and `input` that define a model, without those for its training and computation."""
    others = {"precision", "dropout", "stochastic_depth", "remat", "scan", "attention"}
    return [path for path, key in _model_keys().items() if key.name not in others]


@functools.cache
def keys_of(group: str = "") -> dict[str, Key]:
    """List the keys of `data` (of one data set) or `recipe`, such as `augment.flip`; else all others by full name."""
    keys = _keys_of(Config)
    if group:
        return {path.partition(".")[2]: key for path, key in keys.items() if path.startswith(f"{group}.")}
    return _model_keys() | {path: key for path, key in keys.items() if not path.startswith(("data.", "recipe."))}


def find_key(path: str) -> Key:
    """Find a key by its full name, e.g. `data.train.clips.source`; raises UserError if there is none."""
    group = path.partition(".")[0]
    keys = keys_of(group if group in ("data", "recipe") else "")
    name = path.split(".", 3)[-1] if group == "data" else path.removeprefix("recipe.")
    if name not in keys:
        raise unknown("key", path, keys_of())
    return keys[name]
