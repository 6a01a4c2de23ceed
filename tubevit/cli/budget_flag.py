"""The flag `--budget` of several verbs."""

from collections.abc import Callable


def add_budget(add: Callable) -> None:
    """Add the flag to a parser by its method `add_argument`."""
    add(
        "--budget",
        metavar="BUDGET",
        help="share of the tokens that the model takes, such as 25%% or 50%%:motion; rules: even (default), tube, "
        "motion, random",
    )
