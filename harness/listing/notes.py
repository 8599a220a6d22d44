"""Tags and a note of the user's on a run or a sweep, in the folder's notes.json. They are not part
of what a run is."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import read_json, write_json

FILE = "notes.json"


@dataclass(frozen=True)
class Notes:
    """What the user wrote on a run or a sweep."""

    tags: tuple[str, ...] = ()
    note: str = ""

    @property
    def line(self) -> str:
        """Tags and note in one line."""
        return " ".join([*(f"#{tag}" for tag in self.tags), *self.note.split()])


def read_notes(folder: Path) -> Notes:
    """Return the notes on a folder. Raises UserError for a damaged file."""
    file = folder / FILE
    try:
        found = read_json(file)
        tags, note = found.get("tags", []), found.get("note", "")
        if not (isinstance(note, str) and isinstance(tags, list)
                and all(isinstance(tag, str) for tag in tags)):
            raise ValueError("tags or note are no text")
        return Notes(tuple(tags), note)
    except (FileNotFoundError, NotADirectoryError):
        return Notes()
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); fix or delete this file") from None


def change_tags(folder: Path, tags: Iterable[str], *, remove: bool = False) -> Notes:
    """Add tags to a folder, or remove them. Raises UserError for a tag that is not there."""
    before, words = read_notes(folder), [tag.removeprefix("#") for tag in tags]
    if remove:
        if missing := [word for word in words if word not in before.tags]:
            known = ", ".join(before.tags) or "none"
            raise UserError(f"{folder}: has no tag {', '.join(missing)}; its tags: {known}")
        kept = tuple(tag for tag in before.tags if tag not in words)
    else:
        kept = tuple(dict.fromkeys([*before.tags, *words]))
    return _write(folder, Notes(kept, before.note))


def change_note(folder: Path, text: str) -> Notes:
    """Replace the note on a folder; "" removes it."""
    return _write(folder, Notes(read_notes(folder).tags, text.strip()))


def _write(folder: Path, notes: Notes) -> Notes:
    write_json(folder / FILE, {"tags": list(notes.tags), "note": notes.note})
    return notes
