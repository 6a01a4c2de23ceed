"""`tubevit evaluate`."""

import json
import logging
from collections.abc import Sequence

from tubevit.budget import as_budget
from tubevit.cli.budget_flag import add_budget
from tubevit.data.views import AVERAGES
from tubevit.errors import RunError, UserError
from tubevit.ranges import COUNT, SHARE, WHOLE

logger = logging.getLogger(__name__)
DISTRIBUTED = True  # all processes of a job run it together
_EVAL = "eval.json"
HELP = "evaluate a checkpoint on the data of its configuration or on another source; writes eval.json"
EXAMPLES = (
    "tubevit evaluate --workdir runs/quickstart",
    "tubevit evaluate --workdir runs/quickstart --step 400 --json",
    "tubevit evaluate --checkpoint my_model --data clips.csv --head motion",
    "tubevit evaluate --checkpoint my_model --data clips.csv --probe knn",
    "tubevit evaluate --checkpoint my_model --data clips.csv --int8",
    "tubevit evaluate --checkpoint my_model --data clips.csv --budget 25%:motion",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True).add_argument
    which("--workdir", help="workdir of a run; its last checkpoint is evaluated")
    which(
        "--checkpoint", metavar="NAME", help="workdir, checkpoint folder, saved or released model, or hf://owner/repo"
    )
    add("--step", type=WHOLE, help="step of the checkpoint in the workdir (default: the last good one)")
    add("--config", metavar="FILE[:arg=value,...]", help="experiment whose data.eval is used instead of the run's")
    add("--data", metavar="SOURCE", help="source to evaluate instead of data.eval")
    add_data_arguments(parser)
    add(
        "--probe",
        choices=("linear", "knn", "pixels"),
        help="score frozen features instead of a head: fit a classifier to the features of the train split, "
        "whatever its classes; `pixels` fits it to small grey clips instead, which is what a model should exceed",
    )
    add("--int8", action="store_true", help="multiply 8-bit integers in the blocks (needs 'tubevit[int8]')")
    add_budget(add)
    add(
        "--out",
        help="file for the records (default: eval.json or probe_KIND.json, with --int8 eval_int8.json, with --budget "
        "25%% eval_25.json, in the workdir, in the folder of a saved model, or in the current folder for a released "
        "model)",
    )
    add("--json", action="store_true", help="print the records as JSON")


def add_data_arguments(parser) -> None:
    """Add the flags that say how `--data` is read."""
    add = parser.add_argument
    add("--split", help="split to read (default: that of the configuration; of --data val, else test, else all files)")
    add("--head", help="head for --data; may be omitted if the model has one head")
    add("--batch-size", type=COUNT, help="batch size (default: that of the configuration, 16 for --data)")
    add("--views", metavar="TxS", help="temporal x spatial views, e.g. 4x3 (default: eval.views of the configuration)")
    add(
        "--average", choices=AVERAGES,
        help="what is averaged over the views (default: eval.average of the configuration)",
    )  # fmt: skip
    add(
        "--allow-overlap", action="store_true", help="accept a csv that lists a file in two splits, e.g. train and test"
    )
    add(
        "--max-broken", type=SHARE, metavar="SHARE",
        help="largest share of broken files; with more, the command fails (default: loader.max_broken of the "
        "configuration)",
    )  # fmt: skip


def data_options(args, **options):
    """Return the `EvalOptions` of these flags."""
    from tubevit.evaluation import EvalOptions

    return EvalOptions(
        data=args.data, split=args.split, head=args.head, batch_size=args.batch_size, views=args.views,
        average=args.average, allow_overlap=args.allow_overlap, max_broken=args.max_broken, **options,
    )  # fmt: skip


def run(args) -> None:
    """Run the verb."""
    from tubevit.config import load_config
    from tubevit.evaluation import Evaluation, evaluate_each
    from tubevit.sharding.hosts import is_main, run_on_all, run_on_main
    from tubevit.zoo.names import open_checkpoint

    if args.step is not None and args.checkpoint:
        raise UserError("--step goes with --workdir")
    config = run_on_all(lambda: args.config and load_config(args.config, args.config_overrides))
    options = data_options(args, config=config, probe=args.probe, int8=args.int8, budget=args.budget)
    checkpoint = run_on_all(lambda: open_checkpoint(args.workdir or args.checkpoint, args.step))
    out = run_on_main(lambda: _checked_out(args, checkpoint))
    evaluations: list[Evaluation] = []
    try:
        for evaluation in evaluate_each(checkpoint, options, progress=True):
            evaluations.append(evaluation)
            if is_main() and not args.json:
                print(describe_record(evaluation.record), flush=True)
    finally:  # what is known is kept, even if the next data set fails
        if is_main() and evaluations:
            _keep(evaluations, out, args.json)
    records = [evaluation.record for evaluation in evaluations]
    if is_main() and args.probe == "pixels":
        known = _beside(args, checkpoint, _EVAL)
        for line in filter(None, (compared(record, known) for record in records)):
            logger.warning(line)
    if failed := [record["failed"] for record in records if record["failed"]]:
        raise RunError(f"{'; '.join(failed)}: the score does not count (--max-broken raises the limit)")


def _keep(evaluations: Sequence, out: str, as_json: bool) -> None:
    """Write the records of evaluations; as JSON they are also printed, even if they cannot be written."""
    from tubevit.evaluation import write_evaluations

    try:
        written = write_evaluations(evaluations, out)
    finally:
        if as_json:
            print(json.dumps([evaluation.record for evaluation in evaluations], indent=2), flush=True)
    if not as_json:
        print(f"written to {', '.join(written)}")


def _checked_out(args, checkpoint) -> str:
    """Return the file for the records; raises UserError if it cannot be written."""
    from tubevit import writable

    out = _default_out(args, checkpoint) if args.out is None else args.out
    writable.check_file(out, "name another file with --out")
    return out


def _default_out(args, checkpoint) -> str:
    variant = "_int8" if args.int8 else ""
    if args.budget is not None:
        variant += f"_{as_budget(args.budget)}".replace("%", "").replace(":", "_")
    file = f"probe_{args.probe}{variant}.json" if args.probe else _EVAL.replace(".", f"{variant}.")
    return _beside(args, checkpoint, file)


def _beside(args, checkpoint, file: str) -> str:
    """Return the path of a file in the workdir, or in the current folder for a model that others released."""
    from tubevit import storage
    from tubevit.zoo.hub_name import is_hub_name
    from tubevit.zoo.registry import is_release

    name = args.workdir or args.checkpoint
    if is_hub_name(name) or (is_release(name) and not storage.exists(name)):
        return file
    return storage.join(args.workdir or checkpoint.home, file)


def compared(record: dict, path: str) -> str | None:
    """Say whether a model has less than the probe `pixels` on the same files and classes.

    Args:
        record: of the probe.
        path: the eval.json of the model.

    Returns:
        A line, also if there is no score to compare with; None if the model has as much.
    """
    from tubevit import storage
    from tubevit.evaluation.pixels import worse

    try:
        known = json.loads(storage.read_bytes(path))
    except (FileNotFoundError, ValueError):
        known = []
    keys = ("dataset", "source", "split", "checkpoint")
    same = [each for each in known if isinstance(each, dict) and all(each.get(key) == record[key] for key in keys)]
    not_compared = f"{record['dataset']}: not compared, as"
    if not same:
        return f"{not_compared} {path} has no score of the model; evaluate without --probe first"
    score = same[0]
    if score.get("label_hash") != record["label_hash"]:
        return f"{not_compared} the score of the model in {path} is over other classes, those of its head"
    if score.get("top1") is None:
        return f"{not_compared} the score of the model in {path} has no top1: its head takes several labels per file"
    if score["top1"] >= record["top1"]:
        return None
    return f"{record['dataset']}: {worse(score['top1'], record['top1'])}"


def describe_record(record: dict) -> str:
    """Describe a record of eval.json in a line."""
    scores = [f"{key} {100 * record[key]:.2f} %" for key in ("top1", "top5", "map") if record[key] is not None]
    if record["published_top1"] is not None:
        scores.insert(1, f"published top1 {100 * record['published_top1']:.1f} %")
    if record["loss"] is not None:
        scores.append(f"loss {record['loss']:.4f}")
    broken = f", {len(record['broken'])} broken" if record["broken"] else ""
    what, settings = record["head"], ""
    if "probe" in record:
        what = f"{record['probe']} probe"
        settings = f"; learned from {record['train_clips_used']} clips: {record['probe_settings']}"
    averaged = " (mean of logits)" if record["average"] == "logits" else ""
    variant = ", int8" if record["quantize"] == "int8" else ""
    variant += f", budget {record['budget']}" if record["budget"] else ""
    failed = f"; FAILED: {record['failed']}" if record["failed"] else ""
    return (
        f"{record['dataset']} ({what}): {', '.join(scores)}; "
        f"{record['clips_used']} of {record['clips_listed']} clips{broken}, "
        f"views {record['views']}{averaged}, split {record['split']}{variant}{settings}{failed}"
    )
