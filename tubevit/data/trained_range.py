"""Warnings about videos and images that differ from the training data of a model."""

from collections.abc import Sequence

from tubevit.data.warp import Frame, frame_size

# Smaller shares of the model's input give a warning: half of the frames are copies, pixels are interpolated.
DIFFERENT_FRAMES, SIDE = 0.5, 0.5


def out_of_range(
    decoded: Sequence[Frame], seconds: float | None, *, frames: int, fps: float | None, size: int
) -> list[str]:
    """Return reasons why predictions may be worse than in the evaluation, as predicates for a sentence about the file.

    `frames`, `fps` and `size` are the input of the model. Repeated frames of `decoded` are the same object; `seconds`
    is the duration of the video, None for an image.
    """
    reasons = []
    different = len({id(frame) for frame in decoded})
    if seconds is not None and fps is not None and seconds < (frames - 1) / fps:
        reasons.append(f"lasts {seconds:.2f} s, a clip of the model {frames / fps:.2f} s: its last frame is held")
    elif seconds is not None and different < DIFFERENT_FRAMES * frames:
        reasons.append(f"has {different} different frames in a clip, the model {frames}: they are repeated")
    height, width = frame_size(decoded[0])
    if min(height, width) < SIDE * size:
        growth = size / min(height, width)
        reasons.append(f"is {width}x{height}, the model {size}x{size}: it is enlarged {growth:.1f} times")
    return reasons
