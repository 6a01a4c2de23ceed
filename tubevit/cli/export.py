"""`tubevit export`."""

import pathlib

from tubevit.cli.budget_flag import add_budget
from tubevit.errors import UserError

HELP = "export a model for other programs: safetensors with a JSON file, a program of jax.export, PyTorch, or ONNX"
EXAMPLES = (
    "tubevit export runs/quickstart exported --format safetensors",
    "tubevit export runs/quickstart serving --format jax --head motion",
    "tubevit export my_model serving_cpu --format jax --platforms cpu",
    "tubevit export runs/quickstart for_torch --format torch",
    "tubevit export runs/quickstart serving_onnx --format onnx --head motion",
)
_OF_ONE_HEAD = ("jax", "onnx")


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("name", metavar="NAME", help="workdir, checkpoint folder, saved or released model, or hf://owner/repo")
    add("folder", metavar="DIR", help="new or empty folder")
    add("--format", required=True, choices=("safetensors", "jax", "torch", "onnx"))
    add_budget(add)
    add("--platforms", metavar="NAME,...", help="for --format jax: platforms it can run on (default cpu,tpu,cuda)")
    add("--head", help="for --format jax and onnx: head to export; may be omitted if the model has one head")


def run(args) -> None:
    """Run the verb."""
    from tubevit.convert.export import PLATFORMS, export_jax, export_safetensors
    from tubevit.convert.export_folder import check_new_folder
    from tubevit.convert.export_torch import export_onnx, export_torch
    from tubevit.evaluation import inference_fields
    from tubevit.zoo.names import load_model

    if args.head is not None and args.format not in _OF_ONE_HEAD:
        raise UserError("--head goes with --format jax and onnx")
    if args.platforms is not None and args.format != "jax":
        raise UserError("--platforms goes with --format jax")
    check_new_folder(args.folder)
    model = load_model(args.name, **inference_fields(False, args.budget))
    if args.format in _OF_ONE_HEAD and args.head is None and len(model.labels) > 1:
        raise UserError(f"the model has several heads: pass --head, one of {', '.join(model.labels)}")
    if args.format == "jax":
        platforms = PLATFORMS if args.platforms is None else args.platforms.split(",")
        export_jax(model, args.folder, args.head, platforms)
    elif args.format == "onnx":
        export_onnx(model, args.folder, args.head)
    else:
        (export_torch if args.format == "torch" else export_safetensors)(model, args.folder)
    for path in sorted(pathlib.Path(args.folder).iterdir()):
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")
