"""Names of models on the Hugging Face Hub: `hf://owner/repo[@revision][:path]`."""

import dataclasses
import os
import re

from tubevit import storage
from tubevit.errors import UserError

SCHEME = "hf://"
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"{SCHEME}({_PART}/{_PART})(?:@([^@:]+))?(?::([^:]+))?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class HubName:
    """A model on the Hub.

    Attributes:
        repo: `owner/repo`.
        revision: a branch, a tag or a commit; None for the main branch.
        path: the folder of the model in the repository, or its only file; "" for the whole repository.
    """

    repo: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}" + (f":{self.path}" if self.path else "")

    @property
    def title(self) -> str:
        """The last part of the name, for titles and folders."""
        return (self.path or self.repo).rpartition("/")[2]


def is_hub_name(name: str | os.PathLike) -> bool:
    """Whether a name denotes a model on the Hub."""
    return os.fspath(name).startswith(SCHEME)


def parse_hub_name(name: str | os.PathLike) -> HubName:
    """Parse `hf://owner/repo[@revision][:path]`; raises UserError if it is malformed."""
    match = _NAME.fullmatch(os.fspath(name))
    if match and all(storage.stays_inside(part) for part in match.groups() if part):
        return HubName(match[1], match[2], match[3] or "")
    raise UserError(
        "a model on the Hub is named hf://owner/repo[@revision][:subfolder], such as "
        f"hf://google/vivit-b-16x2-kinetics400; found {os.fspath(name)!r}"
    )
