"""The page on the design shows the library as it is laid out."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "design.md").read_text()


def listed() -> Iterator[str]:
    """The paths in the page's listing, where two spaces are a level and "/" ends a folder."""
    _, _, below = PAGE.partition("```text\n")
    folders: list[str] = []
    for line in below.partition("```")[0].splitlines():
        name = line.split()[0]
        level = (len(line) - len(line.lstrip())) // 2
        folders[level:] = [name]
        yield "".join(folders)


def test_the_listing_has_every_file_of_the_library_and_no_other() -> None:
    """A new file is given its line; a folder of which no file is listed stands for all of it."""
    paths = set(listed())
    files = {path for path in paths if not path.endswith("/")}
    folders = paths - files
    whole = tuple(f for f in folders if not any(path.startswith(f) for path in paths - {f}))
    library = ROOT / "src" / "trimaran"
    there = {path.relative_to(ROOT).as_posix() for path in library.rglob("*.py")}

    assert all((ROOT / folder).is_dir() for folder in folders)
    assert {path for path in there if not path.startswith(whole)} == files
