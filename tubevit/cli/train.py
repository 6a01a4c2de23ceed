"""`tubevit train`."""

DISTRIBUTED = True  # all processes of a job run it together
HELP = "train an experiment; resumes automatically if the workdir holds a run"
EXAMPLES = (
    "tubevit train --config quickstart --workdir runs/quickstart",
    "tubevit train --config bootstrap --workdir gs://bucket/run --config.mesh.fsdp=16 --print-sharding",
    "tubevit train --config experiments/quickstart.py:seed=1 --workdir runs/seed1 --config.train.steps=1200",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add(
        "--config", required=True, metavar="FILE[:arg=value,...]",
        help="experiment: a file, or the bare name of one in experiments/",
    )  # fmt: skip
    add("--workdir", required=True, help="folder for config.json, metrics.jsonl, TensorBoard events and checkpoints/")
    add(
        "--allow-change", action="append", default=[], metavar="KEY",
        help="configuration key that may differ from the run to resume; may be repeated",
    )  # fmt: skip
    add(
        "--allow-overlap", action="store_true", help="accept a csv that lists a file in two splits, e.g. train and test"
    )
    add("--profile", metavar="steps=A:B", help="write a profile of steps A to B - 1 to WORKDIR/profile")
    add("--print-sharding", action="store_true", help="print the sharding of the parameters and exit")
    parser.add_argument_group("--config.key=value", "overrides a value of the configuration")


def run(args) -> None:
    """Run the verb."""
    from tubevit.config import allow_overlap, load_config
    from tubevit.sharding.hosts import run_on_all
    from tubevit.training.loop import train
    from tubevit.training.run.profile import parse_steps

    config = run_on_all(lambda: load_config(args.config, args.config_overrides))
    config = allow_overlap(config) if args.allow_overlap else config
    if args.print_sharding:
        return _print_sharding(config)
    profile = parse_steps(args.profile) if args.profile else None
    train(config, args.workdir, tuple(args.allow_change), profile)


def _print_sharding(config) -> None:
    from tubevit.config.resolve import resolve_on_main
    from tubevit.models.lora import training_shapes
    from tubevit.sharding.hosts import is_main
    from tubevit.sharding.rules import sharding_table
    from tubevit.training.loop import checked_mesh

    resolved = resolve_on_main(config)
    mesh = checked_mesh(resolved)
    if is_main():
        print(sharding_table(training_shapes(resolved.model), mesh))
