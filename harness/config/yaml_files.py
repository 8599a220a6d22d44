"""Reading and writing of YAML, in files and on command lines.

Plain values are those of YAML 1.2: 1e-4 is a number; yes, on, 12:30 and 2024-01-01 are strings.
An integer with a leading zero is a string too: YAML 1.1 reads 010 as 8, and an account may be
0123. Keys are strings, and so is each value of a string key, whatever it looks like.
"""

import copy
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
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
MERGE = f"{TAG}merge"
KNOWN_TAGS = (None, *(f"{TAG}{kind}" for kind in ("null", "str", "seq", "map")))
"""Tags whose values PyYAML makes; None: the error for tags that are not known here."""
LARGEST = 1_000_000
"""Bytes of a file: a configuration has fewer, and PyYAML reads this many in ten seconds."""
MOST_COPIES = 10_000
"""Values that aliases may stand for, all together: nine lines of aliases could be a billion."""


class NotYaml(ValueError):
    """A text is not YAML; `faults` are (line, message)."""

    def __init__(self, *faults: tuple[int, str]) -> None:
        super().__init__("; ".join(message for _, message in faults))
        self.faults = faults


class _Loader(yaml.SafeLoader):
    """A loader that copies an alias's node, as a string key reads it differently."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in KNOWN_TAGS}  # noqa: RUF012
    copies = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if not is_alias or node is None or node.end_mark is None:  # None: an alias in itself
            return node
        self.copies += sum(1 for _ in islice(_nodes(node), MOST_COPIES + 1))
        if self.copies > MOST_COPIES:
            raise yaml.composer.ComposerError(
                None, None, f"aliases stand for more than {MOST_COPIES} values", mark)
        return copy.deepcopy(node)

    def flatten_mapping(self, node: Any) -> None:
        """Put what `<<` merges before the mapping's own keys, which win, as the earlier ones of a
        list do (in PyYAML 6.0.4 the later ones)."""
        merged: list[Any] = []
        for item in [item for name, item in node.value if name.tag == MERGE]:
            for one in reversed(item.value) if isinstance(item, yaml.SequenceNode) else [item]:
                if not isinstance(one, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, "<<: expected a mapping, or a list of mappings", one.start_mark)
                self.flatten_mapping(one)
                merged += one.value
        node.value = merged + [pair for pair in node.value if pair[0].tag != MERGE]

    def construct_plain(self, node: Any) -> Any:
        """Return the value of a bool, an int or a float. Raises an error for a text that only YAML
        1.1 reads as one, such as `!!int 010`, and for a number that Python cannot print."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(TAG)
        kinds = ("int", "float") if kind == "float" else (kind,)
        try:
            if not any(re.fullmatch(SCALARS[one][0], text) for one in kinds):
                raise ValueError
            if kind == "bool":
                return text.lower() == "true"
            number = re.sub(r"\.(?=[in])", "", text.lower())  # .inf, .nan
            value = int(text, 0) if kind == "int" else float(number)
            str(value)
        except ValueError:
            raise yaml.constructor.ConstructorError(
                None, None, f"{text!r} does not fit its tag: {kind}", node.start_mark) from None
        return value


def _nodes(node: Any) -> Iterator[Any]:
    """Yield a node and all below it."""
    yield node
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        for one in item if isinstance(item, tuple) else (item,):
            yield from _nodes(one)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes each string that YAML 1.1 or 1.2 would not read as a string."""


for _kind, (_pattern, _first) in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)
for _tag in PLAIN:
    _Loader.add_constructor(_tag, _Loader.construct_plain)


def nowhere(key: str) -> bool:
    """Return False: no key holds strings only."""
    return False


def read_yaml(path: Path, texts: Texts = nowhere) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a YAML mapping and the line of each dotted key. Raises UserError if the file is
    missing, is not YAML, is not a mapping or has a key twice."""
    try:
        content = retried(partial(_read, path))
    except FileNotFoundError:
        others = sorted(file.name for file in path.parent.glob(f"*{path.suffix}"))
        raise UserError(f"{path}: no such file{hint(path.name, others, '')}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise UserError(f"{path}: is no configuration: larger than {LARGEST} bytes")
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


def has_keys(path: Path) -> bool:
    """Return whether a file is YAML that begins with a mapping, not an empty one: 25 times as fast
    as `read_yaml`, as values and duplicate keys are not looked at. Raises OSError."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may be built without libyaml
    try:
        events = list(yaml.parse(_read(path), Loader=loader))
    except (yaml.YAMLError, ValueError):
        return False
    return [type(one) for one in events[2:4]] == [yaml.MappingStartEvent, yaml.ScalarEvent]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


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
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # an escape of no character
        raise NotYaml((1, f"cannot be read: {error}")) from None
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
        faults.extend(_halves(node))
        kind = texts(key)
        if (kind and node.tag in PLAIN) or (kind == VERBATIM and node.tag == NULL):
            node.tag = f"{TAG}str"
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            inside = f"{key}[{place}]" if isinstance(item, yaml.MappingNode) else key
            _look_through(item, inside, texts, lines, faults)
    elif isinstance(node, yaml.MappingNode):
        for name, item in node.value:
            if isinstance(name, yaml.ScalarNode) and name.tag != MERGE:
                name.tag = f"{TAG}str"
            below = f"{key}.{name.value}" if key else str(name.value)
            line = name.start_mark.line + 1
            if halves := _halves(name):
                faults.extend(halves)
                continue
            if below in lines:
                faults.append((line, f"{below} appears twice (first on line {lines[below]})"))
                continue
            lines[below] = line
            if name.tag == MERGE:  # what is merged has this mapping's keys
                for one in item.value if isinstance(item, yaml.SequenceNode) else [item]:
                    _look_through(one, key, texts, {}, faults)
            else:
                _look_through(item, below, texts, lines, faults)


def _halves(node: Any) -> list[tuple[int, str]]:
    """Return the fault of a scalar with half of a character, which cannot be printed."""
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    return [(node.start_mark.line + 1, f"{lone!r} is half of a character; write the whole one")
            for lone in re.findall(r"[\ud800-\udc7f\udd00-\udfff]", text)[:1]]


def to_text(value: Any, **layout: Any) -> str:
    """Return plain values as YAML that reads back as the same values, in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **layout)
