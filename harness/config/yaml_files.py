"""Reading and writing of YAML, in files and on command lines.

Plain values are those of YAML 1.2: 1e-4 is a number; yes, on, 12:30 and 2024-01-01 are strings.
An integer with a leading zero is a string too: YAML 1.1 reads 010 as 8, and an account may be
0123. Keys are strings, and so is each value of a string key, whatever it looks like.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from harness.base.errors import UserError, hint
from harness.base.reading import retried

ENDINGS = (".yaml", ".yml")
VERBATIM = "verbatim"
Texts = Callable[[str], bool | str]
"""Whether the value of a dotted key is a string, whatever it looks like; `VERBATIM`: null and an
empty value too."""
TAG = "tag:yaml.org,2002:"
PLAIN, NULL = {f"{TAG}{kind}" for kind in ("bool", "int", "float")}, f"{TAG}null"
SCALARS = {"null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
           "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
           "int": (r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
           "float": (r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
                     r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
           "merge": (r"<<", ["<"])}
"""The core schema of YAML 1.2, and 1.1's `<<`: pattern and first characters of each kind."""


class NotYaml(ValueError):
    """A text is not YAML; `faults` are (line, message)."""

    def __init__(self, *faults: tuple[int, str]) -> None:
        super().__init__("; ".join(message for _, message in faults))
        self.faults = faults


class _Loader(yaml.SafeLoader):
    """A loader that copies an alias's node, as a string key reads it differently."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        is_whole = node is not None and node.end_mark is not None  # False for an alias in itself
        return copy.deepcopy(node) if is_alias and is_whole else node


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes each string that YAML 1.1 or 1.2 would not read as a string."""


for _kind, (_pattern, _first) in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def nowhere(key: str) -> bool:
    """Return False: no key holds strings only."""
    return False


def read_yaml(path: Path, texts: Texts = nowhere) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a YAML mapping and the line of each dotted key. Raises UserError if the file is
    missing, is not YAML, is not a mapping or has a key twice."""
    try:
        content = retried(path.read_bytes)
    except FileNotFoundError:
        others = sorted(file.name for file in path.parent.glob(f"*{path.suffix}"))
        raise UserError(f"{path}: no such file{hint(path.name, others, '')}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        value, lines = parse(content.decode("utf-8-sig"), texts)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; "
                        "save the file as UTF-8") from None
    except NotYaml as error:
        raise UserError("\n".join(f"{path}, line {line}: {message}"
                                  for line, message in error.faults)) from None
    if value is not None and not isinstance(value, dict):
        kinds: dict[type, str] = {list: "a list", str: "a string"}
        found = kinds.get(type(value), type(value).__name__)
        raise UserError(f"{path}, line 1: expected `key: value` lines, found {found}")
    return value or {}, lines


def parse(text: str, texts: Texts = nowhere, key: str = "") -> tuple[Any, dict[str, int]]:
    """Return the value of a YAML text and the line of each dotted key. key: the key that gets the
    value. Raises NotYaml, also if a mapping has a key twice."""
    lines: dict[str, int] = {}
    faults: list[tuple[int, str]] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _look_through(node, key, texts, lines, faults)
        value = loader.construct_document(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"the character {chr(error.character)!r} is not allowed in YAML"
        raise NotYaml((line, message)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYaml((mark.line + 1 if mark else 1, _problem(error))) from None
    except RecursionError:
        raise NotYaml((1, "is nested too deeply")) from None
    except (yaml.YAMLError, ValueError, LookupError) as error:  # `!!int x`
        raise NotYaml((1, f"a value does not fit its tag: {error}")) from None
    if faults:
        raise NotYaml(*faults)
    return value, lines


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not valid YAML"
    if r"'\t'" in problem:
        return "a tab where YAML needs spaces; replace it by spaces"
    return f"{error.context}, {problem}" if problem.startswith("but ") else problem


def _look_through(
    node: Any, key: str, texts: Texts, lines: dict[str, int], faults: list[tuple[int, str]]
) -> None:
    """Record each key's line, report duplicate keys and tag the values of string keys as such."""
    if isinstance(node, yaml.ScalarNode):
        kind = texts(key)
        if (kind and node.tag in PLAIN) or (kind == VERBATIM and node.tag == NULL):
            node.tag = f"{TAG}str"
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            inside = f"{key}[{place}]" if isinstance(item, yaml.MappingNode) else key
            _look_through(item, inside, texts, lines, faults)
    elif isinstance(node, yaml.MappingNode):
        for name, item in node.value:
            if isinstance(name, yaml.ScalarNode) and name.tag != f"{TAG}merge":
                name.tag = f"{TAG}str"
            below = f"{key}.{name.value}" if key else str(name.value)
            line = name.start_mark.line + 1
            if below in lines:
                faults.append((line, f"{below} appears twice (first on line {lines[below]})"))
            else:
                lines[below] = line
                _look_through(item, below, texts, lines, faults)


def to_text(value: Any, **layout: Any) -> str:
    """Return plain values as YAML that reads back as the same values, in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **layout)
