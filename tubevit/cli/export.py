"""`tubevit export`."""

import pathlib

from tubevit.errors import UserError

HELP = "export a model for other programs: safetensors with a JSON file, or a program of jax.export"
EXAMPLES = (
    "tubevit export runs/quickstart exported --format safetensors",
    "tubevit export runs/quickstart serving --format jax --head motion",
    "tubevit export my_model serving_cpu --format jax --platforms cpu",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("name", metavar="NAME", help="workdir, checkpoint folder, saved or released model, or hf://owner/repo")
    add("folder", metavar="DIR", help="new or empty folder")
    add("--format", required=True, choices=("safetensors", "jax"))
    add("--platforms", metavar="NAME,...", help="for --format jax: platforms it can run on (default cpu,tpu,cuda)")
    add("--head", help="for --format jax: head to export; may be omitted if the model has one head")


def run(args) -> None:
    """Run the verb."""
    from tubevit.convert.export import PLATFORMS, check_new_folder, export_jax, export_safetensors
    from tubevit.zoo.names import load_model

    if args.format != "jax" and (args.platforms is not None or args.head is not None):
        raise UserError("--platforms and --head go with --format jax")
    check_new_folder(args.folder)
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
