"""`tubevit convert`."""

import json

from tubevit.errors import DISK_ERRORS, UserError
from tubevit.ranges import COUNT, SHARE, Range

HELP = "convert weights of other libraries to a checkpoint, and plain ViTs and dense video models back"
EXAMPLES = (
    "tubevit convert hf://google/vivit-b-16x2-kinetics400 vivit_b                     # from the Hugging Face Hub",
    "tubevit convert vit-large-patch16-224/ vit_l                 # a folder of Hugging Face: ViT, DINOv2, SigLIP",
    "tubevit convert videomae-base-finetuned-kinetics/ videomae   # ViViT, TimeSformer, VideoMAE, V-JEPA 2, VideoPrism",
    "tubevit convert TimeSformer_divST_16x16_448_K400.pyth timesformer --size 448     # the originals, as .pth",
    "tubevit convert checkpoint vivit --frames 32 --size 224      # ViViT as scenic writes it",
    "tubevit convert B_16-i21k-300ep.npz vit_b --headless         # vision_transformer, AugReg",
    "tubevit convert siglip.npz siglip_b --prefix params/img      # big_vision",
    "tubevit convert model.safetensors vit_s --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225     # timm, or .pth",
    "tubevit convert for_torch/trained.pt trained                 # trained in PyTorch, see `export --format torch`",
    "tubevit convert videomae videomae_hf --format hugging-face   # and back",
    "tubevit convert vit_s vit_s.safetensors --format timm",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("source", metavar="SRC", help="file, folder or hf://owner/repo; its format is detected from the content")
    add("destination", metavar="DST", help="new folder, or with --format timm a new .safetensors file")
    add("--format", help="target format when SRC is a tubevit checkpoint: hugging-face or timm")
    add("--prefix", help="prefix of the parameter names in an .npz with several ViTs, e.g. params/img")
    add("--heads", type=COUNT, metavar="N", help="number of attention heads, if neither the file nor the sizes tell")
    add("--frames", type=COUNT, metavar="N", help="frames of a clip, if the file does not tell (default: as released)")
    add("--size", type=COUNT, metavar="N", help="rows and columns of a clip, if the file does not tell")
    add("--headless", action="store_true", help="drop the classifier and the pre_logits layer before it")
    for name, range in (("mean", SHARE), ("std", Range(float, above=0, most=1))):
        text = f"{name} of the pixel values in 0..1 (default: that of the source)"
        add(f"--{name}", type=range, nargs=3, metavar=("R", "G", "B"), help=text)
    add("--json", action="store_true", help="print JSON")


def run(args) -> None:
    """Run the verb."""
    from tubevit.convert import convert
    from tubevit.convert.foreign import Options
    from tubevit.zoo.hub import convert_hub
    from tubevit.zoo.hub_name import is_hub_name
    from tubevit.zoo.names import open_checkpoint

    mean, std = args.mean and tuple(args.mean), args.std and tuple(args.std)
    options = Options(args.prefix, args.heads, args.headless, mean, std, args.frames, args.size)
    make = convert_hub if is_hub_name(args.source) else convert
    try:
        done = make(args.source, args.destination, format=args.format, options=options,
                    open_checkpoint=open_checkpoint)  # fmt: skip
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise UserError(f"cannot convert to {args.destination}: {error.strerror}: {error.filename}") from error
    config, heads = done.config, dict(done.config.heads)
    result = {
        "path": done.path, "format": done.format, "architecture": config.name, "width": config.width,
        "depth": config.depth, "num_heads": config.num_heads, "mlp_dim": config.mlp_dim, "size": config.size,
        "patch": config.tubes.tubes[0].kernel[1], "frames": config.frames, "tubes": str(config.tubes),
        "pattern": config.pattern, "pooling": config.pooling,
        "classes": sum(head.classes for head in heads.values()),
        "mean": config.mean, "std": config.std, "notes": done.notes,
    }  # fmt: skip
    if args.json:
        print(json.dumps(result, indent=2))
        return
    patches, clip = f"patches of {result['patch']}", str(config.size)
    if not config.is_plain_vit:
        patches = f"{config.pattern} attention, tubes {config.tubes}"
        clip = f"{config.frames}x{config.size}x{config.size}"
    print(
        f"{done.path}: {config.name}, {config.width} wide, {config.depth} blocks, {config.num_heads} heads, "
        f"{patches} at {clip}, pooling {config.pooling}, {result['classes']} classes"
    )
    for note in done.notes:
        print(f"note: {note}")
