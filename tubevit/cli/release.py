"""`tubevit release`."""

from __future__ import annotations

import functools
import sys

from tubevit.errors import UserError

HELP = "make a run's checkpoint a released one: weights, entry in the index, model card, evaluated"
EXAMPLES = (
    "tubevit release runs/quickstart tubevit_nano8@moving_digits --bfloat16 --config quickstart",
    "tubevit release runs/quickstart tubevit_nano8@moving_digits --replace --step 600",
    "tubevit release runs/k600 tubevit_b16@k600 --url https://example.org/tubevit_b16@k600.tar",
)


def add_arguments(parser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("workdir", metavar="WORKDIR", help="of a run, or the folder of one of its checkpoints")
    parser.add_argument("name", metavar="NAME", help="ARCHITECTURE@TAG; the tag names data and variant")
    parser.add_argument("--step", type=int, help="of the checkpoint in the workdir; default: the last")
    parser.add_argument("--bfloat16", action="store_true", help="store the weights so, in half the bytes")
    parser.add_argument(
        "--config", metavar="FILE[:arg=value,...]", help="the experiment that was trained; it is compared with the run"
    )
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights (default Apache-2.0, as of the code)")
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        help="where the archive will be, mirrors after it: it is written to NAME.tar here, not into the repository",
    )
    parser.add_argument(
        "--replace", action="store_true", help="a release of this name, with its model card, edited or not"
    )
    parser.set_defaults(config_overrides={})


def run(args) -> None:
    """Run the verb."""
    from tubevit.evaluation import evaluate_checkpoint
    from tubevit.zoo.names import open_checkpoint
    from tubevit.zoo.registry import checkpoints_folder
    from tubevit.zoo.release import ReleaseOptions, check_new, release

    def evaluate(stored) -> list[dict]:
        print(f"evaluating {args.name}", file=sys.stderr, flush=True)
        return [evaluation.record for evaluation in evaluate_checkpoint(stored, progress=True)]

    checkpoint = open_checkpoint(args.workdir, args.step)
    check_new(args.name, checkpoint, args.replace)
    options = ReleaseOptions(
        "bfloat16" if args.bfloat16 else "float32", args.licence,
        config=_experiment(args, checkpoint.experiment) if args.config else "",
        urls=tuple(args.url), archive=f"{args.name}.tar", replace=args.replace,
    )  # fmt: skip
    entry = release(checkpoint, args.name, options, evaluate=evaluate, draw=_curves)
    for each in entry.metrics:
        scores = [f"{key} {100 * each[key]:.2f} %" for key in ("top1", "top5", "map") if each[key] is not None]
        print(f"{each['dataset']} ({each['head']}): {', '.join(scores)} of {each['clips']}")
    place = checkpoints_folder() / args.name
    written = options.archive if args.url else place
    print(f"{args.name}: {entry.bytes / 1e6:.1f} MB in {written}; card: {place / 'README.md'}")


def _curves(checkpoint) -> dict[str, bytes]:
    """Pictures of the training of a run's checkpoint and what they show, by file name; none without its metrics."""
    from tubevit import storage
    from tubevit.visualize.curves import drawn_metrics, has_scores, loss_figure, read_metrics, score_figure
    from tubevit.visualize.page import Picture
    from tubevit.visualize.style import LIGHT

    path = storage.join(checkpoint.home, "metrics.jsonl")
    if not storage.exists(path):
        print(f"the card gets no curves: there is no {path}", file=sys.stderr, flush=True)
        return {}
    metrics = read_metrics(storage.read_bytes(path).decode())
    figures = {"loss": loss_figure} | ({"accuracy": score_figure} if has_scores(metrics) else {})
    pictures = {
        f"{name}.svg": Picture(name, "", functools.partial(draw, metrics)).rendered(LIGHT, ["svg"])["svg"]
        for name, draw in figures.items()
    }
    return pictures | {"metrics.jsonl": drawn_metrics(metrics).encode()}


def _experiment(args, stored: dict) -> str:
    """The experiment as `tubevit train --config` takes it; raises UserError if it is not what was trained."""
    import json

    from tubevit.config import flatten, load_config
    from tubevit.config.keys import CHANGE_NOTHING
    from tubevit.config.resolve import apply_recipe

    config, *_ = apply_recipe(load_config(args.config, args.config_overrides))
    given = flatten(json.loads(json.dumps(config.to_dict())))
    found = flatten(json.loads(json.dumps(stored)))
    differing = [
        f"{key}: {found.get(key)!r} there, {given.get(key)!r} now"
        for key in sorted({*given, *found})
        if given.get(key) != found.get(key)
        and not key.startswith(CHANGE_NOTHING)
        and not (key.endswith(".head") and given.get(key) is None)  # follows from the data
    ]
    if differing:
        raise UserError(f"{args.workdir} was not trained with {args.config}: {'; '.join(differing[:5])}")
    return " ".join([args.config, *(f"--config.{key}={value}" for key, value in args.config_overrides.items())])
