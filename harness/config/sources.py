"""Settings from recipe files and command lines, each with the place where it was written."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, hint
from harness.base.paths import is_utf8
from harness.config.fields import removed_keys, subsections
from harness.config.yaml_files import VERBATIM, NotYaml, Texts, nowhere, parse

MARKED = tuple("'\"|>![{")
"""First characters of values that are written in YAML's way."""
NULLS = ("~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Setting:
    """One value for one dotted key, and where the user wrote it."""

    key: str
    value: Any
    where: str


def dotted_items(
    value: Mapping[str, Any], schema: type, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a nested mapping, descending into the sections of `schema`."""
    sections = subsections(schema)
    for key, item in value.items():
        if key in sections and isinstance(item, Mapping):
            yield from dotted_items(item, sections[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def settings_of(
    value: Mapping[str, Any], lines: Mapping[str, int], path: Path, schema: type, prefix: str = ""
) -> list[Setting]:
    """Return a mapping's values as settings of `schema`; `prefix`: the keys above the mapping."""
    return [Setting(key, item, f"{path}, line {lines.get(prefix + key, 1)}")
            for key, item in dotted_items(value, schema)]


def as_given_now(settings: list[Setting], schema: type) -> list[Setting]:
    """Translate the configuration of a finished run that an earlier version may have written.

    Settings that lack a whole section are no complete configuration and are returned unchanged. The
    schema's class variable `absent` has the values of missing keys, `removed` the settings that
    replace a removed key.
    """
    given = {setting.key for setting in settings}
    if not all(any(key.startswith(f"{name}.") for key in given) for name in subsections(schema)):
        return settings
    removed, where = removed_keys(schema), settings[0].where if settings else ""
    absent: Mapping[str, Any] = getattr(schema, "absent", {})
    translated = [Setting(key, value, where) for key, value in absent.items() if key not in given]
    for setting in settings:
        gone = removed.get(setting.key)
        if gone is None or setting.value is gone.only:
            translated.append(setting)
        else:
            translated += [Setting(k, v, setting.where) for k, v in gone.replaced_by.items()]
    return translated


def parse_overrides(overrides: Iterable[str], texts: Texts = nowhere) -> list[Setting]:
    """Parse `key=value` arguments of a command line; values are read as YAML.

    texts: returns whether a key holds strings. Raises UserError with every argument that lacks `=`
    or whose value is not YAML.
    """
    settings: list[Setting] = []
    faults: list[str] = []
    for number, word in enumerate(overrides, start=1):
        key, equals, text = word.partition("=")
        if key != key.rstrip():  # of the form `key = value`
            text = text.strip()
        key = key.strip()
        where = f"command line, override {number}"
        if not equals or not key:
            faults.append(f"{where}: {word!r} is not of the form key=value")
            continue
        if not text.strip() and texts(key) != VERBATIM:  # `model.weights=$FILE`, and no $FILE
            faults.append(f"{where}: {key}: is empty; write a value, null, or "
                          "'\"\"' for an empty string")
            continue
        try:
            settings.append(Setting(key, _value(key, text, texts), where))
        except NotYaml as error:
            faults.append(f"{where}: {key}: {text.strip()!r} is not a YAML value: {error}")
    if faults:
        raise UserError("\n".join(faults))
    return settings


def _value(key: str, text: str, texts: Texts) -> Any:
    """Return the value of a text on the command line. Raises NotYaml."""
    if not is_utf8(text):  # cannot be YAML, so it is a string
        return text
    # YAML would cut a path at ` #`, fold its line breaks, strip it, take `&a` for null
    is_plain = texts(key) and not text.strip().startswith(MARKED)
    try:
        value = parse(text.strip(), texts, key)[0]
    except NotYaml:
        if not is_plain:
            raise
        value = text
    is_text = isinstance(value, str) or (value is None and text.strip() not in NULLS)
    return text if is_plain and is_text else value


def suggest(name: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown key: the nearest known one, if any is near."""
    # the most common mistake is the right last part under another section
    same_end = [key for key in known if key.split(".")[-1] == name.split(".")[-1]]
    return hint(name, known, f"; did you mean {same_end[0]}?" if same_end else "")
