"""`tubevit report`."""

HELP = "draw figures of a checkpoint (kernels, tubes, attention, curves, mistakes) as PNG and SVG, and a page of them"
EXAMPLES = (
    "tubevit report runs/quickstart",
    "tubevit report my_model --out my_model_report clip.mp4 photo.jpg",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("name", metavar="NAME", help="workdir, checkpoint folder, saved or released model, or hf://owner/repo")
    add(
        "files", nargs="*", metavar="FILE_OR_DIR",
        help="videos and images to show tubes and attention on (default: some of the evaluation data of the run)",
    )  # fmt: skip
    add(
        "--out",
        metavar="DIR",
        help="output folder (default: report in the workdir of a run, else NAME_report in the current folder)",
    )


def run(args) -> None:
    """Run the verb."""
    from tubevit import storage, writable
    from tubevit.cli.predict_output import check_complete
    from tubevit.errors import NothingDecoded, RunError, cannot_write
    from tubevit.evaluation import find_files
    from tubevit.evaluation.checkpoint import max_broken_of
    from tubevit.evaluation.evaluate import failure
    from tubevit.visualize.evaluated import evaluate_stored, read_files
    from tubevit.visualize.page import Section, write_page
    from tubevit.visualize.report import facts, sections
    from tubevit.visualize.style import plotting
    from tubevit.zoo.names import open_checkpoint

    plotting()  # fail before the work if matplotlib is missing
    checkpoint = open_checkpoint(args.name)
    max_broken = max_broken_of(checkpoint.experiment)
    title, folder = _title_and_folder(args.name, checkpoint)
    out = folder if args.out is None else args.out
    writable.check_folder(out, "name another folder with --out")
    model, failed = checkpoint.load_model(), []

    def evaluate(model, name, values):
        try:
            found = evaluate_stored(model, name, values)
        except NothingDecoded as error:
            failed.append(f"{name}: {error}")
            raise
        used = found.predictions.used
        failed.append(failure(name, int((~used).sum()), len(used), max_broken))
        return found

    paths = find_files(args.files)
    files, broken = read_files(model, paths)
    parts = sections(checkpoint, model, files, evaluate)
    if broken:
        parts.append(Section("Your files", storage.printable("; ".join(map(str, broken.values())))))
    try:
        page = write_page(out, f"What {title} sees", facts(checkpoint, model), parts)
    except OSError as error:
        raise cannot_write(out, error, "name another folder with --out") from error
    for part in parts:
        if part.left_out:
            print(f"left out: {part.title}: {part.caption}")
    print(f"written: {page}, and each picture beside it")
    if any(failed):
        raise RunError("; ".join(filter(None, failed)))
    check_complete(list(broken), paths)


def _title_and_folder(name: str, checkpoint) -> tuple[str, str]:
    """Return the name that the page shows, and the default of --out; a model on the Hub lies in the cache."""
    from tubevit import storage
    from tubevit.zoo.hub_name import is_hub_name, parse_hub_name

    title, of_hub = checkpoint.home.name, is_hub_name(name)
    if of_hub:
        title = parse_hub_name(name).title
    if checkpoint.workdir and not of_hub:
        return title, storage.join(checkpoint.workdir, "report")
    return title, f"{title}_report"
