"""`tubevit preflight`."""

import json
import logging

from tubevit.errors import RunError, UserError
from tubevit.ranges import COUNT, POSITIVE, WHOLE

logger = logging.getLogger(__name__)
_CHIPS = 256  # of the largest slice of a plan
HELP = "compile an experiment for TPUs or GPUs that are not attached: memory, FLOPs, collectives, whether it fits"
EXAMPLES = (
    "tubevit preflight --config k600 --topology v5e:16x16",
    "tubevit preflight --config k600:model=tubevit_h16 --topology v5litepod-256 --config.mesh.fsdp=16 --suggest",
    "tubevit preflight --config k600 --topology v5e:8x8 --top-bytes 10 --top-cycles 10",
    "tubevit preflight --config k600 --topology cuda:h100x8 --json",
    "tubevit preflight --config k600:model=tubevit_h16 --topology v5e,v6e --chips 256 --plan",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:arg=value,...]", help="the experiment")
    add(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:16x16, v4:4x4x8, cuda:h100x8, or an accelerator type of gcloud such as v5litepod-256; it describes "
        "one slice, and --config.mesh.slices=N sets their number; with --plan several, or all of a generation: v5e,v6e",
    )
    add(
        "--plan",
        action="store_true",
        help="find the slices and settings on the front of time and chip-hours for the whole run, and print the "
        "commands that launch them; the batch and all keys that you set stay",
    )
    add("--chips", type=COUNT, metavar="N", help=f"with --plan: chips of the largest slice (default: {_CHIPS})")
    add(
        "--minutes",
        type=POSITIVE,
        metavar="N",
        help="with --plan: time for compiling; what is not compiled then is listed with its bounds (default: 15)",
    )
    add("--suggest", action="store_true", help="if it does not fit, try configuration changes that may make it fit")
    add(
        "--effort",
        choices=("full", "low"),
        default="full",
        help="effort of the compiler for TPUs: full, as in training, or low, which is faster, but states far more "
        "cycles and bytes than training has (default: full, and low after 3 minutes)",
    )
    for key in ("bytes", "cycles"):
        costliest = f"list the N instructions of the training step with the most {key}"
        add(f"--top-{key}", type=WHOLE, default=0, metavar="N", help=costliest)
    add("--json", action="store_true", help="print JSON")


def run(args, compiler=None) -> None:
    """Run the verb; `compiler` replaces `compile_in_process`."""
    if args.plan:
        return _plan(args, compiler)
    for flag, value in (("--chips", args.chips), ("--minutes", args.minutes)):
        if value is not None:
            raise UserError(f"{flag} goes with --plan")
    from tubevit.preflight.report import report, verdicts
    from tubevit.preflight.run import compile_in_process, preflight, suggest
    from tubevit.preflight.topology import find_topology

    compiler = compiler or compile_in_process
    topology = find_topology(args.topology)
    if topology.asked:
        logger.info(f"{topology.asked} is {topology.name}")
    top = {"bytes": args.top_bytes, "cycles": args.top_cycles}
    found = preflight(args.config, args.config_overrides, topology, effort=args.effort, top=top, compiler=compiler)
    if args.suggest and not found["parts"]["train"]["fits"]:
        logger.info("it does not fit; trying with low effort:")
        found["suggestion"] = suggest(
            args.config, args.config_overrides, topology, found["mesh"], logger.info, compiler
        )
    print(json.dumps(found, indent=2) if args.json else report(found))
    if found["fits"]:
        return
    change, why = found.get("suggestion"), verdicts(found)[0].removeprefix("DOES NOT FIT: ")
    hint = "; it fits with " + " ".join(f"--config.{k}={v}" for k, v in change.items()) if change else ""
    if args.suggest and not change:
        hint = "; nothing that was tried makes it fit: take more or larger chips"
        if found["parts"]["train"]["fits"]:
            hint = "; the training step fits: lower the batch sizes of data.eval"
    raise RunError(f"{args.config} does not fit {topology.name}: {why}{hint}")


def _plan(args, compiler) -> None:
    from tubevit.preflight.candidates import slices_of
    from tubevit.preflight.plan import MINUTES, plan
    from tubevit.preflight.plan_report import needed, plan_report

    given = {"--suggest": args.suggest, "--effort low": args.effort == "low"}
    given |= {"--top-bytes": args.top_bytes, "--top-cycles": args.top_cycles}
    if other := [flag for flag, value in given.items() if value]:
        raise UserError(f"--plan compiles many steps with full effort; {other[0]} is for a single topology")
    options = {} if compiler is None else {"compiler": compiler}
    overrides, log = args.config_overrides, logger.info
    slices = slices_of(args.topology, args.chips or _CHIPS)
    found = plan(args.config, overrides, slices, args.minutes or MINUTES, log, **options)
    print(json.dumps(found, indent=2) if args.json else plan_report(found))
    generations = found["generations"].values()
    failed = [each for generation in generations for each in generation["failed"].items()]
    if failed and not any(generation["front"] for generation in generations):
        raise RunError(f"no step was compiled that fits: {failed[0][0]} failed: {failed[0][1]}")
    if not any(generation["front"] or generation["open"] for generation in generations):
        row = min((generation["smallest"] for generation in generations), key=lambda row: row["peak"] / row["hbm"])
        raise RunError(f"nothing fits: {row['settings']} is nearest and needs {needed(row)}")
