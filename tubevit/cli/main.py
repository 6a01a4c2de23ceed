"""Dispatch of `tubevit VERB`; errors become one line and an exit code."""

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import platform
import sys
import traceback

from tubevit.cli.logs import logging_installed
from tubevit.cli.streams import flush_stdout, prepare_streams, reader_has_left
from tubevit.errors import UserError, closest
from tubevit.ranges import COUNT, WHOLE

VERBS = ("train", "evaluate", "predict", "search", "inspect", "preflight", "convert", "export", "sparsify",
         "make-moving-digits", "shard-videos", "report", "release", "completion")  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "av", "opencv-python-headless")
DONE, FAILED, BAD_INPUT, PREEMPTED = 0, 1, 2, 75


class _Parser(argparse.ArgumentParser):
    """Parser with one-line errors that name the closest flag."""

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def verb_module(verb: str):
    """Import the module of a verb."""
    return importlib.import_module(f"tubevit.cli.{verb.replace('-', '_')}")


def _usage() -> str:
    lines = ["usage: tubevit VERB [flags]        tubevit VERB --help shows flags and examples", ""]
    lines += [f"  {verb:20s} {verb_module(verb).HELP}" for verb in VERBS]
    return "\n".join(lines)


def _versions() -> str:
    """List the versions that the result of a verb depends on, one per line."""
    import tubevit

    lines = [f"tubevit {tubevit.__version__}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join(lines)


def make_parser(verb: str) -> argparse.ArgumentParser:
    """Build the parser of a verb."""
    module = verb_module(verb)
    parser = _Parser(
        prog=f"tubevit {verb}", description=module.HELP,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    module.add_arguments(parser)
    if any(action.dest == "config" for action in parser._actions):
        parser.set_defaults(config_overrides={})  # of --config.KEY=VALUE
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    several = parser.add_argument_group(
        "several processes", "for one job on several processes; on Cloud TPU they are found without these flags"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, the same for all processes")
    several.add_argument("--num-processes", type=COUNT, metavar="N", help="number of processes")
    several.add_argument("--process-id", type=WHOLE, metavar="I", help="index of this process, from 0")
    return parser


def _parse(verb: str, arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(verb)
    overrides, end = parser.get_default("config_overrides"), (*arguments, "--").index("--")
    if overrides is not None:  # first: argparse takes those with a blank, and values after a blank, for positionals
        arguments = [*_take_overrides(arguments[:end], overrides), *arguments[end:]]
    # Intermixed, so that files may come before and after flags; but it ignores "--", after which nothing is a flag.
    parse = parser.parse_known_args if "--" in arguments else parser.parse_known_intermixed_args
    args, rest = parse(arguments)
    for name, value in vars(args).items():
        if "" in (value if isinstance(value, list) else [value]):
            raise UserError(f"{_flag(parser, name)} is empty; expected a value (see {parser.prog} --help)")
    if overrides and not args.config:
        raise UserError("--config.KEY=VALUE changes an experiment: pass it with --config FILE")
    if rest:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        flag = rest[0].split("=")[0]
        raise UserError(f"tubevit {verb} has no argument {rest[0]!r}; {closest(flag, flags)}")
    return args


def _flag(parser: argparse.ArgumentParser, name: str) -> str:
    action = next(action for action in parser._actions if action.dest == name)
    return action.option_strings[0] if action.option_strings else str(action.metavar)


def _take_overrides(arguments: list[str], overrides: dict[str, str]) -> list[str]:
    """Move `--config.key=value` and `--config.key value` to `overrides`; returns the other arguments."""
    left, items = [], iter(arguments)
    for item in items:
        if not item.startswith("--config."):
            left.append(item)
            continue
        key, equals, value = item.removeprefix("--config.").partition("=")
        if not equals:
            value = next(items, "--")
            if value.startswith("--"):
                raise UserError(f"{item} needs a value: {item}=VALUE")
        overrides[key] = value
    return left


def _run(verb: str, args: argparse.Namespace) -> None:
    """Run a verb, as one of several processes if flags or the machine ask for it; most verbs then run in process 0."""
    module = verb_module(verb)
    distributed = getattr(module, "DISTRIBUTED", False)
    if not distributed and (args.coordinator, args.num_processes, args.process_id) == (None, None, None):
        return module.run(args)
    from tubevit.sharding import hosts

    hosts.start(args.coordinator, args.num_processes, args.process_id)
    if distributed:
        return module.run(args)
    hosts.run_on_main(lambda: module.run(args))


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns 0 if done, 1 if it failed while running, 2 for bad input, 75 if preempted after saving."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, debug = arguments[0] if arguments else "", "--debug" in arguments
    try:
        if verb in ("", "-h", "--help", "help"):
            print(_usage())
            return DONE if verb else BAD_INPUT
        if verb == "--version":
            print(_versions())
            return DONE
        if verb not in VERBS:
            raise UserError(f"unknown verb {verb!r}; {closest(verb, VERBS)}")
        args = _parse(verb, arguments[1:])
        with logging_installed():
            _run(verb, args)
        return DONE
    except UserError as error:
        return _report(error, BAD_INPUT, debug)
    except KeyboardInterrupt:
        return _report(RuntimeError("interrupted"), FAILED, False)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_has_left():  # it has seen what it wanted
            return DONE
        from tubevit.errors import RunError
        from tubevit.training.run.preemption import Preempted

        if isinstance(error, Preempted):
            return _report(error, PREEMPTED, False)
        if isinstance(error, RunError | OSError):
            return _report(error, FAILED, debug)
        traceback.print_exc()  # a bug: show where
        return FAILED


def entry() -> None:
    """Run `main` and end the process."""
    prepare_streams()
    try:
        code = main()
    except SystemExit as end:  # --help
        code = int(end.code or DONE)
    try:
        flush_stdout()
    except OSError as error:
        code = _report(error, FAILED, False)
    if code == BAD_INPUT and "jax" in sys.modules:
        from tubevit.sharding.hosts import end_at_once

        end_at_once(code)
    if code == FAILED:  # threads that wait for a bucket or for other hosts would keep the process alive
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _report(error: BaseException, code: int, debug: bool) -> int:
    with contextlib.suppress(OSError):  # stderr may be closed
        if debug:
            traceback.print_exc()
        print("tubevit: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    return code
