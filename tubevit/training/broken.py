"""Files that cannot be decoded, met in training: each is named once, too many end the run."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tubevit.data.pipeline import Load
from tubevit.errors import RunError


class BrokenFiles:
    """Counts the files that were replaced.

    Args:
        loads: of the data sets, by name.
        share: of a data set's files that may be broken.
    """

    def __init__(self, loads: Mapping[str, Load], share: float):
        self._loads, self._share = loads, share
        self._found: dict[str, dict[int, str]] = {name: {} for name in loads}

    def take(self, batch: dict) -> dict:
        """Removes `broken` from a joint batch, see `training_rows`; names files that were not met before.

        Raises:
            RunError: more than the share of a data set's files are broken; all of them are listed.
        """
        for name, sub_batch in batch.items():
            found, source = self._found[name], self._loads[name].source
            for index in {int(i) for i in sub_batch["broken"] if i >= 0} - set(found):
                found[index] = self._loads[name].reason(index)
                number = f"{len(found)} of {len(source)}"
                print(
                    f"data.train.{name}: replaced a broken file ({number}): {found[index]}", file=sys.stderr, flush=True
                )
            if len(found) > self._share * len(source):
                listed = "; ".join(found.values())
                raise RunError(
                    f"data.train.{name}: {len(found)} of its {len(source)} files are broken, more than "
                    f"loader.max_broken={self._share:g} allows (raise it, or let tubevit shard-videos "
                    f"find all of them): {listed}"
                )
        return {name: {k: v for k, v in part.items() if k != "broken"} for name, part in batch.items()}
