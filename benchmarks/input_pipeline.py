"""Measure clips per CPU-second of the training pipeline, of decoding alone and of other libraries; measure memory.

    python benchmarks/input_pipeline.py            # about 10 minutes
    python benchmarks/input_pipeline.py --memory   # about 5 minutes on 2 cores

The files are generated: 10 s of 340x256 H.264 at 30 frames per second, with a key frame every 30 or every 250 frames.
All methods decode the same clips with one thread and return a crop as (T, 224, 224, 3) uint8, with two exceptions:
`tubes` returns the windows of the preset `paper` for the same crop, and `decoding` is a bare PyAV loop from the same
key frames to the same last frames. `planes_cv2` resizes planes by hand, which is the minimum for whole clips of a crop;
docs/sparse_input.md explains why the pipeline does not do so. decord2 and torchcodec are measured if they are installed
(torchcodec requires FFmpeg). `augment` is a crop and a flip, or the augmentation of the experiment k400, for which some
clips need all pixels with `tubes`, too: `dense_clips` is their share. Times are user and system time of all threads, as
medians of alternating rounds. Ratios are medians over the ratios of the rounds. Bytes are those of one clip in a batch.
Results are appended to benchmarks/input_pipeline.csv.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import dataclasses
import datetime
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import av
import cv2
import numpy as np

from tubevit.data.augment import Augment
from tubevit.data.decode import TIME_TOLERANCE
from tubevit.data.pipeline import SampleLoader, iterate, training_rows
from tubevit.data.sources import Source
from tubevit.preflight.worker import peak_memory
from tubevit.recipes.paper import VIDEO_AUGMENT
from tubevit.tubes import PRESETS

RATE, SECONDS = 30, 10
SIZE = 224
BOX = (slice(13, 243), slice(28, 312))  # a crop with the mean area of random crops
SAMPLING = {"64 frames at 15 FPS": (64, 15.0), "32 frames at stride 2": (32, RATE / 2)}
AUGMENT = {"crop, flip": Augment(random_crop=True, area=0.5, flip=True), "k400": Augment(**VIDEO_AUGMENT)}
PATHS = {"pipeline": None, "tubes": "paper"}  # tube presets; None means whole clips
MiB = 2**20


def write_clip(
    path: pathlib.Path, gop: int, seed: int, height: int = 256, width: int = 340, seconds: int | None = None
):
    """Write a clip: a camera pans over textures of all scales, textured patches move over them, with sensor noise."""
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
class Recorded(SampleLoader):
    """Records which clips were decoded, so that the other methods decode the same clips."""

    clips: list = dataclasses.field(default_factory=list)

    def decode(self, index, position, **options):
        self.clips.append((self.source.keys[index], position))
        return super().decode(index, position, **options)


def loader(
    paths: list[str],
    frames: int,
    fps: float,
    size: int,
    tubes: str | None = None,
    augment="crop, flip",
    load=SampleLoader,
) -> SampleLoader:
    source = Source("benchmark", paths, np.zeros(len(paths), np.int32), ("clip",), len(paths))
    return load(source, frames, fps, size, AUGMENT[augment], tubes and PRESETS[tubes])


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip to decode: the index of its first frame, and T frames, every second one."""

    path: str
    first: int
    frames: int

    @property
    def indices(self) -> list[int]:
        return [self.first + 2 * i for i in range(self.frames)]


def decoded(clip: Clip):
    """Yield frames and their indices, from the key frame before the first to the last frame that is needed."""
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


def planes_cv2(clip: Clip) -> np.ndarray:
    """Resize planes, then convert them: the minimum for whole clips of a crop."""
    wanted, clips = set(clip.indices), np.empty((clip.frames, SIZE, SIZE, 3), np.uint8)
    planes, half = np.empty((SIZE * 3 // 2, SIZE), np.uint8), SIZE // 2
    parts = planes[:SIZE], *planes[SIZE:].reshape(2, half, half)
    for i, frame in enumerate(frame for number, frame in decoded(clip) if number in wanted):
        for plane, part in zip(frame.planes, parts):
            pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
            box = [slice(each.start * plane.height // 256, each.stop * plane.height // 256) for each in BOX]
            cv2.resize(pixels[tuple(box)], part.shape[::-1], dst=part)
        cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420, dst=clips[i])
    return clips


def cropped(frames) -> np.ndarray:
    return np.stack([cv2.resize(np.ascontiguousarray(frame[BOX]), (SIZE, SIZE)) for frame in frames])


def peers() -> dict[str, Callable[[Clip], np.ndarray]]:
    """Return the methods whose libraries are installed."""
    found = {"pyav_cv2": pyav_cv2, "planes_cv2": planes_cv2}
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
            )  # avoids reading the whole file first
            return cropped(decoder.get_frames_at(clip.indices).data.numpy())

        found["torchcodec"] = torchcodec
    except (ImportError, OSError, RuntimeError) as error:
        print(f"without torchcodec: {str(error).splitlines()[0]}")
    return found


def cpu_seconds(function, clips: list[Clip]) -> float:
    """Return the CPU seconds per clip."""
    start = time.process_time()
    for clip in clips:
        function(clip)
    return (time.process_time() - start) / len(clips)


@dataclasses.dataclass(frozen=True)
class Round:
    """The cost of some batches.

    Attributes:
        seconds: CPU seconds per clip, including batching by 4.
        clips: The clips that were decoded.
        bytes: The bytes of one clip in a batch.
        dense: The share of clips for which all pixels were computed.
    """

    seconds: float
    clips: list[Clip]
    bytes: int
    dense: float


def pipeline_round(load: Recorded, seed: int, count: int) -> Round:
    """Load batches with at least `count` clips."""
    batches = iterate(training_rows(load, seed), 4, threads=1)
    next(batches)
    before, start = len(load.clips), time.process_time()
    dense = []
    for _ in range(-(-count // 4)):
        batch = load.batch(next(batches))
        dense += batch["dense"].tolist()
    seconds = time.process_time() - start
    clips = [clip_at(path, position, load.frames, load.fps) for path, position in load.clips[before:]]
    batches.close()
    return Round(seconds / len(clips), clips, batch["pixels"].nbytes // 4, statistics.mean(dense))


def clip_at(path: str, position: float, frames: int, fps: float) -> Clip:
    """Return the arguments of `decode_frames` at this position."""
    return Clip(path, int(((SECONDS - frames / fps) * position + TIME_TOLERANCE) * RATE), frames)


def cases(gops: list[int]) -> list[tuple[int, str, str]]:
    """Return the cases: key frame intervals, samplings and augmentations."""
    longest = max(SAMPLING, key=lambda name: SAMPLING[name][0])  # as in k400
    return [(g, s, a) for g in gops for a in AUGMENT for s in (SAMPLING if a == "crop, flip" else (longest,))]


def measure(folder: pathlib.Path, gops: list[int], rounds: int, files: int, count: int) -> list[dict]:
    others = {"decoding": decoding, **peers()}
    rows, written = [], {gop: write_clips(folder, gop, files) for gop in gops}
    for gop, sampling, augment in cases(gops):
        frames, fps = SAMPLING[sampling]
        times, found = {name: [] for name in (*PATHS, *others)}, {name: [] for name in PATHS}
        for i in range(rounds + 1):
            for name in list(PATHS)[:: 1 if i % 2 else -1]:
                load = loader(written[gop], frames, fps, SIZE, PATHS[name], augment, Recorded)
                found[name].append(pipeline_round(load, i, count))
            clips = found["pipeline"][-1].clips
            seconds = {name: each[-1].seconds for name, each in found.items()}
            seconds |= {name: cpu_seconds(each, clips) for name, each in others.items()}
            for name, value in seconds.items() if i else ():  # the first round is a warm-up
                times[name].append(value)
        rates = {name: round(1 / statistics.median(each), 2) for name, each in times.items()}
        row = {"gop": gop, "sampling": sampling, "augment": augment, **rates}
        row["share_of_decoding"] = ratio(times["decoding"], times["pipeline"])
        row["tubes_share_of_decoding"] = ratio(times["decoding"], times["tubes"])
        row["tubes_to_pipeline"] = ratio(times["pipeline"], times["tubes"])
        row["dense_clips"] = round(statistics.mean(each.dense for each in found["tubes"]), 3)
        row |= {f"{name}_bytes": each[0].bytes for name, each in found.items()}
        row["no_s2d_bytes"] = PRESETS["paper_no_s2d"].values_read((frames, SIZE, SIZE))
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        rows.append(row)
    return rows


def ratio(floor: list[float], whole: list[float]) -> float:
    """Return the median over the ratios of the rounds."""
    return round(statistics.median(one / two for one, two in zip(floor, whole, strict=True)), 3)


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MiB


def memory(folder: pathlib.Path, batches: int, files: int) -> list[dict]:
    """Measure the memory for whole clips and for tubes, each in its own process."""
    small = write_clips(folder, 10, files, height=64, width=80, seconds=2)
    large = write_clips(folder, 250, files)
    rows = []
    for name, tubes in PATHS.items():
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            rows.append({"path": name} | process.submit(memory_of, small, large, tubes, batches).result())
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def memory_of(small: list[str], large: list[str], tubes: str | None, batches: int) -> dict:
    """Measure the growth over many batches of small clips, and the peak with the default settings of `train`."""
    held, number = [], []
    rows = iterate(training_rows(loader(small, 16, 15.0, 64, tubes and "small"), 0), 8, threads=4)
    for i in range(batches):
        next(rows)
        if i >= batches // 10:  # by then, buffers are filled
            held.append(resident())
            number.append(i)
    rows.close()
    growth, before = 1024 * np.polyfit(number, held, 1)[0], resident()
    whole = iterate(training_rows(loader(large, 64, 15.0, SIZE, tubes), 0), 32, threads=4)
    for _ in range(6):
        next(whole)
    whole.close()
    highest = peak_memory() / 2**20
    result = {"growth_kib_per_batch": round(float(growth), 2), "highest_mib": round(highest)}
    result |= {"before_mib": round(before)}
    return result | {"grown_mib": round(statistics.mean(held[-50:]) - statistics.mean(held[:50]), 1)}


FIELDS = ["date", "av", "gop", "sampling", "augment", "decoding", "pipeline", "share_of_decoding", "tubes",
          "tubes_share_of_decoding", "tubes_to_pipeline", "dense_clips", "pyav_cv2", "planes_cv2", "decord2",
          "torchcodec", "pipeline_bytes", "tubes_bytes", "no_s2d_bytes", "path", "growth_kib_per_batch", "grown_mib",
          "before_mib", "highest_mib"]  # fmt: skip


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
    parser.add_argument("--batches", type=int, default=2000, help="number of batches for the growth of memory")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", type=int, default=4, help="number of files of each kind")
    parser.add_argument("--clips", type=int, default=16, help="number of clips in each round")
    parser.add_argument("--gops", type=int, nargs="+", default=[30, 250])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".csv"))
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if args.memory:
            rows = memory(folder, args.batches, args.files)
        else:
            rows = measure(folder, args.gops, args.rounds, args.files, args.clips)
    record(rows, args.out)


if __name__ == "__main__":
    main()
