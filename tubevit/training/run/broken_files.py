"""Files that cannot be decoded in training and its evaluations: they are reported, and too many end the run."""

import contextlib
import logging
from collections.abc import Callable, Generator, Mapping

from tubevit.data.pipeline import SampleLoader
from tubevit.errors import DecodeError, RunError
from tubevit.sharding.hosts import gather, run_on_main

logger = logging.getLogger(__name__)


class BrokenFiles:
    """Count and report the broken files of a run, from its start or restart.

    Args:
        loads: {name of a data set: its loader}.
        share: largest share of a data set's files that may be broken.
    """

    def __init__(self, loads: Mapping[str, SampleLoader], share: float):
        self._loads, self._share = loads, share
        self._found: dict[str, dict[int, str]] = {name: {} for name in loads}  # process 0 learns what others found
        self._new: dict[str, dict[int, str]] = {name: {} for name in loads}
        self._dense: dict[str, list[int]] = {}

    def check(self, batch: dict) -> None:
        """Report the files of a joint batch that are newly broken, see `training_rows`; count its dense clips.

        Raises RunError if too many files of a data set are broken; the message lists them.
        """
        for name, sub_batch in batch.items():
            found, source = self._found[name], self._loads[name].source
            for index in {int(i) for i in sub_batch["broken"] if i >= 0} - set(found):
                found[index] = self._new[name][index] = self._loads[name].reason(index)
                text = f"replaced a broken file ({len(found)} of {len(source)}): {found[index]}"
                logger.warning(f"data.train.{name}: {text}", extra={"every_process": True})
            self._refuse_too_many(name)
            if self._loads[name].tubes is not None:
                seen = self._dense.setdefault(name, [0, 0])
                seen[0] += int(sub_batch["dense"].sum())
                seen[1] += len(sub_batch["dense"])

    def check_together(self, gather: Callable[[dict], list[dict]] = gather) -> None:
        """Check the files that all processes found, as each sees its own rows only; all call it after a save.

        Raises RunError, in all processes, if too many files of a data set are broken.
        """
        for each in gather(self._new):
            for name, found in each.items():
                self._found[name] |= {int(index): text for index, text in found.items()}
        self._new = {name: {} for name in self._loads}
        run_on_main(self._check_all)

    def _check_all(self) -> None:
        for name in self._loads:
            self._refuse_too_many(name)

    def _refuse_too_many(self, name: str) -> None:
        found, files = self._found[name], len(self._loads[name].source)
        if len(found) > self._share * files:
            raise RunError(
                f"data.train.{name}: {len(found)} of its {files} files are broken, more than "
                f"loader.max_broken={self._share:g} allows (raise it, or let tubevit shard-videos find all of them): "
                f"{'; '.join(found.values())}"
            )

    def check_evaluation(self, results: Mapping[str, float | None]) -> None:
        """Check an evaluation, `eval/<name>/broken`; call it once its scores and the state are saved.

        Raises RunError if too many files of a data set are broken.
        """
        for key, share in results.items():
            if key.endswith("/broken") and share is not None and share > self._share:
                raise RunError(
                    f"{key} is {share:.3g}: more files are broken than loader.max_broken={self._share:g} allows (raise "
                    "it, or repair them: tubevit evaluate lists them)"
                )

    def dense_shares(self) -> dict[str, float]:
        """Return the share of dense clips since the last call, as {train/<name>/dense: share}, on the path of tubes."""
        shares = {f"train/{name}/dense": dense / seen for name, (dense, seen) in self._dense.items()}
        self._dense = {}
        return shares


def lost_later(batches: Generator) -> Generator:
    """Yield batches. A DecodeError after the first one becomes a RunError: the data was there when the run began."""
    with contextlib.closing(batches):
        yield next(batches)
        try:
            yield from batches
        except DecodeError as error:
            raise RunError(str(error)) from error
