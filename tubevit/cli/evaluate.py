"""`tubevit evaluate`."""

from __future__ import annotations

import itertools
import json
import logging

from tubevit.errors import SplitError, UserError

logger = logging.getLogger(__name__)

DISTRIBUTED = True  # all processes of a job run it together
HELP = "evaluate a checkpoint on its configuration's data or on another source; writes eval.json"
EXAMPLES = (
    "tubevit evaluate --workdir runs/quickstart",
    "tubevit evaluate --workdir runs/quickstart --step 400 --json",
    "tubevit evaluate --checkpoint my_model --data clips.csv --head motion",
    "tubevit evaluate --checkpoint my_model --data clips.csv --probe knn",
)


def add_arguments(parser) -> None:
    """Adds the flags of the verb."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", help="of a run; its last checkpoint is taken")
    which.add_argument("--checkpoint", metavar="NAME", help="workdir, checkpoint folder, saved or released model")
    parser.add_argument("--step", type=int, help="of the checkpoint in the workdir")
    parser.add_argument("--config", metavar="FILE[:arg=value,...]", help="take data.eval from this experiment")
    parser.add_argument("--data", metavar="SOURCE", help="evaluate this source instead of data.eval")
    parser.add_argument("--split", help="of --data; default: val, else test, else all")
    parser.add_argument("--head", help="of --data; may be left out where the model has one")
    parser.add_argument("--batch-size", type=int, help="default: the configuration's, 16 with --data")
    parser.add_argument("--views", metavar="TxS", help="temporal x spatial, e.g. 4x3; default: the configuration's")
    parser.add_argument(
        "--probe",
        choices=("linear", "knn"),
        help="score frozen features in place of a head: a classifier on those of the split train; any classes",
    )
    parser.add_argument(
        "--out",
        help="default: eval.json, or probe_linear.json or probe_knn.json, in the workdir, beside the saved model's "
        "parameters, or here for a released one",
    )
    parser.add_argument("--json", action="store_true", help="print the records as JSON")
    parser.set_defaults(config_overrides={})


def run(args) -> None:
    """Runs the verb."""
    from tubevit import storage
    from tubevit.config import load_config
    from tubevit.config.experiment import open_eval
    from tubevit.config.resolve import apply_recipe
    from tubevit.data.views import Views
    from tubevit.evaluation.evaluate import evaluate_source, make_forward, write_class_tables
    from tubevit.evaluation.probe import make_features, open_probe, probe_source
    from tubevit.models.abstract import parameters
    from tubevit.sharding.hosts import is_main
    from tubevit.sharding.rules import put
    from tubevit.zoo.names import open_checkpoint

    if args.data and args.config:
        raise UserError("pass --data or --config, not both")
    if not args.data and (args.split or args.head):
        raise UserError("--split and --head go with --data")
    if args.step is not None and args.checkpoint:
        raise UserError("--step goes with --workdir")
    checkpoint = open_checkpoint(args.workdir or args.checkpoint, args.step)
    metadata, model = checkpoint.metadata, checkpoint.load_model()
    views = metadata.get("config", {}).get("eval", {}).get("views", "1x1")
    path = metadata.get("config", {}).get("input", {}).get("path", "tubes")
    if args.config:
        config, *_ = apply_recipe(load_config(args.config, args.config_overrides))
        datasets, views, path = config.data.eval, config.eval.views, config.input.path
    elif args.data:
        datasets = {"data": _dataset(args, model)}
    else:
        datasets = _stored_datasets(metadata, checkpoint)
    threads = metadata.get("config", {}).get("loader", {}).get("threads", 2)
    mesh = _mesh(metadata)
    params = put(parameters(model), mesh)
    views = Views.from_text(args.views or views)
    out = args.out or _default_out(args, checkpoint)
    records, tables = [], []
    for name, dataset in datasets.items():
        if args.batch_size:
            dataset.batch_size = args.batch_size
        opened = (model.config, name, dataset, path)
        loads = open_probe(*opened) if args.probe else (open_eval(*opened),)
        for note in dict.fromkeys(note for load in loads for note in load.source.notes):
            logger.info(note)
        settings = {
            "name": name, "head": dataset.head, "views": views, "threads": threads, "mesh": mesh,
            "progress": name if is_main() else None,
        }  # fmt: skip
        if args.probe:
            features = make_features(model.config, mesh)
            record, predictions = probe_source(args.probe, features, params, *loads, dataset.batch_size, **settings)
        else:
            forward = make_forward(model.config, dataset.head, mesh)
            record, predictions = evaluate_source(forward, params, *loads, dataset.batch_size, **settings)
        origin = {"split": dataset.split, "checkpoint": str(checkpoint), "step": metadata.get("step")}
        records.append(record | origin)
        tables.append((predictions, loads[-1], f"{out.removesuffix('.json')}_{name}"))
    if not is_main():
        return
    try:
        storage.write_text(out, json.dumps(records, indent=2) + "\n")
        written = [out, *itertools.chain.from_iterable(write_class_tables(*table) for table in tables)]
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; name another file with --out") from error
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        print("\n".join(map(_line, records)) + f"\nwritten to {', '.join(written)}")


def _mesh(metadata: dict):
    """The mesh of the run, or of all devices where it does not fit these."""
    from tubevit.config import default_config
    from tubevit.sharding.mesh import make_mesh

    settings = default_config().mesh
    try:
        return make_mesh(type(settings)({**settings, **metadata.get("config", {}).get("mesh", {})}))
    except UserError:
        return make_mesh(settings)


def _dataset(args, model):
    from tubevit.config import dataset_config

    heads = dict(model.config.heads)
    if args.probe:
        head = args.head  # a label set of embedded data
    elif not heads:
        raise UserError(f"{args.workdir or args.checkpoint} has no head to evaluate; --probe needs none")
    elif args.head is None and len(heads) != 1:
        raise UserError(f"the model has several heads: pass --head, one of {', '.join(heads)}")
    else:
        head = args.head or next(iter(heads))
    split = args.split or _held_out(args.data, head)
    return dataset_config(source=args.data, split=split, head=head, batch_size=args.batch_size or 16)


def _held_out(data: str, head: str | None) -> str:
    from tubevit.data.sources import held_out_split

    try:
        return held_out_split(data, head)
    except SplitError:
        return "all"


def _stored_datasets(metadata: dict, checkpoint):
    from tubevit.config import dataset_config

    stored = metadata.get("config", {}).get("data", {}).get("eval", {})
    if not stored:
        raise UserError(f"{checkpoint} names no evaluation data: pass --data SOURCE or --config FILE")
    return {name: dataset_config(**values) for name, values in stored.items()}


def _default_out(args, checkpoint) -> str:
    from tubevit import storage
    from tubevit.zoo.registry import is_release

    name, file = args.workdir or args.checkpoint, f"probe_{args.probe}.json" if args.probe else "eval.json"
    if is_release(name) and not storage.exists(name):
        return file  # what was released stays as it is
    return storage.join(args.workdir or checkpoint.workdir or checkpoint.folder, file)


def _line(record: dict) -> str:
    scores = [f"{key} {100 * record[key]:.2f} %" for key in ("top1", "top5", "map") if record[key] is not None]
    broken = f", {len(record['broken'])} broken" if record["broken"] else ""
    what, settings = record["head"], ""
    if "probe" in record:
        what = f"{record['probe']} probe"
        settings = f"; learned from {record['train_clips_used']} clips: {record['probe_settings']}"
    return (
        f"{record['dataset']} ({what}): {', '.join(scores)}, loss {record['loss']:.4f}; "
        f"{record['clips_used']} of {record['clips_listed']} clips{broken}, "
        f"views {record['views']}, split {record['split']}{settings}"
    )
