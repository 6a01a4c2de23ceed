"""Measure how much video `shard-videos` checks or re-encodes per CPU-second, and what it costs on Dataflow.

    python benchmarks/sharding.py    # about a minute on a core of its own

The clips are generated as in `input_pipeline.py`, with a key frame every 250 frames. Each is checked, which is decoding
it, or re-encoded with a short side of 256; then also with the scaler and the encoder as they choose by the processor,
in alternating rounds. `seconds_of_video` is that of one CPU-second, user and system time of all threads, as median of
the rounds. `to_dependent` is the median, over the rounds, of the ratio of this CPU time to that of the processor's
choice. Results are appended to benchmarks/sharding.csv.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import statistics
import sys
import tempfile
import time
from unittest import mock

import av
from av.video.reformatter import Interpolation

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.input_pipeline import write_clip  # noqa: E402
from benchmarks.results import append  # noqa: E402
from tubevit.data import recode  # noqa: E402

CSV = ROOT / "benchmarks/sharding.csv"
FIELDS = ["date", "av", "width", "height", "short_side", "seconds_of_video", "to_dependent"]
CASES = [(340, 256, None), (1280, 720, None), (1280, 720, 256)]
DEPENDENT = {"SCALER": Interpolation.AREA, "X264": "cpu-independent=0"}


def cpu_seconds(encoded: bytes, short_side: int | None) -> float:
    """Return the CPU time of one file."""
    began = time.process_time()
    recode.validated_bytes(encoded, short_side)
    return time.process_time() - began


def measure(width: int, height: int, short_side: int | None, seconds: int, rounds: int) -> dict:
    """Return the row of one case."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "clip.mp4")
        write_clip(path, 250, 0, height, width, seconds)
        encoded = path.read_bytes()
    times, ratios = [], []
    for _ in range(rounds):
        times.append(cpu_seconds(encoded, short_side))
        if short_side:
            with mock.patch.multiple(recode, **DEPENDENT):
                ratios.append(times[-1] / cpu_seconds(encoded, short_side))
    row = {"date": datetime.date.today().isoformat(), "av": av.__version__, "width": width, "height": height}
    row |= {"short_side": short_side, "seconds_of_video": round(seconds / statistics.median(times), 2)}
    return row | {"to_dependent": round(statistics.median(ratios), 3) if ratios else None}


def main(arguments: list[str] | None = None) -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=4, help="length of the clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    args = parser.parse_args(arguments)
    for width, height, short_side in CASES:
        row = measure(width, height, short_side, args.seconds, args.rounds)
        append(args.out, FIELDS, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
