"""`tubevit shard-videos`."""

import functools
import json
import logging

from tubevit.ranges import COUNT, THREADS, Range

logger = logging.getLogger(__name__)
HELP = "write a source as ArrayRecord shards of encoded videos or images, to disk or to a bucket"
EXAMPLES = (
    "tubevit shard-videos clips.csv shards/clips",
    "tubevit shard-videos k400:train.csv@clips gs://bucket/k400 --split train --short-side 256 --processes 16",
    "tubevit shard-videos tfds:imagenet2012 shards/imagenet --split train,val --shards 128",
    "tubevit shard-videos gs://bucket/clips.csv gs://bucket/shards --runner dataflow "
    "--beam project=my-project region=us-central1 temp_location=gs://bucket/tmp sdk_container_image=my-image",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="FILE.csv, DIR, k400:LIST.csv@DIR, tfds:NAME, ...")
    add("out", metavar="OUT", help="folder, local or gs://; an interrupted command resumes where it stopped")
    add("--split", help="splits, separated by commas (default: those of train, val and test that exist)")
    add("--shards", type=COUNT, help="number of shards per split (default: shards of about 1 GiB, a multiple of 8)")
    add("--processes", type=THREADS, help="number of worker processes (default 1)")
    add("--runner", help="write the shards on Apache Beam: direct, dataflow or flink (default: without it)")
    add(
        "--beam", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="pipeline options of Beam and of the runner, e.g. region=us-central1 max_num_workers=50",
    )  # fmt: skip
    add(
        "--short-side", type=Range(int, least=16), metavar="PIXELS",
        help="re-encode larger videos as H.264, images as JPEG (default: keep files)",
    )  # fmt: skip
    add(
        "--allow-overlap", action="store_true", help="accept a csv that lists a file in two splits, e.g. train and test"
    )
    add("--json", action="store_true", help="print the summary as JSON")


def run(args) -> None:
    """Run the verb."""
    from tubevit import writable
    from tubevit.data.shard_writer import write_shards

    write = _write(args)
    writable.check_folder(args.out)
    sources = _open(args.source, args.split, args.allow_overlap)
    summary = {}
    for note in dict.fromkeys(note for source in sources.values() for note in source.notes):
        logger.info(note)
    try:
        for split, source in sources.items():
            summary[split] = write_shards(source, split, args.out, args.shards, args.short_side, write)
    finally:  # what was finished before an error
        lines = [_line(args.out, split, finished) for split, finished in summary.items()]
        if summary:
            print(json.dumps(summary) if args.json else "\n".join(lines), flush=True)


def _write(args):
    """Return what writes the shards: processes of this host, or an engine."""
    from tubevit.data import beam_engine, shard_processes
    from tubevit.errors import UserError

    if args.runner is None:
        if args.beam:
            raise UserError(f"--beam {args.beam[0]}: expected --runner with it, which runs the pipeline")
        return shard_processes.in_processes(args.processes or 1)
    if args.processes is not None:
        raise UserError("--processes is for this host; with --runner, the options of --beam set the number of workers")
    return beam_engine.on_beam(args.runner, args.beam)


def _open(name: str, wanted: str | None, allow_overlap: bool) -> dict:
    """Open all splits before the first one is written."""
    from tubevit.data import sources
    from tubevit.data.sources.splits import SPLITS, canonical_split
    from tubevit.errors import NothingFound, SplitError, UserError

    open_source = functools.partial(sources.open_source, allow_overlap=allow_overlap)
    if wanted is not None:
        return {canonical_split(split): open_source(name, split) for split in wanted.split(",")}
    everything = open_source(name, "all")
    found = {}
    for split in SPLITS:
        try:
            source = open_source(name, split)
        except SplitError:
            continue
        except NothingFound as error:
            logger.info(f"left out: {error}")
        else:
            same = split == "test" and "val" in found and list(source.keys) == list(found["val"].keys)
            if not same:  # Charades: test is val
                found[split] = source
    count = sum(len(source) for source in found.values())
    if count < len(everything):
        raise UserError(
            f"{name} has {len(everything)} files, {count} of them in {', '.join(found) or 'none'} of "
            f"{', '.join(SPLITS)}: name its splits with --split"
        )
    return found


def _line(out: str, split: str, summary: dict) -> str:
    done = summary["written"] - summary["kept"]
    line = (
        f"{out}: {split}: {summary['written']} files written, {summary['rejected']} rejected, "
        f"{summary['shards']} shards, {summary['bytes'] / 2**20:.1f} MiB"
    )
    if summary["kept"]:
        line += f"; {summary['kept']} existed already"
    return line + f"; {summary['seconds']:.1f} s, {done / max(summary['seconds'], 1e-3):.1f} files/s"
