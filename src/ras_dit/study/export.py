"""The study as one HTML file for people who cannot reach a server."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import secrets
from importlib import resources
from pathlib import Path

from ras_dit.errors import RASError
from ras_dit.study.folder import IMAGES, Manifest, read_key, read_manifest
from ras_dit.study.tokens import code_digest, participant_code, spaced

MOST_PARTICIPANTS = 10_000
_SCRIPTS = ("sha256.js", "zoom.js", "offline.js", "page.js")


def export_study(folder: Path, key_file: Path, out: Path, participants: int) -> Path:
    """Write the study as one HTML file, and the personal codes beside it.

    Args:
        folder: The study folder.
        key_file: Its answer key, from whose secret the codes are derived. Nothing of the key goes
            into the HTML file.
        out: The HTML file.
        participants: Number of codes to make.

    Returns:
        The CSV file with the codes: one row per participant, to be handed out one by one.

    Raises:
        RASError: If the study or its key cannot be read, the number is out of range, or a file
            exists already.
    """
    if not 1 <= participants <= MOST_PARTICIPANTS:
        raise RASError(f"participants={participants}; expected 1 to {MOST_PARTICIPANTS}")
    if out.suffix.lower() not in (".html", ".htm"):
        raise RASError(f"{str(out)!r} is no name of a page; expected one that ends in .html")
    codes_file = out.with_name(f"{out.stem}-codes.csv")
    manifest = read_manifest(folder)
    key = read_key(key_file, manifest.study)
    export = secrets.token_hex(8)
    codes = [
        participant_code(key.secret, key.study, export, number)
        for number in range(1, participants + 1)
    ]
    page = _page(folder, manifest, export, codes)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(codes_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["participant", "code"])
            rows.writerows((number, spaced(code)) for number, code in enumerate(codes, 1))
        with out.open("x", encoding="utf-8") as file:
            file.write(page)
    except FileExistsError as error:
        raise RASError(
            f"{error.filename!r} exists already, and its codes may be in use; give another --out"
        ) from error
    except OSError as error:
        raise RASError(f"{str(out)!r} cannot be written: {error.strerror}") from error
    return codes_file


def _page(folder: Path, manifest: Manifest, export: str, codes: list[str]) -> str:
    files = resources.files("ras_dit.study") / "page"
    style = (files / "page.css").read_text("utf-8")
    script = "\n".join((files / name).read_text("utf-8") for name in _SCRIPTS)
    data = {
        "study": manifest.study,
        "export": export,
        "title": manifest.title,
        "consent": [
            (
                "This page sends nothing. Your answers stay in this browser until you save them to "
                "a file and send it back; the file names the number of your code, and nobody."
            ),
            *manifest.consent,
        ],
        "questions": [
            {"id": question.id, "prompt": question.prompt, "images": question.images}
            for question in manifest.questions
        ],
        "images": {
            name: _data_url(folder / IMAGES / name)
            for question in manifest.questions
            for name in question.images
        },
        "codes": [code_digest(manifest.study, export, code) for code in codes],
    }
    # "<" never appears in the data, so no prompt can end the element that holds it.
    inline = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    page = (files / "index.html").read_text("utf-8")
    page = re.sub(r'<link rel="icon".*>\n', "", page)
    page = re.sub(r"<script src=.*</script>\n", "", page)
    page = page.replace(
        '<meta charset="utf-8">',
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">',
    )
    page = page.replace('<link rel="stylesheet" href="page.css">', f"<style>{style}</style>")
    body = f'<script type="application/json" id="study-data">{inline}</script>\n'
    return page.replace("</body>", f"{body}<script>{script}</script>\n</body>")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
