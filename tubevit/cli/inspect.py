"""`tubevit inspect`."""

import json
import logging

from tubevit.cli.budget_flag import add_budget
from tubevit.errors import UserError
from tubevit.ranges import COUNT, WHOLE

logger = logging.getLogger(__name__)
HELP = "compare models: tokens and pixels of each tube, parameters, FLOPs, activation memory"
EXAMPLES = (
    "tubevit inspect tubevit_b16 tubevit_l16 tubevit_h16",
    "tubevit inspect tubevit_b16 --tubes core --frames 64 --num-classes 600 --json",
    "tubevit inspect tubevit_b16 --budget 25%",
    "tubevit inspect --config quickstart",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help="architectures, workdirs, checkpoints, saved or released models, hf://owner/repo",
    )
    add("--config", metavar="FILE[:arg=value,...]", help="inspect the model of an experiment")
    add("--tubes", help="tubes, as a preset or as text, instead of the model's own")
    add_budget(add)
    add("--padding", help="padding of the tubes: valid or same")
    add("--frames", type=COUNT, help="number of frames of the clip")
    add("--size", type=COUNT, help="height and width of the clip in pixels")
    add(
        "--num-classes",
        type=WHOLE,
        help="number of classes of a new head instead of the model's own ones (architectures: 600); 0 for none",
    )
    add("--json", action="store_true", help="print JSON")


def run(args) -> None:
    """Run the verb."""
    from tubevit.zoo.describe import describe

    if not args.names and not args.config:
        raise UserError("name a model, or pass --config FILE")
    changes = {key: getattr(args, key) for key in ("tubes", "padding", "budget", "frames", "size")}
    changes = {key: value for key, value in changes.items() if value is not None}
    configs = [(name, _model(name, args, changes)) for name in args.names]
    if args.config:
        configs.append((args.config, _experiment_model(args, changes)))
    rows = [describe(name, config) for name, config in configs]
    print(json.dumps(rows, indent=2) if args.json else _table(rows))


def _model(name: str, args, changes: dict):
    from tubevit.models.variants import ARCHITECTURES
    from tubevit.zoo.names import named_config

    default = 600 if name in ARCHITECTURES else None
    return _with_classes(named_config(name, **changes), default if args.num_classes is None else args.num_classes)


def _experiment_model(args, changes: dict):
    from tubevit.budget import shares
    from tubevit.config import load_config
    from tubevit.config.resolve import resolve

    resolved = resolve(load_config(args.config, args.config_overrides), assume_missing=True)
    for note in resolved.notes:
        logger.info(note)
    elastic = resolved.config.train.elastic
    if shares(elastic) not in ([], [1.0]) and resolved.model.replace(**changes).budget is None:
        counted = "`tubevit preflight` counts those of the step with the most tokens"
        logger.info(f"train.elastic={elastic}: the FLOPs are those with all tokens; {counted}")
    return _with_classes(resolved.model.replace(**changes), args.num_classes)


def _with_classes(model, classes: int | None):
    """Replace the heads of a model by one with so many classes; None keeps them."""
    from tubevit.models.variants import as_heads

    return model if classes is None else model.replace(heads=as_heads(classes, None, model.tubes))


def _sent(row: dict) -> list[str]:
    """Lines on the bytes of both paths; a warning where tubes do not save any of a clip, or cost more of an image."""
    lines = []
    for kind, size in row["bytes"].items():
        share, (dense, tubes) = size["tubes"] / size["dense"], (f"{size[path] / 1e3:,.1f} kB" for path in size)
        lines.append(f"  bytes per {kind}: dense {dense}, tubes {tubes} ({share:.1%})")
        if share > 1 or (share == 1 and kind == "clip"):
            lines.append(
                f"  warning: tubes are not smaller than the {kind} ({share:.2f} times): input.path=dense sends it whole"
            )
    return lines


def _tokens(row: dict) -> str:
    return f"{row['tokens']} tokens" + (f" (budget {row['budget']})" if row["budget"] else "")


def share_text(value: float | None) -> str:
    """Write a share of the pixels in 12 characters; None depends on the clip."""
    return "by the clip".rjust(12) if value is None else f"{value:12.2%}"


def _table(rows: list[dict]) -> str:
    lines, layouts = [], {}
    for row in rows:  # models of the same tubes, tokens and input share a layout
        layouts.setdefault((row["input"], str(row["tubes"]), _tokens(row)), []).append(row)
    for group in layouts.values():
        row = group[0]
        lines.append(f"{', '.join(r['name'] for r in group)}: input {row['input']}, {_tokens(row)}")
        lines.append(
            f"  {'tube (kernel/stride+offset%space-to-depth)':44s} {'grid':>10s} {'tokens':>7s} {'pixels read':>12s}"
        )
        for tube in row["tubes"]:
            grid = "x".join(map(str, tube["grid"]))
            lines.append(f"  {tube['tube']:44s} {grid:>10s} {tube['tokens']:7d} {share_text(tube['pixels_read'])}")
        lines.append(
            f"  {'all':44s} {'':>10s} {row['tokens']:7d} {share_text(row['pixels_read'])}"
            f"   ({row['values_read'] / 1e6:.2f} of {row['clip_values'] / 1e6:.2f} MB as uint8)"
        )
        lines += [*_sent(row), ""]
    width = max(len(row["name"]) for row in rows) + 2
    lines.append(
        f"{'':{width}s}{'parameters':>14s}{'trainable':>11s}{'state':>12s}{'GFLOPs':>10s}{'GMACs':>10s}"
        f"{'training':>10s}{'activations':>14s}   a view"
    )
    for row in rows:
        lines.append(
            f"{row['name']:{width}s}{row['parameters'] / 1e6:12.1f} M{row['trainable_share']:11.0%}"
            f"{row['state_bytes'] / 2**20:8.0f} MiB{row['flops'] / 1e9:10.1f}{row['macs'] / 1e9:10.1f}"
            f"{row['training_flops'] / 1e9:10.1f}{row['activation_bytes'] / 2**20:10.0f} MiB"
        )
    return "\n".join(lines)
