"""The embedded data: videos of moving handwritten digits (scikit-learn's 1,797), and images of still ones.

Digits start at a uniform position and move along straight lines that wrap around, so that no single frame reveals the
direction. Each clip that is held out also exists reversed, so that no unordered set of frames reveals it either.

The images show digits of the same sizes and colours on the same kind of background. They have all training digits, the
training clips only a part of them: images can teach what digits look like, as ImageNet does for Kinetics.

No digit is in two of the splits: settings are chosen on `val`, and `test` is for what is reported.
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
VERSION = 2  # version of the content: cached copies of other versions are not used
# Rows grow downwards. Direction i + 4 (mod 8) is the time reversal of direction i.
DIRECTIONS = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
SPLITS = ("train", "val", "test")
HELD_OUT_DIGITS = 225  # of `val` and of `test`; a digit is in two clips, their reversals, and in two images
TRAIN_DIGITS = 1_347  # each is in four images
CLIP_DIGITS = 300  # of the training digits: those of the clips
TRAIN_CLIPS = 6_000
_IMAGES = {"train": 4, "val": 2, "test": 2}  # of a digit
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
    """Return disjoint indices of the digits of `train`, `val` and `test`, stratified by class."""
    from sklearn.model_selection import train_test_split

    labels, splits, rest = digit_instances()[1], {}, np.arange(len(digit_instances()[1]))
    for split in ("test", "val"):
        rest, splits[split] = train_test_split(
            rest, test_size=HELD_OUT_DIGITS, stratify=labels[rest], random_state=seed
        )
    return {split: np.sort(instances) for split, instances in {"train": rest, **splits}.items()}


def _draw(instance: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw at random how a digit looks: its opacity (side, side), its colour (3,) and the background (64, 64, 3)."""
    side = int(rng.integers(*_SPRITE))
    coarse = rng.uniform(0, 110, (4, 4, 3)).astype(np.float32)
    background = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    colour = rng.uniform(170, 255, 3).astype(np.float32)
    sprite = cv2.resize(digit_instances()[0][instance], (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(sprite, 0, 1), colour, background


def _blend(background: np.ndarray, colour: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    frames = background + opacity[..., None] * (colour - background)
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def render_clip(instance: int, direction: int, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    """Render one digit that moves over a smooth background.

    The direction is 0..7, see `DIRECTIONS`; nothing else that is random depends on it.

    Returns:
        (16, 64, 64, 3) uint8, and the sampled start (row, column of the digit's centre) and velocity.
    """
    sprite, colour, background = _draw(instance, rng)
    start, speed = rng.uniform(0, SIZE, 2), rng.uniform(*_SPEED)
    side = len(sprite)
    canvas = np.zeros((SIZE, SIZE), np.float32)
    corner = (SIZE - side) // 2
    canvas[corner : corner + side, corner : corner + side] = sprite
    step = velocity(direction, speed)
    opacity = np.empty((FRAMES, SIZE, SIZE), np.float32)
    for t in range(FRAMES):
        row, column = start + t * step - SIZE / 2
        shift = np.array([[1, 0, column % SIZE], [0, 1, row % SIZE]])
        cv2.warpAffine(canvas, shift, (SIZE, SIZE), opacity[t], cv2.INTER_LINEAR, cv2.BORDER_WRAP)
    drawn = dict(row=start[0], column=start[1], velocity_row=step[0], velocity_column=step[1])
    return _blend(background, colour, opacity), drawn


def render_image(instance: int, rng: np.random.Generator) -> np.ndarray:
    """Render one digit, whole and at a uniform position, over a smooth background: (64, 64, 3) uint8."""
    sprite, colour, background = _draw(instance, rng)
    side = len(sprite)
    row, column = rng.integers(0, SIZE - side + 1, 2)
    opacity = np.zeros((SIZE, SIZE), np.float32)
    opacity[row : row + side, column : column + side] = sprite
    return _blend(background, colour, opacity)


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


def _write_clips(folder: pathlib.Path, split: str, index: int, instance: int, direction: int, seed: int) -> list[dict]:
    """Write a training clip, or a clip of another split and its reversal; returns their rows of the csv."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
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


def _write_image(folder: pathlib.Path, split: str, instance: int, number: int, seed: int) -> dict:
    """Write an image; returns its row of the csv."""
    image = render_image(instance, np.random.default_rng([seed, len(SPLITS), instance, number]))
    path = f"images/{split}/{instance:04d}_{number}.png"
    (folder / path).write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    return {"path": path, "label": int(digit_instances()[1][instance]), "split": split, "instance": instance}


def make_moving_digits(
    folder: str | os.PathLike,
    seed: int = 0,
    train_clips: int = TRAIN_CLIPS,
    train_digits: int = TRAIN_DIGITS,
    held_out_digits: int = HELD_OUT_DIGITS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write the embedded data and count it by kind and split; equal seeds and versions give equal bytes.

    Args:
        folder: receives videos/, images/, motion.csv, digit_motion.csv and still_digits.csv.
        seed: seed of the splits of the digits and of all random numbers.
        train_clips: number of training clips.
        train_digits: number of training digits, each in four images. Clips show the first 300 of them only.
        held_out_digits: number of digits of `val` and of `test`, each in four clips and in two images.
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
    if not (1 <= held_out_digits <= HELD_OUT_DIGITS and 1 <= train_digits <= TRAIN_DIGITS and train_clips >= 1):
        raise UserError(
            f"expected 1 to {HELD_OUT_DIGITS} held-out digits, 1 to {TRAIN_DIGITS} training digits and at least 1 "
            f"training clip; found {held_out_digits}, {train_digits} and {train_clips}"
        )
    try:
        with publish.creating(folder, replace=lambda found: existed) as made:
            made.mkdir()
            return _make(
                made, seed, train_clips, {"train": train_digits} | dict.fromkeys(SPLITS[1:], held_out_digits), progress
            )
    except OSError as error:
        raise cannot_write(folder, error) from error


def _make(folder: pathlib.Path, seed: int, train_clips: int, digits: dict[str, int], progress) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    instances = {split: rng.permutation(found)[: digits[split]] for split, found in split_instances(seed).items()}
    of_clips = {"train": rng.choice(instances["train"][:CLIP_DIGITS], train_clips)}
    of_clips |= {split: np.repeat(instances[split], 2) for split in SPLITS[1:]}
    jobs = [(split, i, int(one), i % 8) for split in SPLITS for i, one in enumerate(of_clips[split])]
    images = [
        (split, int(one), number)
        for split in SPLITS
        for one in np.sort(instances[split])
        for number in range(_IMAGES[split])
    ]
    for kind in ("videos", "images"):
        for split in SPLITS:
            (folder / kind / split).mkdir(parents=True)
    clips, total = [], train_clips + 8 * digits["val"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        stills = list(pool.map(lambda job: _write_image(folder, *job, seed=seed), images))
        for rows in pool.map(lambda job: _write_clips(folder, *job, seed=seed), jobs):
            clips += rows
            progress(len(clips), total)
    _write_csv(folder / CSV_FILES["digit"], stills)
    _write_csv(folder / CSV_FILES["digit_motion"], [_labelled(row, f"{row['digit']}_{row['motion']}") for row in clips])
    _write_csv(folder / CSV_FILES["motion"], [_labelled(row, row["motion"]) for row in clips])
    rows = {"clips": clips, "images": stills}
    return {
        f"{split}_{kind}": sum(row["split"] == split for row in found)
        for kind, found in rows.items()
        for split in SPLITS
    }


def _labelled(row: dict, label: str) -> dict:
    return {"path": row["path"], "label": label} | {key: value for key, value in row.items() if key != "path"}


def _write_csv(path: pathlib.Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
