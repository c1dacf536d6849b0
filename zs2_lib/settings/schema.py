"""The settings and their limits as a JSON schema."""

from __future__ import annotations

from dataclasses import replace

from .table import MAX_FRAMES, ROWS, Row


def schema(max_frames: int = MAX_FRAMES) -> dict:
    """What `Settings.from_mapping` takes, as a JSON schema, of clips that may have up to `max_frames` frames.

    Of a setting that a source may decide it allows what it does with a source. What settings mean together it does not
    say.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": ROWS["enabled"].label,
        "type": "object",
        "additionalProperties": False,
        "properties": {row.key: _property(row, max_frames) for row in ROWS.values()},
    }


def _property(row: Row, max_frames: int) -> dict:
    kind = row.kind_with_source or row.kind
    if row.name == "frames":
        kind = replace(kind, high=max_frames)
    about = {"title": row.label, "description": row.tooltip, "default": row.kind.plain(row.default)}
    return {**about, **kind.schema()}
