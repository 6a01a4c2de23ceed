"""`tubevit train`."""

from __future__ import annotations

HELP = "train an experiment; goes on by itself where the workdir's run ended"
EXAMPLES = (
    "tubevit train --config quickstart --workdir runs/quickstart",
    "tubevit train --config experiments/quickstart.py:seed=1 --workdir runs/seed1 --config.train.steps=1200",
)


def add_arguments(parser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument(
        "--config", required=True, metavar="FILE[:arg=value,...]", help="experiment, a file or a bare name"
    )
    parser.add_argument("--workdir", required=True, help="gets config.json, metrics.jsonl, events and checkpoints/")
    parser.add_argument(
        "--allow-change", action="append", default=[], metavar="KEY", help="this key may differ from the run to resume"
    )
    parser.set_defaults(config_overrides={})
    parser.add_argument_group("--config.key=value", "replaces a value of the configuration")


def run(args) -> None:
    """Runs the verb."""
    from tubevit.config import load_config
    from tubevit.training.loop import train

    train(load_config(args.config, args.config_overrides), args.workdir, tuple(args.allow_change))
