"""The client of the Hugging Face Hub, and its errors in one line each."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import tubevit
from tubevit.errors import DISK_ERRORS, RunError, TubeViTError, UserError, optional_import, unknown
from tubevit.private import without_tokens
from tubevit.zoo.hub_name import HubName

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def connect() -> Any:
    """Return the client, a `huggingface_hub.HfApi`, of the server that $HF_ENDPOINT names now.

    It finds the user's token by itself, so that no name or setting here holds one. Raises UserError if it is not
    installed.
    """
    hub = optional_import("huggingface_hub", "a name hf://owner/repo", "hub")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    return hub.HfApi(endpoint=endpoint, library_name="tubevit", library_version=tubevit.__version__)


def progress_bar() -> type:
    """Return the client's progress bar, shown only where stderr is a terminal."""
    tqdm = optional_import("huggingface_hub.utils", "a name hf://owner/repo", "hub").tqdm

    class Bar(tqdm):
        def __init__(self, *args, disable=None, **kwargs):
            super().__init__(*args, disable=disable, **kwargs)

    return Bar


@contextlib.contextmanager
def clear_errors(name: HubName, api: Any) -> Iterator[None]:
    """Turn the errors of the client into one line, without its headers.

    Raises:
        UserError: there is no such repository or revision, or the user may not read it or write to it.
        RunError: the Hub is out of reach or fails.
        OSError: the disk is full or broken.
    """
    errors = optional_import("huggingface_hub.errors", "a name hf://owner/repo", "hub")
    server = _one_line(api.endpoint)
    try:
        yield
    except TubeViTError:
        raise
    except errors.HFValidationError as error:
        raise UserError(f"{name}: {_one_line(error)}") from error
    except errors.GatedRepoError as error:
        page = f"{server}/{name.repo}"
        raise UserError(f"{name} is gated: accept its conditions at {page} and {LOG_IN}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{name}: {server} has no such model, or it is private: {LOG_IN}") from error
    except errors.RevisionNotFoundError as error:
        raise unknown(f"revision of hf://{name.repo}", name.revision or "main", _revisions(name, api)) from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError) as error:
        reason = _one_line(error.__cause__ or error)
        raise RunError(f"{name} is not in the cache, and {server} does not answer: {reason}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"{name}: {server} refuses access ({status}): {LOG_IN}") from error
        raise RunError(f"{name}: {server} answers with status {status}; try again later") from error
    except Exception as error:  # of its transport, whose type depends on the version, or of a check of what it received
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        text = _one_line(error)
        hint = "; a server without Xet needs HF_HUB_DISABLE_XET=1" if "xet" in text else ""
        raise RunError(f"{name}: the transfer from or to {server} failed: {text}{hint}") from error


def _one_line(error: BaseException | str) -> str:
    """Return a text without line breaks, and without passwords and signatures in addresses."""
    text = re.sub("//[^/@ ]*@", "//", " ".join(str(error).split()))
    return without_tokens(text)[:200] or type(error).__name__


def _revisions(name: HubName, api: Any) -> list[str]:
    try:
        refs = api.list_repo_refs(name.repo)
    except Exception:  # the list only helps
        return []
    return [ref.name for ref in (*refs.branches, *refs.tags)]
