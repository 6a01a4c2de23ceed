"""`tubevit predict`."""

import collections
import itertools
import sys
from collections.abc import Iterable, Iterator

from tubevit.cli.budget_flag import add_budget
from tubevit.errors import UserError
from tubevit.ranges import COUNT, POSITIVE

HELP = "predict labels of videos and images, or compute their features and tokens; long videos window by window"
EXAMPLES = (
    "tubevit predict --checkpoint runs/quickstart clip.mp4",
    "tubevit predict --checkpoint my_model --top 3 --json folder_of_clips/ animation.gif 'photos/*.jpg'",
    "tubevit predict --checkpoint my_model --every 2 --csv match.csv match.mp4",
    "tubevit predict --checkpoint my_model --budget 50%:motion folder_of_clips/",
    "tubevit predict --checkpoint my_model --features clips.npz folder_of_clips/",
    "tubevit predict --checkpoint my_model --every 2 --features match.npz --tokens match_tokens match.mp4",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE_OR_DIR", help="videos, images, folders or glob patterns")
    add(
        "--checkpoint",
        required=True,
        metavar="NAME",
        help="workdir, checkpoint folder, saved or released model, or hf://owner/repo",
    )
    add("--top", type=COUNT, help="number of labels per head (default 5)")
    add("--head", help="use only this head (default: every head that takes the file)")
    add("--int8", action="store_true", help="multiply 8-bit integers in the blocks (needs 'tubevit[int8]')")
    add_budget(add)
    add(
        "--every", type=POSITIVE, metavar="SECONDS",
        help="predict one clip of a video every SECONDS, with its start and end",
    )  # fmt: skip
    add(
        "--tokens",
        metavar="DIR",
        help="write the tokens of each file instead of labels: DIR/NAME.npy (clips, N, D) float16, and DIR/NAME.json, "
        "where they lie in time and in the picture",
    )
    add = parser.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print one JSON object per file (or clip) and head")
    add("--csv", metavar="FILE", help="write one row per label: file,start,end,head,rank,label,probability")
    add(
        "--features",
        metavar="FILE.npz",
        help="write features instead of labels, for `search`: files (n), features (n, D), start and end (n) in seconds",
    )


def run(args) -> None:
    """Run the verb."""
    from tqdm import tqdm

    from tubevit.checkpoint.fingerprint import fingerprint
    from tubevit.cli.predict_output import check_complete, print_labels, usable, write_features, write_labels
    from tubevit.evaluation import find_files, inference_fields, predict
    from tubevit.evaluation.features import Features
    from tubevit.evaluation.token_grid import check_whole
    from tubevit.evaluation.tokens import token_paths, write_tokens
    from tubevit.zoo.names import load_model

    _check_output(args)
    model = load_model(args.checkpoint, **inference_fields(args.int8, args.budget))
    if args.tokens is not None:
        check_whole(model.config)  # before the first file
    files = find_files(args.files)
    paths = {} if args.tokens is None else token_paths(args.tokens, files)
    labels = args.features is None and args.tokens is None
    made_with = {} if labels else {"model": args.checkpoint, "fingerprint": fingerprint(model)}
    silent = args.csv is not None or not labels
    shown = tqdm(files, unit=" files", file=sys.stderr, disable=None if silent else True)
    top = 0 if not labels else 5 if args.top is None else args.top
    predictions = predict(model, shown, every=args.every, head=args.head, top=top, keep_tokens=bool(paths))
    if paths:
        predictions = write_tokens(predictions, paths, made_with)
    left_out: list = []
    predictions = usable(predictions, files, left_out)
    if args.features is not None:
        budget = str(model.config.budget or "")
        found = Features.collect(predictions, model.config.width, **made_with, budget=budget)
        write_features(args.features, found)
    elif args.csv is not None:
        write_labels(args.csv, _begun(predictions))
    elif labels:
        print_labels(predictions, args.json)
    else:
        collections.deque(predictions, maxlen=0)
    check_complete(left_out, files)


def _check_output(args) -> None:
    """Refuse flags that exclude each other and places that cannot be written."""
    from tubevit import storage, writable

    if (args.features is not None or args.tokens is not None) and args.head:
        raise UserError("--head chooses labels; --features and --tokens are the same for all heads")
    if (args.features is not None or args.tokens is not None) and args.top is not None:
        raise UserError("--top limits labels; --features and --tokens are written instead of them")
    if args.tokens is not None and (args.json or args.csv is not None):
        raise UserError("--tokens are written instead of labels; leave out --json and --csv")
    for path in (each for each in (args.csv, args.features, args.tokens) if each is not None):
        if storage.is_remote(path):
            raise UserError(f"predict writes to a local file; found {path}: copy it to the bucket afterwards")
    for path in (each for each in (args.csv, args.features) if each is not None):
        writable.check_file(path, "name another file")
    if args.tokens is not None:
        writable.check_folder(args.tokens)


def _begun(predictions: Iterable) -> Iterator:
    """Compute the first prediction at once: an error before it leaves an earlier file as it is."""
    predictions = iter(predictions)
    return itertools.chain(list(itertools.islice(predictions, 1)), predictions)
