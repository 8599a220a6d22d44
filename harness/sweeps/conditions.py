"""Conditions between keys, as users write them: `train.weight > 0 and model.kind == "large"`.

Python's parser reads them; a small part of the language is evaluated here, without calls and with
no names but keys.
"""

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

LONGEST, DEEPEST = 1000, 100
"""Characters of a condition, and parts within one another: of more, Python's parser may fail."""


def _product(a: Any, b: Any) -> Any:
    """Return a product of numbers; of a string and a number it could fill the memory."""
    if not isinstance(a, int | float) or not isinstance(b, int | float):
        raise TypeError
    return a * b


ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: _product, ast.Div: operator.truediv,
}
COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}
WORDS = {"null": None, "true": True, "false": False}
"""YAML's names for what Python writes with a capital."""


@dataclass(frozen=True)
class Condition:
    """A valid condition."""

    text: str
    where: str
    names: tuple[str, ...]
    """The keys that it names."""

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Return whether it is true of the values; False if it cannot be computed (null > 1)."""
        try:
            return bool(_value(_parsed(self.text), value_of))
        except (TypeError, ArithmeticError):
            return False


@lru_cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def read_condition(text: Any, where: str, faults: list[str]) -> Condition | None:
    """Return a condition; None, with a fault, for an invalid one."""
    try:
        if not isinstance(text, str):
            raise ValueError("not a string")
        if len(text) > LONGEST:
            raise ValueError(f"longer than {LONGEST} characters")
        names = tuple(dict.fromkeys(_names(_parsed(text))))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        faults.append(f"{where}: {text!r} is not a condition ({message}); write it as "
                      "first.weight + second.weight <= 1")
        return None
    if not names:
        faults.append(f"{where}: {text!r} names no key")
        return None
    return Condition(text, where, names)


def compared(condition: Condition) -> Iterator[tuple[str, Any]]:
    """Yield each key with the strings and numbers that it is compared with."""
    for node in ast.walk(_parsed(condition.text)):
        if not isinstance(node, ast.Compare):
            continue
        for op, left, right in zip(node.ops, [node.left, *node.comparators], node.comparators,
                                   strict=False):
            is_in = isinstance(op, ast.In | ast.NotIn)
            pairs = [(left, one) for one in getattr(right, "elts", [])] if is_in else [
                (left, right), (right, left)]
            yield from ((key, value.value) for one, value in pairs
                        if isinstance(value, ast.Constant) and value.value is not None
                        and (key := _key(one)) is not None and key not in WORDS)


def _names(node: ast.expr, above: int = 0) -> Iterator[str]:
    """Yield the keys of an expression. Raises ValueError for parts that are not allowed."""
    if above > DEEPEST:
        raise ValueError("is nested too deeply")
    key = _key(node)
    if key is not None:
        if key not in WORDS:
            yield key
        return
    allowed = (ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Constant, ast.List, ast.Tuple)
    operators = {type(one) for one in (getattr(node, "op", None), *getattr(node, "ops", ()))}
    known = {*ARITHMETIC, *COMPARISONS, ast.And, ast.Or, ast.Not, ast.USub, type(None)}
    strange = isinstance(node, ast.Constant) and not isinstance(
        node.value, str | int | float | None
    )
    if not isinstance(node, allowed) or strange or operators - known:
        raise ValueError(f"{ast.unparse(node)} cannot be used here")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _names(child, above + 1)


def _key(node: ast.expr) -> str | None:
    """Return the dotted key that a chain of names stands for."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _key(node.value)
        return f"{before}.{node.attr}" if before else None
    return None


def _value(node: ast.expr, value_of: Callable[[str], Any]) -> Any:
    key = _key(node)
    if key is not None:
        return WORDS[key] if key in WORDS else value_of(key)
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [_value(item, value_of) for item in node.elts]
        case ast.BoolOp():
            values = (bool(_value(item, value_of)) for item in node.values)
            return all(values) if isinstance(node.op, ast.And) else any(values)
        case ast.UnaryOp():
            value = _value(node.operand, value_of)
            return not value if isinstance(node.op, ast.Not) else -value
        case ast.BinOp():
            sides = _value(node.left, value_of), _value(node.right, value_of)
            return ARITHMETIC[type(node.op)](*sides)
        case ast.Compare():
            values_of = [_value(item, value_of) for item in (node.left, *node.comparators)]
            pairs = zip(node.ops, values_of, values_of[1:], strict=False)
            return all(COMPARISONS[type(op)](a, b) for op, a, b in pairs)
    raise AssertionError(ast.dump(node))  # `_names` refuses all others
