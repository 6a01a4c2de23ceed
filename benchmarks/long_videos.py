"""Measure memory and time of `predict --every --features --tokens` and of `search` for videos of several lengths.

    python benchmarks/long_videos.py    # about 20 minutes on a core of its own

The videos are generated: 160x120 at 8 frames per second, every 2 seconds another training digit of the embedded data on
another background. A scene with a held-out digit is planted at three times of each, which lie between the starts of
clips; the query is the scene alone, encoded by itself. The released tubevit_nano8@moving_digits predicts in a process
of its own, whose peak is that of its resident memory as the system counts it. Results are appended to
benchmarks/long_videos.csv, `found` as the number of planted scenes that overlap with one of the first three moments.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import av
import cv2
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.results import append  # noqa: E402
from tubevit.data.moving_digits import FPS, FRAMES, render_clip, split_instances  # noqa: E402

CSV = ROOT / "benchmarks/long_videos.csv"
FIELDS = ["date", "minutes", "every", "clips", "predict_seconds", "predict_peak_mb", "tokens_mb", "features_mb",
          "search_seconds", "search_peak_mb", "found", "similarity", "next_similarity"]  # fmt: skip
MODEL = "tubevit_nano8@moving_digits"
HEIGHT, WIDTH = 120, 160
SHARES, SHIFT = (0.1, 0.5, 0.9), 0.375  # of the length; seconds after a whole second


def planted_times(minutes: float) -> list[float]:
    """Return the times of the planted scenes in seconds."""
    return [int(60 * minutes * share) + SHIFT for share in SHARES]


def scene(instance: int, direction: int, seed: int) -> np.ndarray:
    """Render a scene of 2 seconds, (16, HEIGHT, WIDTH, 3) uint8, whose centred square shows a digit."""
    clip, _ = render_clip(instance, direction, np.random.default_rng(seed))
    square = np.stack([cv2.resize(frame, (HEIGHT, HEIGHT), interpolation=cv2.INTER_CUBIC) for frame in clip])
    side = (WIDTH - HEIGHT) // 2
    return np.pad(square, ((0, 0), (0, 0), (side, side), (0, 0)), constant_values=128)


def frames_of(minutes: float) -> Iterator[np.ndarray]:
    """Yield the frames of a long video."""
    train, planted = split_instances(0)["train"], query()
    begins = [round(time * FPS) for time in planted_times(minutes)]
    for number in range(round(60 * minutes * FPS)):
        if number % FRAMES == 0:
            rng = np.random.default_rng(number)
            shown = scene(int(rng.choice(train)), int(rng.integers(8)), number)
        inside = next((number - begin for begin in begins if 0 <= number - begin < FRAMES), None)
        yield shown[number % FRAMES] if inside is None else planted[inside]


def query() -> np.ndarray:
    """Render the scene that is planted and searched for."""
    return scene(int(split_instances(0)["test"][0]), 1, 0)


def write(path: pathlib.Path, frames) -> None:
    """Encode frames as H.264, with a key frame every 2 seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.options = {"g": str(FRAMES), "threads": "1", "preset": "veryfast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def run(*arguments) -> tuple[float, float, str]:
    """Run a verb in a process of its own; returns seconds, peak of resident memory in MB, and its output."""
    command = [sys.executable, "-m", "tubevit", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.monotonic() - began, used.ru_maxrss / 1000, output


def measure(minutes: float, every: float, folder: pathlib.Path) -> dict:
    """Return the row of one length."""
    video, clip, features, tokens = (folder / name for name in ("long.mp4", "query.mp4", "long.npz", "tokens"))
    write(video, frames_of(minutes))
    write(clip, query())
    flags = ["--every", every, "--features", features, "--tokens", tokens]
    seconds, peak, _ = run("predict", "--checkpoint", MODEL, *flags, video)
    row = {"date": datetime.date.today().isoformat(), "minutes": minutes, "every": every}
    shape = np.load(tokens / "long.mp4.npy", mmap_mode="r").shape
    sizes = [path.stat().st_size / 1e6 for path in (tokens / "long.mp4.npy", features)]
    row |= {"clips": shape[0], "predict_seconds": round(seconds), "predict_peak_mb": round(peak)}
    row |= {"tokens_mb": round(sizes[0], 1), "features_mb": round(sizes[1], 1)}
    seconds, peak, output = run("search", features, clip, "--json", "--top", 4)
    best = [json.loads(line) for line in output.splitlines()]
    found = sum(
        any(each["start"] < time + 2 and time < each["end"] for each in best[:3]) for time in planted_times(minutes)
    )
    row |= {"search_seconds": round(seconds), "search_peak_mb": round(peak), "found": found}
    return row | {"similarity": best[2]["similarity"], "next_similarity": best[3]["similarity"]}


def main(arguments: list[str] | None = None) -> None:
    """Measure all lengths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60, 180], help="lengths of the videos")
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one clip to the next")
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    args = parser.parse_args(arguments)
    for minutes in args.minutes:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(minutes, args.every, pathlib.Path(folder))
        append(args.out, FIELDS, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
