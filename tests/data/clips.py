"""Clips made at test time: frame i shows the number i as eight bars, black for 0 and white for 1."""

import os
from fractions import Fraction

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)


def paint(index, height=48, width=64):
    """(height, width, 3) uint8."""
    bars = np.array([235 if index >> bit & 1 else 16 for bit in range(8)], np.uint8)
    return np.broadcast_to(bars[np.arange(width) * 8 // width][:, None], (height, width, 3))


def indices(clip):
    """The numbers that the frames (T, H, W, 3) show."""
    height, width = clip.shape[1:3]
    middles = (np.arange(8) * 2 + 1) * width // 16
    bits = clip[:, height // 4 : -(height // 4), middles].mean(axis=(1, 3)) > 128
    return (bits << np.arange(8)).sum(axis=1).tolist()


def write_clip(path, times, codec="libx264", pixels="yuv420p", size=(48, 64), unit=MILLISECOND, stream=None, **options):
    """Encodes one frame for each presentation time, given in `unit`s.

    Args:
        stream: options of the encoder, e.g. {"g": "250"}.
        options: of `av.open`, e.g. container_options={"live": "1"}.
    """
    with av.open(str(path), "w", **options) as container:
        track = container.add_stream(codec, rate=25, options=stream or {})
        track.height, track.width, track.pix_fmt = *size, pixels
        track.codec_context.time_base = track.time_base = unit
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(paint(index, *size)), format="rgb24")
            frame.pts, frame.time_base = time, unit
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


def write_clip_with_sound(path, video, sound, frames=50, first=0.0, sound_first=0.0, sound_seconds=2.0):
    """Encodes frames at 25 a second and sound, which begin at `first` and `sound_first` seconds.

    Args:
        video, sound: codec, and options of the encoder of the video.
    """
    codec, options = video
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=25, options={"g": "12", **options})
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(sound, rate=48000, layout="mono")
        audio.bit_rate = 64000
        chunks = np.array_split(np.zeros((1, int(48000 * sound_seconds)), np.float32), int(25 * sound_seconds), axis=1)
        samples = round(48000 * sound_first)
        resampler = av.AudioResampler(audio.codec_context.format, "mono", 48000, audio.codec_context.frame_size or 1024)
        for number in range(max(frames, len(chunks))):
            if number < frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(paint(number)), format="rgb24")
                frame.pts, frame.time_base = number + round(25 * first), Fraction(1, 25)
                container.mux(track.encode(frame))
            if number < len(chunks):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunks[number]), format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, samples, Fraction(1, 48000)
                samples += chunks[number].shape[1]
                for part in resampler.resample(frame):
                    container.mux(audio.encode(part))
        container.mux(track.encode())
        for part in resampler.resample(None):
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


def write_audio(path):
    """A second of silence."""
    with av.open(str(path), "w") as container:
        track = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def set_rotation(path, quarters):
    """Writes a display matrix into an mp4, as phones do: the picture is turned clockwise by 90 degrees * quarters."""
    set_display_matrix(path, *{1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarters])


def set_display_matrix(path, a, b, c, d):
    """Writes a display matrix into an mp4: a point (p, q) is shown at (a p + c q, b p + d q), moved into view."""
    values = [round(value * (1 << 16)) for value in (a, b, 0, c, d, 0, 0, 0)]
    matrix = b"".join(value.to_bytes(4, "big", signed=True) for value in (*values, 1 << 30))
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    assert data[start : start + 4] == (1 << 16).to_bytes(4, "big")  # the identity was there
    data[start : start + 36] = matrix
    path.write_bytes(data)


class CountedPath(os.PathLike):
    """A path that counts how often it is asked for: every opening does."""

    def __init__(self, path):
        self.path, self.count = path, 0

    def __fspath__(self):
        self.count += 1
        return str(self.path)
