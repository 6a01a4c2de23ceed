"""Hash of source files: what a cached result was made with."""

import hashlib
import pathlib


def code_hash(folder: pathlib.Path) -> str:
    """Hash the content of all Python files below a folder, in hexadecimal."""
    code = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()
