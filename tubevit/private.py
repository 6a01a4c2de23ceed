"""What may be published: paths of this machine are shortened, and secrets are refused or replaced."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tubevit.errors import UserError

# A path that begins at the root or in a home folder: at the start of a text, or after what separates parts of a source.
# These characters end a path. So does a space, unless a / follows it before the next of them.
_ENDS = r""":@,;|'"()\[\]"""
_PATH = re.compile(rf"(?<![^\s={_ENDS}])(?:~[\w.-]*)?/(?!/)(?:[^\s{_ENDS}]| (?=[^\n{_ENDS}/]*/))*")
_SECRETS = {
    "a token": r"\bhf_[A-Za-z0-9]{16,}|\bgh[opsur]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{22,}|\bAKIA[A-Z0-9]{16}\b"
    r"|\bya29\.[\w-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]*-----END [A-Z ]*-----)?",
    "a password in an address": r"(?<=\w://)[^\s/:@\"]*:[^\s/@\"]+@"
    r"|(?i:[?&](?:[\w-]*(?:signature|token|credential)|sig)=)[^\s&\"]*",
    "the path of a home folder": r"/(?:home|Users)/[\w.-]+|(?<![\w./-])/root(?![\w-])",
}
_VARIABLE = "the value of the environment variable"
_SHORTEST = 8  # characters of values that are looked for: shorter ones are found by chance


def shareable(value: Any) -> Any:
    """Return JSON values in which each absolute path of this machine is shortened to its last part.

    Addresses with a scheme, such as `gs://bucket/clips.csv`, stay as they are; the parts of a source are kept:
    `k600:/data/list.csv@/data/clips` becomes `k600:list.csv@clips`.
    """
    if isinstance(value, str):
        return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], value)
    if isinstance(value, Mapping):
        return {key: shareable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(shareable, value))
    return value


def check_no_secrets(contents: Mapping[str, bytes], chosen: str = "", secrets: Mapping[str, str] | None = None) -> None:
    """Refuse to publish secrets: tokens, keys, passwords, paths of home folders, and values of environment variables.

    Args:
        contents: {file: content} that is about to be published.
        chosen: what the user has asked to publish, such as the name of the release: variables may hold it as well.
        secrets: {what it is: value} that must not be in a file either.

    Raises:
        UserError: a file holds one. The message names the file and the kind of secret or the variable, not the value.
    """
    patterns = _patterns(chosen, secrets)
    for file, content in contents.items():
        text = content.decode("utf-8", "ignore")
        found = next((what for what, pattern in patterns.items() if re.search(pattern, text)), None)
        if found:
            remedy = "remove it, or unset the variable" if found.startswith(_VARIABLE) else "remove it"
            raise UserError(f"{file} is not published, because it holds {found}: {remedy}, and try again")


def redacted(text: str) -> str:
    """Replace each secret in a text, see `check_no_secrets`, by what it is."""
    patterns = _patterns()
    whats, pattern = list(patterns), "|".join(f"({each})" for each in patterns.values())
    return re.sub(pattern, lambda match: f"({whats[(match.lastindex or 1) - 1]})", text)


def without_tokens(text: str) -> str:
    """Replace what looks like a token, a key or a password by what it is; values of the environment and paths stay."""
    for what in ("a token", "a private key", "a password in an address"):
        text = re.sub(_SECRETS[what], f"({what})", text)
    return text


def _patterns(chosen: str = "", secrets: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return {what it is: pattern} of all secrets; see `check_no_secrets` for the arguments."""
    values = {f"{_VARIABLE} {key}": value for key, value in os.environ.items() if value not in chosen}
    values |= {"the path of your home folder": str(pathlib.Path.home()), **(secrets or {})}
    longest_first = sorted(values.items(), key=lambda item: -len(item[1]))  # one may be a part of another
    return _SECRETS | {what: _written(value) for what, value in longest_first if len(value) >= _SHORTEST}


def _written(value: str) -> str:
    """Return a pattern of a value, as it is or as JSON writes it, with escaped quotes and characters."""
    ways = {value, *(json.dumps(value, ensure_ascii=each)[1:-1] for each in (True, False))}
    return "|".join(map(re.escape, sorted(ways)))
