"""The study as one file: its answers are merged, and forged, foreign or damaged ones are not."""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ras_dit.cli import main
from ras_dit.errors import RASError
from ras_dit.study.analyse import analyse_study
from ras_dit.study.assignment import assignment
from ras_dit.study.collect import collect
from ras_dit.study.export import export_study
from ras_dit.study.folder import ANSWERS, KEY, Manifest, Pair, read_key, read_manifest, write_study
from ras_dit.study.tokens import code_digest, participant_code, signature
from studies import DENSE, SPARSE, served, small_study, take_part


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A study and the codes of an export of it."""
    folder = tmp_path_factory.mktemp("exported") / "study"
    small_study(folder, 3, side=8)
    codes = export_study(folder, folder / KEY, folder / "study.html", 4)
    return folder, read_codes(codes)


def read_codes(path: Path) -> list[str]:
    """The codes of an export, without the dashes."""
    with path.open(newline="") as file:
        return [row["code"].replace("-", "") for row in csv.DictReader(file)]


def page_data(page: Path) -> dict[str, Any]:
    """The data inside an exported page."""
    text = page.read_text()
    inside = text.split('<script type="application/json" id="study-data">')[1]
    data: dict[str, Any] = json.loads(inside.split("</script>")[0])
    return data


def answers_file(
    folder: Path, codes: list[str], number: int, choices: list[int], revision: int | None = None
) -> dict[str, Any]:
    """What the page gives for a participant who made these choices, in the order shown."""
    manifest = read_manifest(folder)
    export = page_data(folder / "study.html")["export"]
    shown = assignment(codes[number - 1], manifest.questions)[: len(choices)]
    rows = [
        (item.question, item.left, item.right, choice)
        for item, choice in zip(shown, choices, strict=True)
    ]
    revision = len(rows) if revision is None else revision
    return {
        "format": "ras-dit-study-answers/1",
        "study": manifest.study,
        "export": export,
        "participant": number,
        "revision": revision,
        "answers": [
            {"question": q, "left": left, "right": right, "choice": choice}
            for q, left, right, choice in sorted(rows)
        ],
        "signature": signature(codes[number - 1], manifest.study, export, number, revision, rows),
    }


def merged(folder: Path, tmp_path: Path, *files: object) -> tuple[int, list[str]]:
    """Number of votes that are counted, and the reasons for which files are not."""
    paths = []
    for number, data in enumerate(files):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(data if isinstance(data, str) else json.dumps(data))
    manifest = read_manifest(folder)
    found = collect(folder, manifest, read_key(folder / KEY, manifest.study), paths)
    return len(found.votes), [file.reason for file in found.refused]


def test_the_page_is_whole_and_holds_no_secret(exported: tuple[Path, list[str]]) -> None:
    folder, codes = exported
    text = (folder / "study.html").read_text()
    key = read_key(folder / KEY, read_manifest(folder).study)
    assert key.secret not in text
    assert "sample_ratio" not in text
    for code in codes:
        assert code not in text
    for loaded in ("http:", "https:", ' src="', "url(", "@import", "<link"):
        assert loaded not in text
    assert "default-src 'none'" in text
    data = page_data(folder / "study.html")
    assert [code_digest(key.study, data["export"], code) for code in codes] == data["codes"]
    assert set(data["images"]) == set(key.images)
    assert stat.S_IMODE((folder / "study-codes.csv").stat().st_mode) == 0o600


def test_codes_differ_and_follow_from_the_secret(exported: tuple[Path, list[str]]) -> None:
    folder, codes = exported
    key = read_key(folder / KEY, read_manifest(folder).study)
    export = page_data(folder / "study.html")["export"]
    assert codes == [participant_code(key.secret, key.study, export, n) for n in range(1, 5)]
    assert len(set(codes)) == 4
    assert {len(code) for code in codes} == {16}


def test_answers_from_files_and_from_the_server_are_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    small_study(folder, 3, side=8)
    page = tmp_path / "page.html"
    words = ["--out", str(page), "--participants", "2"]
    assert main(["study", "export", str(folder), *words]) == 0
    page.rename(folder / "study.html")
    with served(folder) as address:
        take_part(address, count=3)
    codes = read_codes(tmp_path / "page-codes.csv")
    replies = tmp_path / "replies"
    replies.mkdir()
    (replies / "1.json").write_text(json.dumps(answers_file(folder, codes, 1, [1, 5, 3])))
    (replies / "2.json").write_text(json.dumps(answers_file(folder, codes, 2, [1])))
    (replies / "3.json").write_text("{}")
    capsys.readouterr()
    assert main(["study", "analyse", str(folder), "--answers", str(replies)]) == 0
    said = capsys.readouterr()
    assert "6 votes" in said.out
    assert said.err == "not counted: 3.json: not a file of answers from `ras-dit study export`\n"
    report = (folder / "results" / "report.md").read_text()
    assert "2 participants answered everything" in report
    assert "1 handed in over the server, 2 by file" in report
    assert "| 3.json | not a file" in report


def change(**values: object) -> Callable[[dict[str, Any]], None]:
    """A change of some fields of a file."""
    return lambda data: data.update(values)


def change_answer(**values: object) -> Callable[[dict[str, Any]], None]:
    """A change of the first answer."""
    return lambda data: data["answers"][0].update(values)


def swap_sides(data: dict[str, Any]) -> None:
    """Turns an answer round."""
    first = data["answers"][0]
    first["left"], first["right"] = first["right"], first["left"]


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (change_answer(choice=2), "forged or damaged"),
        (change(participant=2), "forged or damaged"),
        (change(participant=5), "forged or damaged"),
        (change(participant=10**9), "forged or damaged"),
        (change(revision=99), "forged or damaged"),
        (change(export="0" * 16), "forged or damaged"),
        (change(signature="0" * 64), "forged or damaged"),
        (change(signature=None), "forged or damaged"),
        (change(signature="\ud800"), "forged or damaged"),
        (lambda data: data["answers"].pop(), "forged or damaged"),
        (swap_sides, "forged or damaged"),
        (change(study="0" * 32), "foreign"),
        (change(study=None), "foreign"),
        (change(format="something else"), "not a file of answers"),
        (change(participant=0), "damaged"),
        (change(participant=True), "damaged"),
        (change(participant="1"), "damaged"),
        (change(revision=1.5), "damaged"),
        (change(export=7), "damaged"),
        (change(answers=[]), "no answers"),
        (change(answers="1"), "no answers"),
        (change(answers=[1, 2, 3]), "lacks its question"),
        (change_answer(choice=0), "from 1 to 5"),
        (change_answer(choice=6), "from 1 to 5"),
        (change_answer(choice=True), "from 1 to 5"),
        (change_answer(choice="1; DROP TABLE"), "from 1 to 5"),
        (change_answer(question="0" * 32), "does not have"),
        (change_answer(left="../key.json"), "pictures of another question"),
        (change_answer(left=None), "lacks its question"),
        (lambda data: data["answers"].append(data["answers"][0]), "twice"),
    ],
)
def test_tampered_files_are_refused_with_a_reason(
    tamper: Callable[[dict[str, Any]], None],
    reason: str,
    exported: tuple[Path, list[str]],
    tmp_path: Path,
) -> None:
    data = answers_file(*exported, 1, [1, 2, 3])
    # Keeps the test of "choice=2" from changing nothing.
    data["answers"][0]["choice"] = 1
    rows = [(a["question"], a["left"], a["right"], a["choice"]) for a in data["answers"]]
    code = exported[1][0]
    data["signature"] = signature(code, data["study"], data["export"], 1, 3, rows)
    assert merged(exported[0], tmp_path, data) == (3, [])
    tamper(data)
    votes, reasons = merged(exported[0], tmp_path, data)
    assert votes == 0
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_sides_that_were_not_shown_are_refused_even_if_signed(
    exported: tuple[Path, list[str]], tmp_path: Path
) -> None:
    data = answers_file(*exported, 1, [1, 2, 3])
    swap_sides(data)
    rows = [(a["question"], a["left"], a["right"], a["choice"]) for a in data["answers"]]
    data["signature"] = signature(exported[1][0], data["study"], data["export"], 1, 3, rows)
    votes, (reason,) = merged(exported[0], tmp_path, data)
    assert votes == 0
    assert "not those that this participant was shown" in reason


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "[]", "\x00", "x" * 3_000_000])
def test_what_is_no_file_of_answers_is_refused(
    text: str, exported: tuple[Path, list[str]], tmp_path: Path
) -> None:
    votes, reasons = merged(exported[0], tmp_path, text)
    assert votes == 0
    assert len(reasons) == 1


def test_files_of_another_study_are_foreign(
    exported: tuple[Path, list[str]], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    small_study(other, 3, side=8)
    votes, (reason,) = merged(other, tmp_path, answers_file(*exported, 1, [1, 2, 3]))
    assert votes == 0
    assert reason == "foreign: it belongs to another study"


def test_doubles_count_once_and_the_latest_counts(
    exported: tuple[Path, list[str]], tmp_path: Path
) -> None:
    first = answers_file(*exported, 1, [1, 1])
    later = answers_file(*exported, 1, [5, 5, 5])
    other = answers_file(*exported, 2, [3, 3, 3])
    votes, reasons = merged(exported[0], tmp_path, later, first, later, other)
    assert votes == 6
    assert reasons == ["superseded: 0.json is of the same participant"] * 2
    contradiction = answers_file(*exported, 1, [4, 5, 5])
    votes, reasons = merged(exported[0], tmp_path, later, contradiction, other)
    assert votes == 3
    assert reasons == ["one participant's code, but different answers: 0.json, 1.json"] * 2


def test_a_prompt_cannot_end_the_data(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (8, 8))
    prompt = "</script><script>document.title='broken'</script><!--"
    manifest: Manifest = write_study(
        tmp_path / "s",
        [Pair(prompt, 0, image, image)],
        {"a": DENSE, "b": SPARSE},
        title="</title><script>",
        consent=["</script>"],
        made_with={},
    )
    export_study(tmp_path / "s", tmp_path / "s" / KEY, tmp_path / "page.html", 1)
    data = page_data(tmp_path / "page.html")
    assert data["questions"][0]["prompt"] == prompt
    assert data["study"] == manifest.study
    assert (tmp_path / "page.html").read_text().count("<script>") == 1


def test_an_export_is_never_replaced(exported: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = exported
    for out, number, message in (
        (folder / "study.html", 1, "exists already"),
        (tmp_path / "study.txt", 1, r"ends in \.html"),
        (tmp_path / "study.html", 0, "expected 1 to"),
    ):
        with pytest.raises(RASError, match=message):
            export_study(folder, folder / KEY, out, number)
    assert list(tmp_path.iterdir()) == []
    assert not (folder / ANSWERS).exists()
    with pytest.raises(RASError, match="wait for answers"):
        analyse_study(folder)
