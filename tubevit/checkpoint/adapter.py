"""The base of an adapter: the checkpoint with the frozen parameters, which the adapter's own checkpoints leave out.

It is recorded by the name that the user gave, with the commit if it is a model on the Hub, and by a hash of the
parameters that are taken from it.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.errors import UserError

_LONGEST = 8  # adapters, each the base of another


@dataclasses.dataclass(frozen=True)
class Base:
    """A checkpoint from which parameters are taken, as the metadata `adapter` of another checkpoint describes it.

    Attributes:
        name: as `load_model` takes it.
        step: the step, if the name is that of a workdir.
        sha256: hash of the parameters that are taken.
        paths: their paths.
    """

    name: str
    step: int | None
    sha256: str
    paths: tuple[str, ...]

    @classmethod
    def of(cls, name: str, step: int | None, params: Mapping, frozen: Mapping) -> Self:
        """Return the base of which a run takes the frozen parameters that are unchanged.

        Args:
            name, step: see the attributes.
            params: parameters of the checkpoint, as nested dicts.
            frozen: frozen parameters of the model that begins from it.
        """
        theirs, ours = flatten(dict(params)), flatten(dict(frozen))
        same = {path: leaf for path, leaf in ours.items() if path in theirs and np.array_equal(leaf, theirs[path])}
        return cls(name, step, _digest(same), tuple(sorted(same)))

    def without(self, params: Mapping) -> dict:
        """Return the parameters of a tree that are not those of the base."""
        return unflatten({path: leaf for path, leaf in flatten(dict(params)).items() if path not in self.paths})

    def read(
        self,
        open_base: Callable[[str, int | None], Any],
        owner: str | os.PathLike,
        above: tuple[pathlib.PurePath, ...] = (),
    ) -> dict:
        """Read the parameters of the base, as {path: array}.

        Args:
            open_base: opens a checkpoint by name and step, see `tubevit.zoo.names.open_checkpoint`.
            owner: name of the adapter's checkpoint, for messages.
            above: the folders of the adapters that lead to this base, which may be one itself.

        Raises:
            UserError: the base cannot be read, leads back to an adapter above it, or its parameters are others than
                those of the adapter.
        """
        of = f"{owner} is an adapter of {self.name}" + ("" if self.step is None else f", step {self.step}")
        try:
            base = open_base(self.name, self.step)
            if base.folder in above or len(above) > _LONGEST:
                raise UserError("it leads to no checkpoint that holds all parameters")
            params = flatten(base.read_parameters(above))
        except UserError as error:
            raise UserError(f"{of}, which cannot be read: {error}") from error
        taken = {path: params[path] for path in self.paths if path in params}
        found = _digest(taken)
        if found != self.sha256:
            raise UserError(
                f"{of}, whose parameters have changed: expected sha256 {self.sha256[:12]}, found {found[:12]}; bring "
                "back the checkpoint that the adapter was trained on"
            )
        return taken


def _digest(params: Mapping[str, Any]) -> str:
    """Hash paths, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for path in sorted(params):
        array = np.ascontiguousarray(params[path])
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
