"""What the documents show in Python runs, and the links in them lead somewhere."""

import re
from pathlib import Path

import pytest
import skimage.data

from pcsr.runtime.pictures import write_picture

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))


def blocks(document: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_python_in_the_documents_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = skimage.data.chelsea()[:48, :64]
    monkeypatch.chdir(tmp_path)
    write_picture("photo.jpg", photo)
    (tmp_path / "photographs").mkdir()
    write_picture("photographs/one.png", photo)
    code = blocks(ROOT / name)
    assert code
    known = {"picture": photo}
    exec(compile("\n".join(code), name, "exec"), known)
    if name == "docs/python.md":
        assert (tmp_path / "photo_x4.png").exists()
        said = capsys.readouterr().out
        assert "stopped half-way" in said
        # Errors are quoted as they are.
        for line in said.splitlines():
            if line.startswith("scale is"):
                assert f"# {line}" in (ROOT / name).read_text(encoding="utf-8")
        assert "scale is 0.5" in said


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target
