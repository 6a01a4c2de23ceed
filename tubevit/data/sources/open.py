"""Sources by name."""

from collections.abc import Callable

from tubevit import storage
from tubevit.data.sources import charades, csv_file, embedded, folder, imagenet, kinetics, something, ucf_hmdb
from tubevit.data.sources.source import Source
from tubevit.data.suffixes import suffix
from tubevit.errors import SplitError, UserError, unknown

_READERS = {
    **{key: kinetics.open_kinetics for key in kinetics.CLASSES}, "ssv2": something.open_something,
    "charades": charades.open_charades, "ucf101": ucf_hmdb.open_ucf101, "hmdb51": ucf_hmdb.open_hmdb51,
    "imagenet": imagenet.open_imagenet,
}  # fmt: skip
# Number of classes of the data sets that have official lists.
CLASSES = {
    **kinetics.CLASSES, "ssv2": something.CLASSES, "charades": charades.CLASSES, **ucf_hmdb.CLASSES,
    "imagenet": imagenet.CLASSES,
}  # fmt: skip


def default_head(name: str, dataset: str) -> str:
    """Return the first label set of an embedded source `name`, else the name of the data set in the configuration."""
    return embedded.HEADS[name][0] if name in embedded.HEADS else dataset


def open_source(name: str, split: str = "all", head: str | None = None, allow_overlap: bool = False) -> Source:
    """Open a source by its name.

    | name | source |
    |---|---|
    | `FILE.csv` | a csv `path,label[,split]`, paths relative to it |
    | `DIR` | DIR/train/class/clip, DIR/val/..., DIR/test/...; or DIR/class/clip |
    | `k400:LIST@CLIPS_DIR`, `k600:`, `k700:` | Kinetics; LIST: an official csv or the folder of them |
    | `ssv2:LIST@CLIPS_DIR` | Something-Something v2; LIST: the folder of the json files |
    | `charades:LIST@CLIPS_DIR` | Charades, multi-label; LIST: the folder of Charades_v1_*.csv and _classes.txt |
    | `ucf101:LIST@CLIPS_DIR` | UCF101; LIST: the folder of classInd.txt and trainlist01.txt; splits below |
    | `hmdb51:LIST@CLIPS_DIR` | HMDB51; LIST: the folder of CLASS_test_split1.txt; splits below |
    | `imagenet:DIR` | ImageNet-1k, DIR/train/n01440764/*.JPEG, DIR/val/... |
    | `tfds:NAME` | a data set of tensorflow_datasets, without TensorFlow |
    | `shards:DIR` | ArrayRecord shards as `shard-videos` writes them |
    | `moving_digits`, `still_digits` | the embedded data, made in the cache on first use |

    Files, folders, lists and clips may lie in a bucket (`gs://...`). Splits are called `train`, `val` and `test`
    whatever their names in the files (see `canonical_split`), in UCF101 and HMDB51 `train`, `test`, `train2`, `test2`,
    `train3`, `test3`; in Charades `val` and `test` are the same. A csv or folder without splits is divided 80/20 into
    `train` and `test` by a hash of the path, with a note. Listed clips that do not exist are left out and counted.

    Args:
        name: name of the source.
        split: name of a split, or `all`.
        head: label set of `moving_digits`: `motion` (default) or `digit_motion`.
        allow_overlap: accept a csv that lists a file in two splits.

    Raises:
        UserError: there is no such source, split or head, a file or folder is missing, malformed or contradicts
            itself, or none of the listed files exists.
    """
    if name in embedded.HEADS:
        return embedded.open_embedded(name, split, head)
    kind, colon, rest = name.partition(":")
    if colon and not rest.startswith("//"):
        if kind in _READERS:
            return _READERS[kind](name, split)
        if kind == "tfds":
            from tubevit.data.sources.tfds_source import open_tfds

            return open_tfds(name, split)
        if kind == "shards":
            from tubevit.data.sources.shards import open_shards

            return open_shards(name, split)
        if not storage.exists(name):
            raise unknown("kind of source", kind, (*_READERS, "tfds", "shards"))
    if suffix(name) == ".csv":
        return csv_file.open_csv(name, split, allow_overlap)
    if storage.is_folder(name):
        return folder.open_folder(name, split)
    if "/" in name:
        raise UserError(f"source {name} does not exist: expected FILE.csv, a folder of class folders or KIND:...")
    raise unknown("source", name, ("FILE.csv", "DIR", *(f"{kind}:..." for kind in _READERS), *embedded.HEADS))


def held_out_split(
    name: str,
    head: str | None = None,
    allow_overlap: bool = False,
    open_source: Callable[..., Source] = open_source,
) -> str:
    """Find the split of a source to evaluate on: `val`, else `test`.

    Raises:
        SplitError: the source has neither.
        UserError: it cannot be opened.
    """
    for split in ("val", "test"):
        try:
            open_source(name, split, head, allow_overlap)
            return split
        except SplitError as error:
            last = error
    raise SplitError(
        f"{name} has neither a split val nor a split test to evaluate on: {last}; a column split of a csv says which "
        "files are held out"
    ) from last
