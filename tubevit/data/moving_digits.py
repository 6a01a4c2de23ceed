"""The embedded data: videos of moving handwritten digits (scikit-learn's 1,797), and images of still ones.

Digits start at a uniform position and move along straight lines that wrap around, so that no single frame reveals the
direction. Each test clip also exists reversed, so that no unordered set of frames reveals it either.
"""

import concurrent.futures
import csv
import functools
import io
import os
import pathlib
from collections.abc import Callable

import av
import cv2
import numpy as np

from tubevit import publish
from tubevit.errors import UserError, cannot_write

FRAMES, SIZE, FPS = 16, 64, 8
VERSION = 1  # version of the content: cached copies of other versions are not used
# Rows grow downwards. Direction i + 4 (mod 8) is the time reversal of direction i.
DIRECTIONS = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
TEST_DIGITS = 450
TRAIN_CLIPS = 6_000
CSV_FILES = {"motion": "motion.csv", "digit_motion": "digit_motion.csv", "digit": "still_digits.csv"}
_SPEED = (1.5, 3.0)  # pixels per frame
_SPRITE = (20, 29)  # side of a moving digit, in pixels


def velocity(direction: int, speed: float) -> np.ndarray:
    """Return the velocity (2,) in rows and columns per frame."""
    angle = direction * np.pi / 4
    return speed * np.array([np.sin(angle), np.cos(angle)])


@functools.cache
def digit_instances() -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's digits: images (1797, 8, 8) float32 0..1 and labels (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


def split_instances(seed: int) -> dict[str, np.ndarray]:
    """Return disjoint indices of the digits of `train` and `test`, stratified by class."""
    from sklearn.model_selection import train_test_split

    labels = digit_instances()[1]
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_DIGITS, stratify=labels, random_state=seed)
    return {"train": np.sort(train), "test": np.sort(test)}


def render_clip(instance: int, direction: int, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    """Render one digit that moves over a smooth background.

    The direction is 0..7, see `DIRECTIONS`; nothing else that is random depends on it.

    Returns:
        (16, 64, 64, 3) uint8, and the sampled start (row, column of the digit's centre) and velocity.
    """
    side = int(rng.integers(*_SPRITE))
    start, speed = rng.uniform(0, SIZE, 2), rng.uniform(*_SPEED)
    coarse = rng.uniform(0, 110, (4, 4, 3)).astype(np.float32)
    background = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    colour = rng.uniform(170, 255, 3).astype(np.float32)
    canvas = np.zeros((SIZE, SIZE), np.float32)
    sprite = cv2.resize(digit_instances()[0][instance], (side, side), interpolation=cv2.INTER_CUBIC)
    corner = (SIZE - side) // 2
    canvas[corner : corner + side, corner : corner + side] = np.clip(sprite, 0, 1)
    step = velocity(direction, speed)
    alpha = np.empty((FRAMES, SIZE, SIZE, 1), np.float32)
    for t in range(FRAMES):
        row, column = start + t * step - SIZE / 2
        shift = np.array([[1, 0, column % SIZE], [0, 1, row % SIZE]])
        cv2.warpAffine(canvas, shift, (SIZE, SIZE), alpha[t, ..., 0], cv2.INTER_LINEAR, cv2.BORDER_WRAP)
    frames = background + alpha * (colour - background)
    drawn = dict(row=start[0], column=start[1], velocity_row=step[0], velocity_column=step[1])
    return np.clip(np.round(frames), 0, 255).astype(np.uint8), drawn


def write_video(path: str | os.PathLike, clip: np.ndarray, fps: int = FPS) -> None:
    """Write (T, H, W, 3) uint8, H and W even, as H.264 with key frames only: a reversed clip decodes reversed."""
    buffer = io.BytesIO()  # FFmpeg would not report that a file cannot be written
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        stream.options = {"qp": "26", "g": "1", "threads": "1", "preset": "veryfast"}
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    pathlib.Path(path).write_bytes(buffer.getvalue())


def still_image(instance: int) -> np.ndarray:
    """Render a digit that fills the frame: (64, 64, 3) uint8."""
    image = cv2.resize(digit_instances()[0][instance], (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return np.repeat(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _write_clips(folder: pathlib.Path, split: str, index: int, instance: int, direction: int, seed: int) -> list[dict]:
    """Write a training clip, or a test clip and its reversal; returns their rows of the csv."""
    rng = np.random.default_rng([seed, split == "test", index])
    clip, drawn = render_clip(instance, direction, rng)
    label = int(digit_instances()[1][instance])
    rows = []
    ways = [("", clip, direction), ("_reversed", clip[::-1], (direction + 4) % 8)]
    for name, frames, way in ways[:1] if split == "train" else ways:
        path = f"videos/{split}/{index:05d}{name}.mp4"
        write_video(folder / path, frames)
        if name:  # start and velocity of the reversed clip
            ends = {key: (drawn[key] + (FRAMES - 1) * drawn[f"velocity_{key}"]) % SIZE for key in ("row", "column")}
            drawn = {key: -value for key, value in drawn.items()} | ends
        row = {"path": path, "split": split, "motion": DIRECTIONS[way], "digit": label, "instance": instance}
        rows.append(row | {key: round(float(value), 4) for key, value in drawn.items()})
    return rows


def make_moving_digits(
    folder: str | os.PathLike,
    seed: int = 0,
    train_clips: int = TRAIN_CLIPS,
    test_digits: int = TEST_DIGITS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write the embedded data and count it by kind and split; equal seeds and versions give equal bytes.

    Args:
        folder: receives videos/, images/, motion.csv, digit_motion.csv and still_digits.csv.
        seed: seed of the split of the digits and of all random numbers.
        train_clips, test_digits: number of training clips and of held-out digits, which give two clips and an image.
        progress: called with the number of finished clips and of all clips.

    An existing folder of moving digits is replaced.

    Raises:
        UserError: the folder cannot be written, or holds something else.
        RunError: the disk is full or broken.
        MadeMeanwhile: the folder did not exist at the beginning, and another process made it meanwhile; it is kept.
    """
    folder = pathlib.Path(folder).absolute()
    existed = folder.exists()
    if existed and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "motion.csv").exists())):
        raise UserError(f"{folder} is neither empty nor a folder of moving digits; choose another one")
    if not 1 <= test_digits <= TEST_DIGITS or train_clips < 1:
        raise UserError(f"expected 1 to {TEST_DIGITS} test digits and at least 1 training clip")
    try:
        with publish.creating(folder, replace=lambda found: existed) as made:
            made.mkdir()
            return _make(made, seed, train_clips, test_digits, progress)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _make(folder: pathlib.Path, seed: int, train_clips: int, test_digits: int, progress) -> dict[str, int]:
    splits = split_instances(seed)
    rng = np.random.default_rng(seed)
    test = rng.permutation(splits["test"])[:test_digits]
    jobs = [("test", i, int(instance), i % 8) for i, instance in enumerate(test)]
    jobs += [("train", i, int(rng.choice(splits["train"])), i % 8) for i in range(train_clips)]
    for kind in ("videos", "images"):
        for split in splits:
            (folder / kind / split).mkdir(parents=True)
    clips, stills = [], []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for rows in pool.map(lambda job: _write_clips(folder, *job, seed=seed), jobs):
            clips += rows
            progress(len(clips), train_clips + 2 * test_digits)
    for split, instances in (("train", splits["train"]), ("test", np.sort(test))):
        for instance in instances:
            path = f"images/{split}/{instance:04d}.png"
            (folder / path).write_bytes(cv2.imencode(".png", still_image(instance)[..., ::-1])[1].tobytes())
            stills.append({"path": path, "label": int(digit_instances()[1][instance]), "split": split})
    _write_csv(folder / CSV_FILES["digit"], stills)
    _write_csv(folder / CSV_FILES["digit_motion"], [_labelled(row, f"{row['digit']}_{row['motion']}") for row in clips])
    _write_csv(folder / CSV_FILES["motion"], [_labelled(row, row["motion"]) for row in clips])
    counts = {f"{split}_clips": sum(row["split"] == split for row in clips) for split in splits}
    return counts | {f"{split}_images": sum(row["split"] == split for row in stills) for split in splits}


def _labelled(row: dict, label: str) -> dict:
    return {"path": row["path"], "label": label} | {key: value for key, value in row.items() if key != "path"}


def _write_csv(path: pathlib.Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
