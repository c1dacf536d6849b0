"""A file as the answer to a request, whole or the range of it that was asked for.

Here, since the `FileResponse` of some hosts' starlette knows no ranges. https://www.rfc-editor.org/rfc/rfc9110#name-range
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

_PIECE = 2**18  # bytes


def answer(request: Request, file: BinaryIO, media_type: str, name: str, modified: float) -> Response:
    """The answer to a GET or HEAD: 200, 206 with one range, 304, or 416. Closes `file`, which is open at any place.

    name: what a browser calls the file if it saves it. modified: when it was changed, in seconds since 1970.
    """
    size = file.seek(0, 2)
    tag, date = f'"{int(modified * 1e6):x}-{size:x}"', formatdate(modified, usegmt=True)
    headers = {"Accept-Ranges": "bytes", "ETag": tag, "Last-Modified": date, "Cache-Control": "no-cache"}
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(name, safe='')}"
    if tag in re.split(r"\s*,\s*", request.headers.get("if-none-match", "")):
        file.close()
        return Response(status_code=304, headers=headers)
    start, stop, status = 0, size, 200
    if request.headers.get("if-range", tag) in (tag, date):
        wanted = _range(request.headers.get("range", ""), size)
        if wanted is not None:
            (start, stop), status = wanted, 206
    if status == 206 and start >= stop:
        file.close()
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(_pieces(file, start, stop), status, headers, media_type)


def answer_file(request: Request, path: Path, media_type: str) -> Response:
    """`answer` with the file at `path`. Raises OSError."""
    return answer(request, open(path, "rb"), media_type, path.name, path.stat().st_mtime)


def _range(header: str, size: int) -> tuple[int, int] | None:
    """(start, stop) of the bytes that a Range header asks for, empty where there are none; None for one that is to be
    passed over, as several ranges may be.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip().replace(" ", ""))
    if not found or found[0] == "bytes=-":
        return None
    first, last = (int(text) if text else None for text in found.groups())
    if first is None:
        return max(size - last, 0), size
    if last is not None and last < first:
        return None
    return first, size if last is None else min(last + 1, size)


def _pieces(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < stop and (piece := file.read(min(_PIECE, stop - start))):
            start += len(piece)
            yield piece
