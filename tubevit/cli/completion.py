"""`tubevit completion`."""

import argparse

HELP = "print a script that completes verbs, flags and file names in bash or zsh"
EXAMPLES = (
    "tubevit completion bash > ~/.local/share/bash-completion/completions/tubevit",
    "tubevit completion zsh > ~/.zfunc/_tubevit   # with fpath+=~/.zfunc before compinit in ~/.zshrc",
)


def add_arguments(parser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="shell to write the script for")


def run(args) -> None:
    """Run the verb."""
    import shtab

    print(shtab.complete(_all_verbs(), args.shell))


def _all_verbs() -> argparse.ArgumentParser:
    """Build one parser with all verbs as subcommands, from the parsers of the verbs."""
    import shtab

    from tubevit.cli.main import VERBS, make_parser, verb_module

    root = argparse.ArgumentParser(prog="tubevit")
    root.add_argument("--version", action="store_true", help="print the versions of the package and its dependencies")
    verbs = root.add_subparsers(parser_class=lambda prog, **_: make_parser(prog.split()[-1]))  # pyright: ignore[reportArgumentType]
    for verb in VERBS:
        for action in verbs.add_parser(verb, help=verb_module(verb).HELP)._actions:
            action.metavar = None  # colons and brackets have a meaning in zsh
            if action.nargs != 0 and action.choices is None and action.type is None:
                action.complete = shtab.FILE  # apart from numbers, nearly all values are files or folders
    return root
