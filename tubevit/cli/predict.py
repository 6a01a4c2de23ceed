"""`tubevit predict`."""

from __future__ import annotations

import json
import pathlib
import sys

from tubevit.errors import UserError

HELP = "print the most probable labels of videos and images"
EXAMPLES = (
    "tubevit predict --checkpoint runs/quickstart clip.mp4",
    "tubevit predict --checkpoint my_model --top 3 --json folder_of_clips/ photo.jpg",
)


def add_arguments(parser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("files", nargs="+", metavar="FILE_OR_DIR", help="videos, images, or folders of them")
    parser.add_argument("--checkpoint", required=True, metavar="NAME", help="workdir, checkpoint folder or saved model")
    parser.add_argument("--top", type=int, default=5, help="labels to print (default 5)")
    parser.add_argument("--head", help="use this head only; default: every head of the file's modality")
    parser.add_argument("--json", action="store_true", help="print a JSON object a file and head")


def run(args) -> None:
    """Runs the verb."""
    from flax import nnx

    from tubevit.data.video import DecodeError, media_kind, read_image, read_video
    from tubevit.zoo.checkpoint import load_model

    if args.top < 1:
        raise UserError(f"--top must be at least 1; found {args.top}")
    model = load_model(args.checkpoint)
    heads = dict(model.config.heads)
    if not heads:
        raise UserError(f"{args.checkpoint} has no head to predict with")
    if args.head is not None:
        model.head_for((), args.head)  # an unknown one is an error
    forward = nnx.jit(model, static_argnames="head")
    files, broken = _files(args.files), []
    for path in files:
        try:
            kind = media_kind(path)
            image = kind == "image"
            read, settings = (read_image, {"size": model.config.size}) if image else (read_video, model.input)
            pixels = read(path, **settings, tubes=model.config.tubes)
        except DecodeError as error:
            if len(files) == 1:
                raise
            broken.append(path)
            print(f"tubevit: {error}", file=sys.stderr, flush=True)
            continue
        names = [args.head] if args.head else [n for n, head in heads.items() if head.modality in (kind, "any")]
        if not names:
            raise UserError(
                f"{path} is {'an' if kind == 'image' else 'a'} {kind}; no head of {args.checkpoint} takes one"
            )
        for name in names:
            logits = forward(pixels, head=name)
            _print(path, name, heads[name], logits[0], args)
    if broken:
        raise UserError(f"{len(broken)} of {len(files)} files cannot be read: {', '.join(map(str, broken))}")


def _files(names: list[str]) -> list[pathlib.Path]:
    from tubevit.data.sources.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    files = []
    for name in names:
        path = pathlib.Path(name)
        if path.is_dir():
            known = VIDEO_SUFFIXES | IMAGE_SUFFIXES
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in known and not p.name.startswith("."))
            if not inside:
                raise UserError(f"{path} holds no video or image")
            files += inside
        elif not path.exists():
            raise UserError(f"{path} does not exist")
        else:
            files.append(path)
    return files


def _print(path, name: str, head, logits, args) -> None:
    import jax
    import numpy as np

    shares = np.asarray(jax.nn.sigmoid(logits) if head.multi_label else jax.nn.softmax(logits))
    best = np.argsort(-shares, kind="stable")[: args.top]
    labels = [head.labels[i] if head.labels else str(i) for i in best]
    if args.json:
        top = [{"label": label, "probability": round(float(shares[i]), 6)} for label, i in zip(labels, best)]
        print(json.dumps({"file": str(path), "head": name, "top": top}), flush=True)
    else:
        print(f"{path}  {name}: " + "  ".join(f"{label} {shares[i]:.3f}" for label, i in zip(labels, best)), flush=True)
