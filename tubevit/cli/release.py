"""`tubevit release`."""

import functools
import logging

from tubevit.errors import RunError, UserError
from tubevit.ranges import WHOLE

logger = logging.getLogger(__name__)
HELP = "release a checkpoint of a run: write its weights, evaluate them, write a model card and an entry in the index"
EXAMPLES = (
    "tubevit release runs/quickstart tubevit_nano8@moving_digits --bfloat16 --config quickstart --split test",
    "tubevit release runs/quickstart tubevit_nano8@moving_digits --replace --step 600",
    "tubevit release runs/k600 tubevit_b16@k600 --to hf://owner/tubevit_b16_k600   # or gs://bucket/folder",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("workdir", metavar="WORKDIR", help="workdir of a run, or the folder of one of its checkpoints")
    add("name", metavar="NAME", help="ARCHITECTURE@TAG, where the tag names data and variant")
    add("--step", type=WHOLE, help="step of the checkpoint in the workdir (default: the last good one)")
    add("--bfloat16", action="store_true", help="store the weights in bfloat16, which halves their size")
    add(
        "--config",
        metavar="FILE[:arg=value,...]",
        help="experiment that was trained, compared with the configuration of the run",
    )
    add("--split", help="split to evaluate on, for example test (default: that of the run)")
    add("--licence", default="Apache-2.0", help="licence of the weights (default Apache-2.0, that of the code)")
    add(
        "--to",
        metavar="ADDRESS",
        help="publish weights, card and figures at hf://owner/repo, or in a folder such as gs://bucket/folder; "
        "only the card is then added to the repository",
    )
    add("--replace", action="store_true", help="replace a release of this name, here and at --to, and its model card")


def run(args) -> None:
    """Run the verb."""
    from tubevit.evaluation import EvalOptions, evaluate_checkpoint
    from tubevit.zoo.names import open_checkpoint
    from tubevit.zoo.registry import checkpoints_folder
    from tubevit.zoo.release import ReleaseOptions, is_checkout, release

    records: list[dict] = []
    evaluated = EvalOptions(split=args.split)

    def evaluate(stored) -> list[dict]:
        logger.info(f"evaluating {args.name}")
        records.extend(evaluation.record for evaluation in evaluate_checkpoint(stored, evaluated, progress=True))
        if failed := [record["failed"] for record in records if record["failed"]]:
            raise RunError(f"{args.name} is not released: {'; '.join(failed)}")
        return records

    checkpoint = open_checkpoint(args.workdir, args.step)
    options = ReleaseOptions(
        "bfloat16" if args.bfloat16 else "float32", args.licence,
        config=_experiment(args, checkpoint.experiment) if args.config else "", split=args.split,
        to=args.to or "", replace=args.replace,
    )  # fmt: skip
    try:
        entry = release(checkpoint, args.name, options, evaluate=evaluate, draw=_curves)
    finally:  # the scores are shown even if the release cannot be written
        for each in records:
            scores = [f"{key} {100 * each[key]:.2f} %" for key in ("top1", "top5", "map") if each[key] is not None]
            print(f"{each['dataset']} ({each['head']}): {', '.join(scores)} of {each['clips_used']}", flush=True)
    place = checkpoints_folder() / args.name
    card = f"; card: {place / 'README.md'}" if is_checkout() else ""
    print(f"{args.name}: {entry.bytes / 1e6:.1f} MB in {entry.source or place}{card}")


def _curves(checkpoint) -> dict[str, bytes]:
    """Draw the training curves of a run; returns files by name, none if the run has no metrics."""
    from tubevit import storage
    from tubevit.visualize.curves import drawn_metrics, has_scores, loss_figure, read_metrics, score_figure
    from tubevit.visualize.page import Picture
    from tubevit.visualize.style import LIGHT

    path = storage.join(checkpoint.home, "metrics.jsonl")
    if not storage.exists(path):
        logger.info(f"the card has no curves: {path} does not exist")
        return {}
    metrics = read_metrics(storage.read_bytes(path).decode())
    figures = {"loss": loss_figure} | ({"accuracy": score_figure} if has_scores(metrics) else {})
    pictures = {
        f"{name}.svg": Picture(name, "", functools.partial(draw, metrics)).rendered(LIGHT, ["svg"])["svg"]
        for name, draw in figures.items()
    }
    return pictures | {"metrics.jsonl": drawn_metrics(metrics).encode()}


def _experiment(args, stored: dict) -> str:
    """Return the experiment as `tubevit train --config` takes it; raises UserError if the run differs from it."""
    from tubevit.config import changed_keys, load_config
    from tubevit.config.derive import apply_recipe

    config, *_ = apply_recipe(load_config(args.config, args.config_overrides))
    differing = [
        f"{key}: {found!r} in the run, {given!r} in the experiment"
        for key, (found, given) in changed_keys(stored, config.to_dict()).items()
        if not (key.endswith(".head") and given is None)  # follows from the data
    ]
    if differing:
        raise UserError(f"{args.workdir} was not trained with {args.config}: {'; '.join(differing[:5])}")
    return " ".join([args.config, *(f"--config.{key}={value}" for key, value in args.config_overrides.items())])
