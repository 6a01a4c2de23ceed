"""`tubevit export`."""

from __future__ import annotations

import pathlib

from tubevit.errors import UserError

HELP = "write a model for other programs: safetensors with a json, or a program of jax.export"
EXAMPLES = (
    "tubevit export runs/quickstart exported --format safetensors",
    "tubevit export runs/quickstart serving --format jax --head motion",
    "tubevit export my_model serving_cpu --format jax --platforms cpu",
)


def add_arguments(parser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("name", metavar="NAME", help="workdir, checkpoint folder, saved or released model")
    parser.add_argument("folder", metavar="DIR", help="a new or empty folder")
    parser.add_argument("--format", required=True, choices=("safetensors", "jax"))
    parser.add_argument(
        "--platforms", metavar="NAME,...", help="of --format jax: where it can run (default cpu,tpu,cuda)"
    )
    parser.add_argument("--head", help="of --format jax; may be left out where the model has one")


def run(args) -> None:
    """Runs the verb."""
    from tubevit.convert.export import PLATFORMS, export_jax, export_safetensors
    from tubevit.zoo.names import load_model

    if args.format != "jax" and (args.platforms is not None or args.head is not None):
        raise UserError("--platforms and --head go with --format jax")
    model = load_model(args.name)
    if args.format == "jax":
        platforms = PLATFORMS if args.platforms is None else args.platforms.split(",")
        if args.head is None and len(model.labels) > 1:
            raise UserError(f"the model has several heads: pass --head, one of {', '.join(model.labels)}")
        export_jax(model, args.folder, args.head, platforms)
    else:
        export_safetensors(model, args.folder)
    for path in sorted(pathlib.Path(args.folder).iterdir()):
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")
