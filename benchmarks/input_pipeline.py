"""Clips per CPU-second of the training pipeline, next to decoding alone and to other ways of doing it; its memory.

    python benchmarks/input_pipeline.py            # about 5 minutes
    python benchmarks/input_pipeline.py --memory   # about 3 minutes on 2 cores

Files of 340x256 H.264, made here: 10 s at 30 frames per second, a key frame every 30 and every 250. All decode the
same clips with one thread and give (T, 224, 224, 3) uint8 of a crop, except `decoding`: a bare PyAV loop from the same
key frames to the same last frames. decord2 and torchcodec are measured where they are installed (the latter needs
FFmpeg). User and system time of all threads, medians of alternating rounds, of the share of decoding that of the ratios
within each round; results are appended to benchmarks/input_pipeline.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import pathlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import av
import cv2
import numpy as np

from tubevit.data.augment import Augment
from tubevit.data.pipeline import Load, iterate, training_rows
from tubevit.data.sources import Source
from tubevit.data.video import TIME_TOLERANCE

RATE, SECONDS = 30, 10
SIZE = 224
BOX = (slice(13, 243), slice(28, 312))  # a crop of the area that random ones have on average
SAMPLING = {"64 frames at 15 FPS": (64, 15.0), "32 frames at stride 2": (32, RATE / 2)}
MiB = 2**20


def write_clip(
    path: pathlib.Path, gop: int, seed: int, height: int = 256, width: int = 340, seconds: int | None = None
):
    """A camera pans over textures of all scales, textured patches move before them, with a sensor's noise."""
    rng = np.random.default_rng(seed)
    scene = 128 + sum(
        cv2.resize(rng.normal(0, contrast, (rows, 2 * rows, 3)), (1280, 640), interpolation=cv2.INTER_CUBIC)
        for rows, contrast in ((4, 60), (16, 40), (64, 25), (256, 12))
    )
    patches = [cv2.resize(rng.normal(128, 60, (12, 12, 3)), (width // 4, width // 4)) for _ in range(3)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(gop), "preset": "fast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in np.arange((seconds or SECONDS) * RATE) / RATE:
            matrix = cv2.getRotationMatrix2D((640, 320), 3 * np.sin(t / 2 + seed), 1.2 + 0.15 * np.sin(0.7 * t))
            matrix[:, 2] += np.array([width, height]) / 2 - [640, 320] + [150 * np.sin(0.4 * t), 80 * np.cos(0.3 * t)]
            frame = cv2.warpAffine(scene, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
            for i, patch in enumerate(patches):
                side = len(patch)
                x = int((width - side) * (1 + np.sin(t * (1 + 0.4 * i) + i)) / 2)
                y = int((height - side) * (1 + np.cos(t * (1.3 - 0.3 * i) + i)) / 2)
                frame[y : y + side, x : x + side] = patch
            frame = np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_clips(folder: pathlib.Path, gop: int, count: int, **shape) -> list[str]:
    paths = [folder / f"{gop}_{i}.mp4" for i in range(count)]
    for i, path in enumerate(paths):
        write_clip(path, gop, i, **shape)
    return [str(path) for path in paths]


@dataclasses.dataclass(frozen=True)
class Recorded(Load):
    """Notes which clips were decoded, so that the others decode the same."""

    clips: list = dataclasses.field(default_factory=list)

    def decode(self, index, position):
        self.clips.append((self.source.keys[index], position))
        return super().decode(index, position)


def loader(paths: list[str], frames: int, fps: float, size: int, load=Load) -> Load:
    source = Source("benchmark", paths, np.zeros(len(paths), np.int32), ("clip",), len(paths))
    return load(source, frames, fps, size, Augment(random_crop=True, area=0.5, flip=True))


@dataclasses.dataclass(frozen=True)
class Clip:
    """One to decode: the number of the first frame, of T at every second one."""

    path: str
    first: int
    frames: int

    @property
    def indices(self) -> list[int]:
        return [self.first + 2 * i for i in range(self.frames)]


def decoded(clip: Clip):
    """Frames and their numbers, from the key frame before the first one needed to the last one needed."""
    with av.open(clip.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        ticks = round(1 / (RATE * stream.time_base))
        container.seek(clip.first * ticks, stream=stream)
        last = clip.indices[-1] * ticks
        for frame in container.decode(stream):
            yield frame.pts // ticks, frame
            if frame.pts >= last:
                return


def decoding(clip: Clip) -> None:
    for _ in decoded(clip):
        pass


def pyav_cv2(clip: Clip) -> np.ndarray:
    wanted = set(clip.indices)
    return cropped([frame.to_ndarray(format="rgb24") for number, frame in decoded(clip) if number in wanted])


def cropped(frames) -> np.ndarray:
    return np.stack([cv2.resize(np.ascontiguousarray(frame[BOX]), (SIZE, SIZE)) for frame in frames])


def peers() -> dict[str, Callable[[Clip], np.ndarray]]:
    """What is installed."""
    found = {"pyav_cv2": pyav_cv2}
    try:
        import decord

        def decord2(clip):
            return cropped(decord.VideoReader(clip.path, num_threads=1).get_batch(clip.indices).asnumpy())

        found["decord2"] = decord2
    except (ImportError, OSError) as error:
        print(f"without decord2: {error}")
    try:
        import torch
        from torchcodec.decoders import VideoDecoder

        torch.set_num_threads(1)

        def torchcodec(clip):
            decoder = VideoDecoder(
                clip.path, num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="approximate"
            )  # it need not read the whole file first
            return cropped(decoder.get_frames_at(clip.indices).data.numpy())

        found["torchcodec"] = torchcodec
    except (ImportError, OSError, RuntimeError) as error:
        print(f"without torchcodec: {str(error).splitlines()[0]}")
    return found


def cpu_seconds(function, clips: list[Clip]) -> float:
    """For one clip."""
    start = time.process_time()
    for clip in clips:
        function(clip)
    return (time.process_time() - start) / len(clips)


def pipeline_round(paths: list[str], frames: int, fps: float, seed: int, count: int) -> tuple[float, list[Clip]]:
    """CPU seconds for a clip, batches of 4 included, and which clips these were."""
    load = loader(paths, frames, fps, SIZE, Recorded)
    batches = iterate(training_rows(load, seed), 4, threads=1)
    next(batches)
    before, start = len(load.clips), time.process_time()
    for _ in range(-(-count // 4)):
        next(batches)
    seconds = time.process_time() - start
    clips = load.clips[before:]
    batches.close()
    return seconds / len(clips), [clip_at(path, position, frames, fps) for path, position in clips]


def clip_at(path: str, position: float, frames: int, fps: float) -> Clip:
    """What `decode_frames` takes at this position."""
    return Clip(path, int(((SECONDS - frames / fps) * position + TIME_TOLERANCE) * RATE), frames)


def measure(folder: pathlib.Path, gops: list[int], rounds: int, files: int, count: int) -> list[dict]:
    others = {"decoding": decoding, **peers()}
    rows = []
    for gop in gops:
        paths = write_clips(folder, gop, files)
        for sampling, (frames, fps) in SAMPLING.items():
            times = {name: [] for name in ("pipeline", *others)}
            for i in range(rounds + 1):
                seconds, clips = pipeline_round(paths, frames, fps, i, count)
                found = {"pipeline": seconds, **{name: cpu_seconds(each, clips) for name, each in others.items()}}
                for name, seconds in found.items() if i else ():  # the first round is to warm up
                    times[name].append(seconds)
            rates = {name: round(1 / statistics.median(each), 2) for name, each in times.items()}
            row = {"gop": gop, "sampling": sampling, **rates}
            pairs = zip(times["decoding"], times["pipeline"], strict=True)
            row["share_of_decoding"] = round(statistics.median(floor / whole for floor, whole in pairs), 3)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            rows.append(row)
    return rows


def resident() -> float:
    """MiB."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MiB


def memory(folder: pathlib.Path, batches: int, files: int) -> dict:
    """Growth over many batches of small clips; the highest at the default settings of `train`."""
    small = write_clips(folder, 10, files, height=64, width=80, seconds=2)
    held, number = [], []
    rows = iterate(training_rows(loader(small, 16, 15.0, 64), 0), 8, threads=4)
    for i in range(batches):
        next(rows)
        if i >= batches // 10:  # buffers are filled by then
            held.append(resident())
            number.append(i)
    rows.close()
    growth = 1024 * np.polyfit(number, held, 1)[0]
    whole = iterate(training_rows(loader(write_clips(folder, 250, files), 64, 15.0, SIZE), 0), 32, threads=4)
    for _ in range(6):
        next(whole)
    whole.close()
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"growth_kib_per_batch": round(float(growth), 2), "highest_mib": round(highest)}
    result["grown_mib"] = round(statistics.mean(held[-50:]) - statistics.mean(held[:50]), 1)
    print("  ".join(f"{name} {value}" for name, value in result.items()))
    return result


FIELDS = ["date", "av", "gop", "sampling", "decoding", "pipeline", "share_of_decoding", "pyav_cv2", "decord2",
          "torchcodec", "growth_kib_per_batch", "grown_mib", "highest_mib"]  # fmt: skip


def record(rows: list[dict], path: pathlib.Path) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({"date": datetime.date.today().isoformat(), "av": av.__version__, **row})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--batches", type=int, default=2000, help="of the memory's growth")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", type=int, default=4, help="of each kind")
    parser.add_argument("--clips", type=int, default=16, help="in each round")
    parser.add_argument("--gops", type=int, nargs="+", default=[30, 250])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".csv"))
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if args.memory:
            rows = [memory(folder, args.batches, args.files)]
        else:
            rows = measure(folder, args.gops, args.rounds, args.files, args.clips)
    record(rows, args.out)


if __name__ == "__main__":
    main()
