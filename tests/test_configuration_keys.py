"""Every key of the configuration is read by some module: keys without effect would mislead."""

import ast
import dataclasses
import typing
from collections.abc import Iterator

from harness.config.fields import field_types
from svll.config import Config
from tests.test_house_rules import PACKAGES, everything, trees


class Reads(ast.NodeVisitor):
    """Which fields of the configuration's dataclasses a module reads.

    Follows annotations of parameters and fields, `build(Config, ...)` and assignments, so that
    `config.batch` counts for the section that `config` is.
    """

    def __init__(self, schema: type, found: set[tuple[str, str]]) -> None:
        self.sections: dict[str, dict[str, str | None]] = {}
        self._add(schema)
        self.root, self.found = schema.__name__, found
        self.types: dict[str, str] = {}

    def _add(self, schema: type) -> None:
        hints = typing.get_type_hints(schema)
        below = {n: k for n, k in hints.items() if dataclasses.is_dataclass(k)}
        self.sections[schema.__name__] = {
            name: below[name].__name__ if name in below else None for name in hints
        }
        for section in below.values():
            self._add(section)

    def learn_classes(self, tree: ast.Module) -> None:
        """Know classes that hold a section, as in `config: Config`, so that it is found in them."""
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                held = {
                    ast.unparse(item.target): self.named(item.annotation)
                    for item in node.body if isinstance(item, ast.AnnAssign)
                }
                if any(held.values()):
                    self.sections.setdefault(node.name, held)

    def named(self, annotation: ast.AST | None) -> str | None:
        # harness cannot name the class and describes it by a protocol
        name = {"EngineSettings": "EngineConfig"}.get(
            word := ast.unparse(annotation).split(".")[-1] if annotation else "", word
        )
        return name if name in self.sections else None

    def kind(self, node: ast.AST) -> str | None:
        """The section that an expression is, if any."""
        if isinstance(node, ast.Name):
            return self.types.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.kind(node.value)
            if owner:
                return self.sections[owner].get(node.attr)
            return self.types.get(ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "build" and node.args:
            return self.named(node.args[0])
        return None

    def learn(self, target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=True):
                self.learn(one, other)
        elif isinstance(target, ast.Name | ast.Attribute):
            self.types.pop(ast.unparse(target), None)
            if kind := self.kind(value):
                self.types[ast.unparse(target)] = kind

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.learn(target, node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        # what a constructor learns of `self` holds for the other methods, a local name does not
        before = dict(self.types)
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            self.types.pop(argument.arg, None)
            if kind := self.named(argument.annotation):
                self.types[argument.arg] = kind
        self.generic_visit(node)
        own = {name: k for name, k in self.types.items() if name.startswith("self.")}
        self.types = before | own

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before = dict(self.types)
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and (kind := self.named(item.annotation)):
                self.types[f"self.{ast.unparse(item.target)}"] = kind
        self.generic_visit(node)
        self.types = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and (owner := self.kind(node.value)):
            self.found.add((owner, node.attr))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """`settings["run"]["experiment"]`, where only the written mapping is at hand."""
        self.generic_visit(node)
        parts = [ast.unparse(node.slice).strip("'\"")]
        if isinstance(node.value, ast.Subscript):
            section = self.sections[self.root].get(ast.unparse(node.value.slice).strip("'\""))
            if section:
                self.found.add((section, parts[0]))

    def visit_Call(self, node: ast.Call) -> None:
        """`load_function(run, "experiment")`, which imports what `run.experiment` names."""
        self.generic_visit(node)
        # `World(**asdict(config))` hands on every key, and refuses one that it does not know
        handed_on = [one.value for one in node.keywords if one.arg is None]
        for call in (one for one in handed_on if isinstance(one, ast.Call)):
            if ast.unparse(call.func) == "asdict" and (owner := self.kind(call.args[0])):
                self.found |= {(owner, key) for key in self.sections[owner]}
        section = self.sections[self.root].get("run")
        if section and ast.unparse(node.func) == "load_function":
            self.found.add((section, ast.unparse(node.args[1]).strip("'\"")))


def unread(schema: type, modules: Iterator[ast.Module]) -> set[str]:
    """The dotted keys of a configuration that no module reads."""
    found: set[tuple[str, str]] = set()
    reads, parsed_modules = Reads(schema, found), list(modules)
    for tree in parsed_modules:
        reads.learn_classes(tree)
    for tree in parsed_modules:
        reads.types = {}
        reads.visit(tree)
    sections = reads.sections
    missing = set()
    for key in field_types(schema):
        owner = schema.__name__
        *path, last = key.split(".")
        for part in path:
            owner = sections[owner][part] or ""
        if (owner, last) not in found:
            missing.add(key)
    return missing


def test_every_key_of_the_configuration_is_read() -> None:
    modules = (t for name, t in trees(*everything(*PACKAGES)) if name != "svll/config.py")
    assert unread(Config, modules) == set()


def test_a_key_that_nobody_reads_is_found() -> None:
    @dataclasses.dataclass
    class Inner:
        used: int = 0
        spare: int = 0

    @dataclasses.dataclass
    class Outer:
        inner: Inner = dataclasses.field(default_factory=Inner)
        other: Inner = dataclasses.field(default_factory=Inner)
        spare: int = 0

    text = """
class Part:
    def __init__(self, given: Inner) -> None:
        given, self.given = 3, given
    def act(self) -> int:
        return self.given.used
def start(config: Outer, thing) -> int:
    inner = config.inner
    thing.spare
    config.spare = 1
    return inner.used
def later(inner) -> int:
    return inner.spare
"""
    assert unread(Outer, iter([ast.parse(text)])) == {"inner.spare", "other.spare", "spare"}
    more = """
class Holder:
    held: Outer
    other: int
def later(holder: Holder) -> int:
    return holder.held.inner.spare + holder.held.spare
"""
    assert unread(Outer, iter([ast.parse(text), ast.parse(more)])) == set()
