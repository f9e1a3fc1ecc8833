"""The words of a search, and the text around them. Pure."""

from __future__ import annotations

from fleet.store.rows import clean

SNIPPET = 200
"""Characters shown around the first word."""


def split_words(text: str) -> list[str]:
    """Return the words of a search in lower case; what stands in double quotes stays together."""
    parts = text.lower().split('"')
    words: list[str] = []
    for number, part in enumerate(parts):
        words.extend([part.strip()] if number % 2 and part.strip() else part.split() if number % 2 == 0 else [])
    return [clean(word) for word in words]


def snippet(text: str, words: list[str]) -> str:
    """Return the text around the first word, on one line."""
    folded = text.lower()
    at = min((place for word in words if (place := folded.find(word)) >= 0), default=0)
    low = max(0, at - SNIPPET // 3)
    cut = text[low : low + SNIPPET]
    return ("…" if low else "") + " ".join(cut.split()) + ("…" if low + SNIPPET < len(text) else "")
