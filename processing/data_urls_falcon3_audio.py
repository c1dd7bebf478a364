# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reads base64 and `data:` URLs as the many programs write them that send audio in a text."""

import base64
from urllib.parse import unquote_to_bytes


_STANDARD = bytes.maketrans(b"-_", b"+/")  # from the URL-safe alphabet (RFC 4648, 5)


def read_base64(text: bytes, name: str) -> bytes:
    """
    What base64 encodes, in either alphabet, with or without line breaks and padding.

    Raises a `ValueError` that names the clip and shows how the text begins.
    """
    digits = b"".join(text.split()).translate(_STANDARD).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError as error:
        begin = text.strip()[:40].decode(errors="replace")
        raise ValueError(
            f"{name} is broken base64: {error}; it begins with {begin!r}. Expected the bytes of an audio file in base64."
        ) from error


def read_data_url(url: str, name: str) -> bytes:
    """What a `data:` URL (RFC 2397) in base64 holds; it can be percent-encoded. Raises a `ValueError`."""
    head, comma, data = url.partition(",")
    if not comma or not head.replace(" ", "").lower().endswith(";base64"):
        raise ValueError(f"{name}: a data: URL must be data:TYPE;base64,DATA, got {head[:60]!r}.")
    return read_base64(unquote_to_bytes(data.encode(errors="replace")), name)


__all__ = ["read_base64", "read_data_url"]
