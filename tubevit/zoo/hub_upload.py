"""Publish a release on the Hugging Face Hub, in one commit, with the metadata by which the Hub finds models."""

import pathlib
import re
from collections.abc import Sequence

from tubevit import storage
from tubevit.checkpoint.checkpoint import METADATA_FILE
from tubevit.convert.hugging_face_folder import CONFIG
from tubevit.errors import UserError, optional_import
from tubevit.models.config import ModelConfig
from tubevit.zoo.hub_client import LOG_IN, clear_errors, connect
from tubevit.zoo.hub_name import is_hub_name, parse_hub_name
from tubevit.zoo.registry import Release

# Identifiers of licences that the Hub knows; others are named `other`, with their name beside it.
_LICENCES = frozenset(
    "apache-2.0 mit openrail bsd bsd-2-clause bsd-3-clause cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 agpl-3.0 mpl-2.0 isc unlicense".split()
)
# Files of a model at the root of a repository: ours, and those of other libraries.
_MODEL = re.compile(
    rf"{METADATA_FILE}|{CONFIG}|params/.*|(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
)


class HubUpload:
    """A repository that a release is uploaded to.

    Args:
        address: `hf://owner/repo`.
        replace: replace a model that is there.

    Raises:
        UserError: the address has a revision or a path, the user is not logged in or may not write, or a model is
            there and `replace` is false. Nothing is changed yet.
        RunError: the Hub is out of reach.
    """

    def __init__(self, address: str, replace: bool = False):
        self.name = parse_hub_name(address)
        if self.name.revision or self.name.path:
            raise UserError(f"a release is uploaded to the root of a repository, hf://owner/repo; found {address}")
        self._api = connect()
        with clear_errors(self.name, self._api):
            if not self.secrets():
                raise UserError(f"{address}: an upload needs a token: {LOG_IN}")
            self._api.whoami()
            self._exists = self._api.repo_exists(self.name.repo)
            if self._exists:
                self._api.auth_check(self.name.repo, write=True)
                found = list(filter(_MODEL.fullmatch, self._api.list_repo_files(self.name.repo)))
                if found and not replace:
                    raise UserError(
                        f"{address} holds a model already ({min(found)}); take another repository, or pass --replace"
                    )

    def secrets(self) -> dict[str, str]:
        """Return {what it is: value} of the user's token, for `check_no_secrets`."""
        token = optional_import("huggingface_hub", str(self.name), "hub").get_token()
        return {"your token for the Hub": token} if token else {}

    def commit(self, folder: pathlib.Path, message: str) -> str:
        """Upload all files of a folder in one commit, and return `hf://owner/repo@commit`.

        The repository is made if necessary. Weights and configuration of an earlier model are removed in the same
        commit; other files stay. Raises the errors of `clear_errors`.
        """
        hub = optional_import("huggingface_hub", str(self.name), "hub")
        files = storage.list_files(folder)
        operations: list = [hub.CommitOperationAdd(file, str(folder / file)) for file in files]
        with clear_errors(self.name, self._api):
            if not self._exists:
                self._api.create_repo(self.name.repo, exist_ok=True)
            for file in self._api.list_repo_files(self.name.repo):
                if _MODEL.fullmatch(file) and file not in files:
                    operations.append(hub.CommitOperationDelete(file))
            done = self._api.create_commit(self.name.repo, operations, commit_message=message)
        return f"hf://{self.name.repo}@{done.oid}"


def card_metadata(release: Release, model: ModelConfig, began: Sequence[str] = ()) -> str:
    """Return the block of YAML at the top of a card, with the lines around it.

    Args:
        release: the entry in the index.
        model: the configuration of the model.
        began: checkpoints that training started from; those on the Hub are named as base models.
    """
    hub = optional_import("huggingface_hub", "a card for the Hub", "hub")
    images = model.frames == 1 or all(head.modality == "image" for _, head in model.heads)
    task = "image-classification" if images else "video-classification"
    results = [
        hub.EvalResult(
            task_type=task, dataset_type=each["dataset"], dataset_name=each["dataset"], dataset_split=each["split"],
            metric_type={"top1": "accuracy", "map": "mean_average_precision"}[key], metric_name=name,
            metric_value=round(each[key], 4), dataset_config=each["head"],
        )
        for each in release.metrics
        for key, name in (("top1", "top-1"), ("map", "mAP"))
        if each[key] is not None
    ]  # fmt: skip
    base = [parse_hub_name(name).repo for name in began if is_hub_name(name)]
    data = hub.ModelCardData(
        **licence_fields(release.licence), library_name="tubevit", pipeline_tag=task, base_model=base or None,
        tags=["tubevit", "jax", "flax", "video"], model_name=release.name, eval_results=results or None,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n"


def licence_fields(licence: str) -> dict[str, str]:
    """Return the fields of a licence in the metadata; raises UserError unless it is a name on one line."""
    if not re.fullmatch(r"\w[\w.+() -]{1,79}", licence):
        raise UserError(f"--licence must be the name of a licence, such as Apache-2.0 or CC-BY-4.0; found {licence!r}")
    identifier = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    if identifier in _LICENCES:
        return {"license": identifier}
    return {"license": "other", "license_name": identifier}
