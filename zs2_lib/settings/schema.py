"""The settings and their limits as a JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from . import postprocessing
from .table import MAX_FRAMES, ROWS, Row


def schema(max_frames: int = MAX_FRAMES) -> dict:
    """What `Settings.from_mapping` takes, as a JSON schema, of clips that may have up to `max_frames` frames.

    Of a setting that a source may decide it allows what it does with a source. What settings mean together it does not
    say.
    """
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": ROWS["enabled"].label}
    return {**about, **_object(ROWS, max_frames)}


def postprocessing_schema() -> dict:
    """What `Postprocessing.from_mapping` takes."""
    return {"title": "Work on a finished clip", "required": ["clip"], **_object(postprocessing.ROWS, MAX_FRAMES)}


def _object(rows: Mapping[str, Row], max_frames: int) -> dict:
    properties = {row.key: _property(row, max_frames) for row in rows.values()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(row: Row, max_frames: int) -> dict:
    kind = row.kind_with_source or row.kind
    if row.name == "frames":
        kind = replace(kind, high=max_frames)
    about = {"title": row.label, "description": row.tooltip, "default": row.kind.plain(row.default)}
    return {**about, **kind.schema()}
