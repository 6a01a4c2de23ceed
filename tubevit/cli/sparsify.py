"""`tubevit sparsify`."""

import dataclasses
import json
import os

from tubevit.cli.evaluate import add_data_arguments, data_options
from tubevit.cli.inspect import share_text
from tubevit.errors import UserError, cannot_write

HELP = "make a model of fewer or other tubes from a dense video model, without training"
EXAMPLES = (
    "tubevit sparsify vivit vivit_half --tubes 2x16x16/4x16x16                    # every second tubelet in time",
    "tubevit sparsify videomae videomae_paper --tubes paper --data k400:val.csv@clips --views 5x3",
    "tubevit sparsify runs/dense sparse --tubes small --json",
)

_PROTOCOL = ("views", "crop", "average", "clip_placement")


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add(
        "name",
        metavar="NAME",
        help="the dense model: workdir, checkpoint folder, saved or released model, or hf://owner/repo",
    )
    add("out", metavar="OUT", help="new folder for the checkpoint")
    add("--tubes", required=True, help="tubes, as a preset or as text; space-to-depth is left out")
    add("--data", metavar="SOURCE", help="source to evaluate both models on")
    add_data_arguments(parser)
    add("--json", action="store_true", help="print JSON")


def run(args) -> None:
    """Run the verb."""
    from tubevit import storage, writable
    from tubevit.checkpoint.checkpoint import Checkpoint, save_model
    from tubevit.transfer.sparsify import sparse_source, sparsify
    from tubevit.zoo.describe import describe
    from tubevit.zoo.names import open_checkpoint

    options = data_options(args)
    names = ("split", "batch_size", "views", "average", "allow_overlap", "max_broken")
    flags = [name for name in names if getattr(args, name)]
    if flags and not args.data:
        raise UserError(f"--{flags[0].replace('_', '-')} goes with --data")
    if storage.exists(args.out):
        raise UserError(f"{args.out} exists already; name a new folder")
    writable.check_file(os.fspath(args.out).rstrip("/"), "name another folder")
    dense = open_checkpoint(args.name)
    model, notes = sparsify(dense, args.tubes)
    options = dataclasses.replace(options, run=dense.experiment)  # both are evaluated alike
    rows = [describe(name, config) for name, config in ((args.name, dense.model), (args.out, model.config))]
    scores = [_scores(dense, options)] if args.data else []
    try:
        save_model(model, args.out, metadata={"source": sparse_source(dense)})
    except OSError as error:
        raise cannot_write(args.out, error, "name another folder") from error
    if args.data:
        scores.append(_scores(Checkpoint(storage.as_path(args.out), args.out), options))
    keys = ("name", "tokens", "pixels_read", "parameters", "flops")
    results = [{key: row[key] for key in keys} | {"tubes": [tube["tube"] for tube in row["tubes"]]} for row in rows]
    results = [result | score for result, score in zip(results, scores or [{}, {}])]
    record = {"before": results[0], "after": results[1], "notes": notes}
    print(json.dumps(record, indent=2) if args.json else _table(results, notes))


def _scores(checkpoint, options) -> dict:
    from tubevit.errors import RunError
    from tubevit.evaluation import evaluate_checkpoint

    (evaluation,) = evaluate_checkpoint(checkpoint, options, progress=True)
    if failed := evaluation.record["failed"]:
        raise RunError(f"{checkpoint.name}: {failed}: the score does not count (--max-broken raises the limit)")
    keys = ("dataset", "head", "split", *_PROTOCOL, "clips_used", "top1", "top5", "map", "loss")
    return {key: evaluation.record[key] for key in keys}


def _table(results: list[dict], notes: list[str]) -> str:
    scores = [key for key in ("top1", "top5", "map") if results[0].get(key) is not None]
    width = max(len(result["name"]) for result in results) + 2
    columns = (("tokens", 8), ("pixels read", 13), ("parameters", 13), ("GFLOPs", 10), *((key, 9) for key in scores))
    lines = [" " * width + "".join(f"{name:>{size}s}" for name, size in columns)]
    for result in results:
        line = (
            f"{result['name']:{width}s}{result['tokens']:8d} {share_text(result['pixels_read'])}"
            f"{result['parameters'] / 1e6:11.1f} M{result['flops'] / 1e9:10.2f}"
        )
        lines.append(line + "".join(f"{result[key]:9.2%}" for key in scores))
    if scores:
        first = results[0]
        protocol = ", ".join(f"{key.replace('_', ' ')} {first[key]}" for key in _PROTOCOL)
        lines.append(f"{first['clips_used']} clips, split {first['split']}, {protocol}; no training between")
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])
