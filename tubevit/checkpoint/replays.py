"""Which checkpoints of a run are good by its replays, see `training.run.replay`: `replay.json` in the workdir."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Self

from tubevit import storage

FILE = "replay.json"


@dataclasses.dataclass
class Replays:
    """What the replays of a run found.

    Attributes:
        clean: the last step that was computed twice with the same result; 0 if there is none. Checkpoints up to it are
            good.
        corrupt: a later step whose two results differed; None if there is none.
    """

    clean: int = 0
    corrupt: int | None = None

    @classmethod
    def read(cls, workdir: str | os.PathLike) -> Self:
        """Read those of a workdir; a file that is missing, or was cut off by a full disk, tells of none."""
        try:
            return cls(**json.loads(storage.read_bytes(storage.join(workdir, FILE))))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def write(self, workdir: str | os.PathLike) -> None:
        """Write them to the workdir; raises OSError or StorageError."""
        storage.write_text(storage.join(workdir, FILE), json.dumps(dataclasses.asdict(self)) + "\n")

    def last_good(self, steps: Sequence[int]) -> int | None:
        """Return the newest of the steps that is good; None without any."""
        return max((step for step in steps if step <= self.clean), default=None)

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """Keep the newest good checkpoint; a policy of Orbax."""
        kept = self.last_good([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == kept for checkpoint in checkpoints]
