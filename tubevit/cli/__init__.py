"""The command line: one module per verb, each with `HELP`, `EXAMPLES`, `add_arguments(parser)` and `run(args)`."""

from tubevit.cli.main import main

__all__ = ["main"]
