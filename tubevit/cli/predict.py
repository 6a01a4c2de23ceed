"""`tubevit predict`."""

from __future__ import annotations

import glob
import pathlib
import sys

from tubevit.errors import UserError

HELP = "the most probable labels of videos and images, or their features; of long videos, window by window"
EXAMPLES = (
    "tubevit predict --checkpoint runs/quickstart clip.mp4",
    "tubevit predict --checkpoint my_model --top 3 --json folder_of_clips/ animation.gif 'photos/*.jpg'",
    "tubevit predict --checkpoint my_model --every 2 --csv match.csv match.mp4",
    "tubevit predict --checkpoint my_model --features clips.npz folder_of_clips/",
)


def add_arguments(parser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("files", nargs="+", metavar="FILE_OR_DIR", help="videos, images, folders or patterns of them")
    parser.add_argument(
        "--checkpoint", required=True, metavar="NAME", help="workdir, checkpoint folder, saved or released model"
    )
    parser.add_argument("--top", type=int, default=5, help="labels to print (default 5)")
    parser.add_argument("--head", help="use this head only; default: every head of the file's modality")
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="of a video of any length: a clip that begins every so many seconds, with its times; images as without",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print a JSON object a file (or clip of it) and head")
    what.add_argument("--csv", metavar="FILE", help="write a row a label: file,start,end,head,rank,label,probability")
    what.add_argument(
        "--features",
        metavar="FILE.npz",
        help="write pooled features in place of labels: files (n), features (n, D), start and end (n) in seconds",
    )


def run(args) -> None:
    """Runs the verb."""
    from flax import nnx
    from tqdm import tqdm

    from tubevit.cli.predict_output import FeatureFile, LabelRows
    from tubevit.zoo.names import load_model

    if args.top < 1:
        raise UserError(f"--top must be at least 1; found {args.top}")
    if args.every is not None and not 0 < args.every < float("inf"):
        raise UserError(f"--every must be more than 0 seconds; found {args.every:g}")
    if args.features and args.head:
        raise UserError("--head chooses labels; --features are the same for all heads")
    model = load_model(args.checkpoint)
    if not args.features and not model.config.heads:
        raise UserError(f"{args.checkpoint} has no head to predict with; --features needs none")
    if args.head is not None:
        model.head_for((), args.head)  # an unknown one is an error
    files, left_out = find_files(args.files), []
    features = nnx.jit(type(model).features)  # compiled once for all videos: their clips have one shape
    output = FeatureFile(args.features, model.config.width) if args.features else LabelRows(args, model)
    silent = args.csv or args.features
    for path in tqdm(files, unit=" files", file=sys.stderr, disable=None if silent else True):
        try:
            for kind, pixels, start, end in _inputs(path, model, args.every):
                output.add(path, kind, features(model, pixels), start, end)
        except UserError as error:  # damaged, or nothing that the model takes
            if len(files) == 1:
                raise
            left_out.append(path)
            print(f"tubevit: {error}", file=sys.stderr, flush=True)
    output.close()
    if left_out:
        raise UserError(f"{len(left_out)} of {len(files)} files are left out: {', '.join(map(str, left_out))}")


def _inputs(path: pathlib.Path, model, every: float | None):
    """What a model takes of a file: `image` or `video`, pixels, and start and end in seconds, None of all of it.

    Warns once where the file is out of the range of what the model was trained on.
    """
    from tubevit.data.decode import decode_media
    from tubevit.data.stream import stream_clips
    from tubevit.data.trained_range import out_of_range

    frames, fps, size, tubes = model.config.frames, model.config.fps, model.config.size, model.config.tubes
    clips = [decode_media(path, frames, fps)] if every is None else stream_clips(path, frames, fps, every)
    for number, clip in enumerate(clips):
        if number == 0:
            _warn(path, out_of_range(clip.frames, clip.seconds, **model.input))
        yield clip.kind, clip.pixels(size, tubes), clip.start, clip.end


def _warn(path: pathlib.Path, reasons: list[str]) -> None:
    for reason in reasons:
        print(f"tubevit: warning: {path} {reason}", file=sys.stderr, flush=True)


def find_files(names: list[str]) -> list[pathlib.Path]:
    """The files that are named, those in folders that are, and those that fit a pattern such as `clips/**/*.mp4`.

    Raises:
        UserError: there is none.
    """
    files = []
    for name in names:
        if pathlib.Path(name).exists():
            files += _in_folder(pathlib.Path(name))
        elif glob.has_magic(name):
            fitting = sorted(glob.glob(name, recursive=True))
            if not fitting:
                raise UserError(f"no file fits {name}")
            files += [file for found in fitting for file in _in_folder(pathlib.Path(found))]
        else:
            raise UserError(f"{name} does not exist")
    return list(dict.fromkeys(files))


def _in_folder(path: pathlib.Path) -> list[pathlib.Path]:
    from tubevit.data.sources.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_hidden

    if not path.is_dir():
        return [path]
    known = (p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES)
    inside = sorted(p for p in known if not is_hidden(p.relative_to(path).as_posix()) and p.is_file())
    if not inside:
        raise UserError(f"{path} holds no video or image")
    return inside
