"""Measure memory and time of `predict --every --features --tokens` and of `search` for videos of several lengths.

    python benchmarks/long_videos.py    # about 10 minutes on a core of its own

The videos are generated: 160x120 at 8 frames per second, every 2 seconds another training digit of the embedded data on
another background, any but one of the ten. A scene with this digit, held out, is planted at three times of each, 1/8,
2/8 and 3/8 of a second after the start of a clip; the query is the scene alone, encoded by itself. The released
tubevit_nano8@moving_digits predicts in a process of its own. Seconds are those of the processor, and the peak is that
of resident memory, both as the system counts them. Results are appended to benchmarks/long_videos.csv; `ranks` has the
best rank of a moment that shows at least half of each planted scene.
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
from collections.abc import Iterator

import av
import cv2
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.results import append  # noqa: E402
from tubevit.data.moving_digits import FPS, FRAMES, digit_instances, render_clip, split_instances  # noqa: E402

CSV = ROOT / "benchmarks/long_videos.csv"
FIELDS = ["date", "minutes", "every", "clips", "predict_seconds", "predict_peak_mb", "tokens_mb", "features_mb",
          "search_seconds", "search_peak_mb", "ranks"]  # fmt: skip
MODEL = "tubevit_nano8@moving_digits"
HEIGHT, WIDTH = 120, 160
PLANTED = {0.1: 0.125, 0.5: 0.25, 0.9: 0.375}  # share of the length: seconds after a whole second
TOP = 10_000


def planted_times(minutes: float) -> list[float]:
    """Return the times of the planted scenes in seconds."""
    return [int(60 * minutes * share) + shift for share, shift in PLANTED.items()]


def scene(instance: int, direction: int, seed: int) -> np.ndarray:
    """Render a scene of 2 seconds, (16, HEIGHT, WIDTH, 3) uint8, whose centred square shows a digit."""
    clip, _ = render_clip(instance, direction, np.random.default_rng(seed))
    square = np.stack([cv2.resize(frame, (HEIGHT, HEIGHT), interpolation=cv2.INTER_CUBIC) for frame in clip])
    side = (WIDTH - HEIGHT) // 2
    return np.pad(square, ((0, 0), (0, 0), (side, side), (0, 0)), constant_values=128)


def frames_of(minutes: float) -> Iterator[np.ndarray]:
    """Yield the frames of a long video."""
    (_, labels), splits, planted = digit_instances(), split_instances(0), query()
    train = splits["train"][labels[splits["train"]] != labels[splits["test"][0]]]
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
    """Run a verb in a process of its own; returns CPU seconds, peak of resident memory in MB, and its output."""
    command = [sys.executable, "-m", "tubevit", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6, output


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
    seconds, peak, output = run("search", features, clip, "--json", "--top", TOP)
    row |= {"search_seconds": round(seconds), "search_peak_mb": round(peak)}
    moments = [json.loads(line) for line in output.splitlines()]
    ranks = [
        next((each["rank"] for each in moments if abs(each["start"] - time) <= 1), "none")
        for time in planted_times(minutes)
    ]
    return row | {"ranks": " ".join(map(str, ranks))}


def main(arguments: list[str] | None = None) -> None:
    """Measure all lengths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 180], help="lengths of the videos")
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
