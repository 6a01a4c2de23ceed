"""`tubevit make-moving-digits`."""

import sys

from tubevit.ranges import COUNT, WHOLE, Range

HELP = "write the embedded data (moving and still handwritten digits) as files"
EXAMPLES = (
    "tubevit make-moving-digits        # in the cache, where the sources moving_digits and still_digits look",
    "tubevit make-moving-digits data/moving_digits",
    "tubevit make-moving-digits data/small --train-clips 200 --held-out-digits 20 --seed 1",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    from tubevit.data.moving_digits import HELD_OUT_DIGITS, TRAIN_CLIPS, TRAIN_DIGITS

    add = parser.add_argument
    add("folder", nargs="?", metavar="DIR", help="folder for videos/, images/ and three csv files")
    add(
        "--seed", type=WHOLE, default=0,
        help="random seed (default 0); the same seed and package versions give the same bytes",
    )  # fmt: skip
    add("--train-clips", type=COUNT, default=TRAIN_CLIPS, help=f"number of training clips (default {TRAIN_CLIPS})")
    add(
        "--train-digits", type=Range(int, least=1, most=TRAIN_DIGITS), default=TRAIN_DIGITS,
        help=f"number of training digits, each in four images (default and maximum {TRAIN_DIGITS})",
    )  # fmt: skip
    add(
        "--held-out-digits", type=Range(int, least=1, most=HELD_OUT_DIGITS), default=HELD_OUT_DIGITS,
        help="number of digits of val and of test, each in four clips and two images "
        f"(default and maximum {HELD_OUT_DIGITS})",
    )  # fmt: skip


def run(args) -> None:
    """Run the verb."""
    from tqdm import tqdm

    from tubevit import writable
    from tubevit.data.moving_digits import make_moving_digits
    from tubevit.data.sources.embedded import embedded_folder

    folder = args.folder or embedded_folder()
    if args.folder is None and folder.exists():
        print(f"{folder} exists already")
        return
    writable.check_folder(folder)
    with tqdm(unit=" clips", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        counts = make_moving_digits(
            folder, args.seed, args.train_clips, args.train_digits, args.held_out_digits, progress
        )
    print(f"{folder}: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in counts.items()))
