"""What of a video or an image lies outside of what a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from tubevit.data.warp import Frame, frame_size

# Below these shares of the model's own input: half of the frames of a clip are copies, pixels are made up.
DIFFERENT_FRAMES, SIDE = 0.5, 0.5


def out_of_range(
    decoded: Sequence[Frame], seconds: float | None, *, frames: int, fps: float | None, size: int
) -> list[str]:
    """Reasons why predictions may be worse than those that a model was evaluated with; empty where there is none.

    Args:
        decoded: the frames of a clip, repeated ones as the same object; a single one of an image.
        seconds: duration of the video; None of an image.
        frames, fps, size: the model's input.

    Returns:
        Ends of a sentence about the file.
    """
    reasons = []
    different = len({id(frame) for frame in decoded})
    if seconds is not None and fps is not None and seconds < (frames - 1) / fps:
        reasons.append(f"lasts {seconds:.2f} s, a clip of the model {frames / fps:.2f} s: its last frame is held")
    elif seconds is not None and different < DIFFERENT_FRAMES * frames:
        reasons.append(f"has {different} different frames in a clip, the model {frames}: they are repeated")
    height, width = frame_size(decoded[0])
    if min(height, width) < SIDE * size:
        reasons.append(
            f"is {width}x{height}, the model {size}x{size}: it is enlarged {size / min(height, width):.1f} times"
        )
    return reasons
