"""`tubevit search`."""

import csv
import json
from collections.abc import Sequence

from tubevit.errors import UserError
from tubevit.ranges import COUNT

HELP = "find the moments of videos that are most similar to a clip or an image, by the features that predict wrote"
EXAMPLES = (
    "tubevit search match.npz goal.mp4",
    "tubevit search match.npz goal.mp4 --top 10 --page goal_moments",
    "tubevit search clips.npz --checkpoint my_model --csv moments.csv queries/",
)
COLUMNS = ("query", "rank", "file", "start", "end", "similarity")


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("features", metavar="FEATURES.npz", help="what `predict --features` wrote, of long videos with --every")
    add(
        "queries",
        nargs="+",
        metavar="QUERY",
        help="videos, images, folders or glob patterns that show what to find; of a video, the clip from its middle",
    )
    add("--checkpoint", metavar="NAME", help="the model that made the features (default: under the name it had then)")
    add("--top", type=COUNT, default=5, help="number of moments per query (default 5)")
    add("--page", metavar="DIR", help="write a page of film strips of queries and moments (needs 'tubevit[plot]')")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print one JSON object per moment")
    add("--csv", metavar="FILE", help=f"write one row per moment: {','.join(COLUMNS)}")


def run(args) -> None:
    """Run the verb."""
    import numpy as np

    from tubevit.cli.predict_output import check_complete, usable
    from tubevit.evaluation import find_files, predict
    from tubevit.evaluation.features import read_features
    from tubevit.evaluation.search import find_moments, open_model

    _check_output(args)
    features, queries = read_features(args.features), find_files(args.queries)
    model = open_model(features, args.features, args.checkpoint)
    left_out: list = []
    used = list(usable(predict(model, queries, top=0), queries, left_out))
    if not used:
        check_complete(left_out, queries)
    queried = np.stack([query.features for query in used if query.features is not None])
    found = list(zip([query.file for query in used], find_moments(features, queried, args.top)))
    rows = [_row(query, *each) for query, moments in found for each in enumerate(moments, 1)]
    if args.csv is not None:
        _write_rows(args.csv, rows)
    elif args.json:
        for row in rows:
            print(json.dumps({name: value for name, value in zip(COLUMNS, row) if value != ""}))
    else:
        _print_rows(rows)
    if args.page is not None:
        _write_page(args, features, model.config, found)
    check_complete(left_out, queries)


def _check_output(args) -> None:
    """Refuse what cannot be written before the work."""
    from tubevit import storage, writable
    from tubevit.visualize.style import plotting

    if args.csv is not None:
        if storage.is_remote(args.csv):
            raise UserError(f"search writes to a local file; found {args.csv}: copy it to the bucket afterwards")
        writable.check_file(args.csv, "name another file")
    if args.page is not None:
        plotting()  # fail before the work if matplotlib is missing
        writable.check_folder(args.page, "name another folder with --page")


def _row(query, rank: int, moment) -> tuple:
    """Return the values of `COLUMNS`; times are "" for a moment that is a whole file."""
    from tubevit.cli.predict_output import span

    return str(query), rank, moment.file, *(span(moment) or ("", "")), round(moment.similarity, 6)


def _write_rows(path: str, rows: Sequence[tuple]) -> None:
    from tubevit.cli.predict_output import opened

    with opened(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def _print_rows(rows: Sequence[tuple]) -> None:
    """Print one line per moment, below a line for the query."""
    from tubevit.cli.predict_output import span_text

    for query, rank, file, start, end, similarity in rows:
        if rank == 1:
            print(f"similar to {query}:")
        print(f"{rank:3d}  {similarity:.3f}  {file}{span_text([start, end] if start != '' else [])}")


def _write_page(args, features, config, found: list) -> None:
    from tubevit.errors import cannot_write
    from tubevit.visualize.moments import facts, sections
    from tubevit.visualize.page import write_page

    parts = sections(config, found)
    try:
        page = write_page(args.page, "Similar moments", facts(args.features, features), parts)
    except OSError as error:
        raise cannot_write(args.page, error, "name another folder with --page") from error
    if not args.json:
        print(f"written: {page}, and each picture beside it")
