"""A page of tables: prose by hand, numbers in marked places by the program."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ras_dit.errors import RASError
from ras_dit.evaluation.files import write_bytes

_PLACE = "<!-- {name}: made by {maker} -->\n{text}\n<!-- end of {name} -->"


def fill(page: Path, parts: Mapping[str, str], maker: str) -> None:
    """Put texts into the marked places of a page; everything else stays as it is.

    Args:
        page: The page.
        parts: Markdown by name of the place.
        maker: The command that makes them, which the marks name.

    Raises:
        RASError: If the page cannot be read or lacks a place.
    """
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RASError(f"the page {str(page)!r} cannot be read: {error}") from error
    for name, part in parts.items():
        first, last = _PLACE.format(name=name, maker=maker, text="\0").split("\0")
        place = re.compile(f"{re.escape(first.strip())}.*?{re.escape(last.strip())}", re.DOTALL)
        count = len(place.findall(text))
        if count != 1:
            raise RASError(
                f"the page {str(page)!r} has {count} places for {name}; expected one, from "
                f"{first.strip()!r} to {last.strip()!r}"
            )
        before, after = place.split(text)
        text = before + _PLACE.format(name=name, maker=maker, text=part.strip()) + after
    write_bytes(page, text.encode())
