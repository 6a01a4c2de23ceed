"""`tubevit completion`."""

from __future__ import annotations

import argparse

HELP = "print a script that completes verbs, flags and files in bash or zsh"
EXAMPLES = (
    "tubevit completion bash > ~/.local/share/bash-completion/completions/tubevit",
    "tubevit completion zsh > ~/.zfunc/_tubevit   # with fpath+=~/.zfunc before compinit in ~/.zshrc",
)


def add_arguments(parser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args) -> None:
    """Runs the verb."""
    import shtab

    print(shtab.complete(_all_verbs(), args.shell))


def _all_verbs() -> argparse.ArgumentParser:
    """One parser with the verbs as its subcommands, made of those that read the command line."""
    import shtab

    from tubevit.cli.main import VERBS, make_parser, verb_module

    root = argparse.ArgumentParser(prog="tubevit")
    root.add_argument("--version", action="store_true", help="versions of the package and of what it computes with")
    verbs = root.add_subparsers(parser_class=lambda prog, **_: make_parser(prog.split()[-1]))
    for verb in VERBS:
        for action in verbs.add_parser(verb, help=verb_module(verb).HELP)._actions:
            action.metavar = None  # some hold colons and brackets, which zsh would read as its own
            if action.nargs != 0 and action.choices is None and action.type is None:
                action.complete = shtab.FILE  # numbers apart, nearly all that is named lies in files and folders
    return root
