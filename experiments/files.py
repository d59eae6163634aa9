"""Writes files that are either the old ones or the new ones, never half of each."""

import json
import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Replaces `path` by indented, strictly valid JSON."""
    text = json.dumps(content, indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_lines(path: Path, rows: list[dict]) -> None:
    """Replaces `path` by one JSON object a line."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_bytes(path, text.encode())
