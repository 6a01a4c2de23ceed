"""Fixed position embedding: where each tube was, as sines and cosines (paper section 3.3, equations 3 to 7)."""

from __future__ import annotations

import numpy as np

MAX_PERIOD = 10_000.0  # tau of equation 3


def position_embedding(centres: np.ndarray, width: int) -> np.ndarray:
    """Embeds tube centres; never trained, computed for whatever shape comes.

    Frequency j of d // 6 is tau ** (-j / (d // 6)): equation 3 as printed, tau ** -j, leaves only 12 channels that
    vary. Each j fills six channels: sin t, cos t, sin y, cos y, sin x, cos x (equation 7; its x runs over rows).

    Args:
        centres: (N, 3) tube centres (t, y, x) in frames and pixels.
        width: D; channels beyond 6 * (D // 6) are 0.

    Returns:
        (N, D) float32, values -1..1.
    """
    bands = width // 6
    frequencies = MAX_PERIOD ** (-np.arange(bands) / max(bands, 1))
    angles = np.asarray(centres, np.float64)[:, None, :] * frequencies[:, None]  # (N, bands, 3)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)  # (N, bands, 3, 2)
    embedding = np.zeros((len(centres), width), np.float32)
    embedding[:, : 6 * bands] = waves.reshape(len(centres), -1)
    return embedding
