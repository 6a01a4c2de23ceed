import numpy as np
import pytest

from tubevit.data.trained_range import out_of_range

MODEL = {"frames": 16, "fps": 8.0, "size": 64}


def clip(different, height=64, width=64):
    """16 frames, of which so many differ."""
    frames = [np.zeros((height, width, 3), np.uint8) for _ in range(different)]
    return [frames[i * different // 16] for i in range(16)]


@pytest.mark.parametrize(
    "decoded, seconds, parts",
    [
        (clip(16), 2.0, []),
        (clip(16), 1.876, []),  # the last of 16 frames at 8 FPS is that of 1.875 s
        (clip(15), 1.87, ["lasts 1.87 s, a clip of the model 2.00 s"]),
        (clip(2), 0.2, ["lasts 0.20 s"]),  # and not for its repeated frames too
        (clip(8), 2.0, []),
        (clip(7), 2.0, ["has 7 different frames in a clip, the model 16"]),
        (clip(16, 32, 200), 2.0, []),
        (clip(16, 31, 200), 2.0, ["is 200x31, the model 64x64: it is enlarged 2.1 times"]),
        (clip(16, 200, 16), 1.0, ["lasts 1.00 s", "is 16x200"]),
        (clip(1)[:1], None, []),  # an image
        (clip(1, 20, 20)[:1], None, ["is 20x20, the model 64x64: it is enlarged 3.2 times"]),
    ],
)
def test_reasons(decoded, seconds, parts):
    reasons = out_of_range(decoded, seconds, **MODEL)
    assert len(reasons) == len(parts) and all(part in reason for part, reason in zip(parts, reasons))


def test_frames_that_spread_over_any_duration():
    spread = MODEL | {"fps": None}
    assert out_of_range(clip(16), 0.5, **spread) == []
    assert "has 4 different frames" in out_of_range(clip(4), 0.5, **spread)[0]
