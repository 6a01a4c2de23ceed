"""What the name of a file tells: suffixes of videos and images, and what operating systems leave behind."""

import posixpath

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".apng", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts")
    + (".ogv", ".ts", ".vob", ".webm", ".wmv")
)
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


def suffix(path: str) -> str:
    """Return the suffix of a file name in lower case, e.g. `.mp4`."""
    return posixpath.splitext(path)[1].lower()


def named_kind(path: str) -> str | None:
    """Return `video` or `image` by the suffix of a file name; None if it tells neither."""
    ending = suffix(path)
    return "video" if ending in VIDEO_SUFFIXES else "image" if ending in IMAGE_SUFFIXES else None


def is_hidden(path: str) -> bool:
    """Whether a path is an artefact of an operating system: below `.folder` or `__MACOSX`, or named `.file`."""
    return path.startswith((".", "__MACOSX/")) or "/." in path or "/__MACOSX/" in path
