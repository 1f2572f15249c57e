"""Conditions over hyperparameters (`rank * 2 <= alpha`, `target in ["qv", "mlp"]`): parsed once, checked, measured.

A small part of Python's expression grammar, evaluated node by node; nothing is ever handed to `eval`. Numbers are equal
if they differ by the rounding of binary arithmetic alone, so that 0.1 * 3 is 0.3. Which names a space file may use is
decided in `automl.space.load`.
"""

from __future__ import annotations

import ast
import math
import operator
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from automl.trial import Scalar

Kind = Literal["number", "text", "truth"]

MAX_LENGTH = 300
MAX_DEPTH = 24
UNDEFINED = sys.float_info.max
"""Violation of a condition that has no value (division by zero, overflow): as badly missed as can be."""

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda first, second: _floored(first, second),
    ast.Mod: lambda first, second: _remainder(first, second),
    ast.Pow: operator.pow,
}
_NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_FUNCTIONS: dict[str, tuple[int, Callable[[list[float]], float]]] = {
    "min": (2, min),
    "max": (2, max),
    "abs": (1, lambda values: abs(values[0])),
    "log2": (1, lambda values: math.log2(values[0])),
}
"""Function name -> (arguments it needs, what it does). `min` and `max` take more than two as well."""

_GRAMMAR = "comparisons, and, or, not, in [...], + - * / // % **, " + ", ".join(f"{name}()" for name in _FUNCTIONS)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A condition that a configuration must satisfy, and the names it reads."""

    expression: str
    names: frozenset[str]

    def violation(self, values: Mapping[str, Scalar]) -> float:
        """How much the condition is missed by: <= 0 satisfied, > 0 violated; always finite.

        A comparison of numbers gives their difference, of texts 0 or 1; `and` takes the worst part, `or` the best.
        Raises KeyError if `values` lacks one of `names`, ValueError if a value has a type the condition cannot use.
        """
        try:
            violation = _violation(_tree(self.expression), values)
        except (ZeroDivisionError, OverflowError):
            return UNDEFINED
        return max(-UNDEFINED, min(UNDEFINED, violation))

    def check_kinds(self, kinds: Mapping[str, Kind]) -> None:
        """Raise ValueError if the condition mixes kinds (text with numbers) or is not a condition at all."""
        kind = _kind(_tree(self.expression), kinds)
        if kind != "truth":
            raise ValueError(f"{self.expression!r} is a {kind}, not a condition; compare it, such as '... <= 64'")


def parse_constraint(text: str) -> Constraint:
    """Read a condition. Raises ValueError with a one-line message if it is not one."""
    tree = _tree(text)
    functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in functions}
    if not names:
        raise ValueError(f"{text!r} names no parameter, so it is always true or always false")
    return Constraint(text, frozenset(names))


def upper_limit(constraint: Constraint, name: str) -> float | None:
    """What `name` must not exceed, if that is all the constraint says, as `forgetting <= 0.05` does."""
    match _tree(constraint.expression):
        case ast.Compare(left=ast.Name(id=found), ops=[ast.Lt() | ast.LtE()], comparators=[bound]) if found == name:
            return _constant(bound)
        case ast.Compare(left=bound, ops=[ast.Gt() | ast.GtE()], comparators=[ast.Name(id=found)]) if found == name:
            return _constant(bound)
    return None


def _constant(node: ast.expr) -> float | None:
    is_constant = not any(isinstance(child, ast.Name) for child in ast.walk(node))
    return _number(_value(node, {})) if is_constant else None


@lru_cache(maxsize=256)
def _tree(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"{text[:20] + '...'!r} is {len(text)} characters long; at most {MAX_LENGTH} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as SyntaxWarning for '1or x', which is legal
            tree: ast.expr = _Dotted().visit(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is not a condition; write one such as 'trainable_params <= 500_000'") from None
    _check_grammar(tree, text)
    return tree


class _Dotted(ast.NodeTransformer):
    """Makes one name of `vera.r`, a field of a tuner of PEFT."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        is_field = isinstance(node.value, ast.Name)
        return ast.Name(ast.unparse(node), node.ctx) if is_field else self.generic_visit(node)


def _check_grammar(tree: ast.expr, text: str) -> None:
    """Refuse every node outside the grammar, and nesting beyond MAX_DEPTH."""
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        for node in level:
            problem = _refusal(node)
            if problem:
                raise ValueError(f"{problem} in {text!r}; known are {_GRAMMAR}")
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"{text!r} is nested more than {MAX_DEPTH} levels deep")


def _children(node: ast.AST) -> list[ast.AST]:
    skipped = (ast.operator, ast.cmpop, ast.boolop, ast.unaryop, ast.expr_context)
    children = [child for child in ast.iter_child_nodes(node) if not isinstance(child, skipped)]
    return children[1:] if isinstance(node, ast.Call) else children


def _refusal(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=value):
            fine = isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
            return "" if fine else f"{value!r} cannot be used"
        case ast.Name() | ast.BoolOp() | ast.Tuple() | ast.List() | ast.UnaryOp():
            return "'~' cannot be used" if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert) else ""
        case ast.BinOp(op=op):
            return "" if type(op) in _ARITHMETIC else f"operator {type(op).__name__} cannot be used"
        case ast.Compare(ops=ops):
            return "" if all(type(op) in _NEGATED for op in ops) else "'is' cannot be used"
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            needed = _FUNCTIONS[name][0]
            fine = len(args) == needed or (needed == 2 and len(args) > 2)
            return "" if fine else f"{name} takes {needed} arguments, not {len(args)}"
        case ast.Call():
            return f"{ast.unparse(node.func)}(...) cannot be used"
    return f"{type(node).__name__} cannot be used"


def _kind(node: ast.AST, kinds: Mapping[str, Kind]) -> Kind:
    """Kind of an expression; raises ValueError where operands do not fit together."""
    match node:
        case ast.Constant(value=value):
            return "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
        case ast.Name(id=name):
            return kinds[name]
        case ast.BoolOp(values=operands):
            return _expect("truth", operands, kinds)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _expect("truth", [operand], kinds)
        case ast.UnaryOp(operand=operand):
            return _expect("number", [operand], kinds)
        case ast.BinOp(left=left, right=right):
            return _expect("number", [left, right], kinds)
        case ast.Call(args=args):
            return _expect("number", args, kinds)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            for op, first, second in zip(ops, [left, *rights], rights, strict=False):
                _check_comparison(op, first, second, kinds)
            return "truth"
    raise ValueError(f"{ast.unparse(node)} can only stand to the right of 'in'")


def _expect(kind: Kind, nodes: list[ast.expr], kinds: Mapping[str, Kind]) -> Kind:
    for node in nodes:
        found = _kind(node, kinds)
        if found != kind:
            raise ValueError(f"{ast.unparse(node)} is a {found} where a {kind} is needed")
    return kind


def _check_comparison(op: ast.cmpop, left: ast.expr, right: ast.expr, kinds: Mapping[str, Kind]) -> None:
    if isinstance(op, (ast.In, ast.NotIn)):
        if not isinstance(right, (ast.List, ast.Tuple)) or not right.elts:
            raise ValueError(f"write a list to the right of 'in', such as [4, 8], not {ast.unparse(right)}")
        _expect(_kind(left, kinds), right.elts, kinds)
    elif isinstance(op, (ast.Eq, ast.NotEq)):
        _expect(_kind(left, kinds), [right], kinds)
    else:
        _expect("number", [left, right], kinds)


def _violation(node: ast.AST, values: Mapping[str, Scalar], *, negate: bool = False) -> float:
    match node:
        case ast.BoolOp(op=op, values=operands):
            parts = [_violation(operand, values, negate=negate) for operand in operands]
            return max(parts) if isinstance(op, ast.And) != negate else min(parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _violation(operand, values, negate=not negate)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            pairs = zip(ops, [left, *rights], rights, strict=False)
            parts = [_missed_by(op, first, second, values, negate=negate) for op, first, second in pairs]
            return min(parts) if negate else max(parts)
    return 0.0 if bool(_value(node, values)) != negate else 1.0


def _missed_by(op: ast.cmpop, left: ast.expr, right: ast.expr, values: Mapping[str, Scalar], *, negate: bool) -> float:
    kind = _NEGATED[type(op)] if negate else type(op)
    first = _value(left, values)
    if kind in (ast.In, ast.NotIn):
        found = any(_equal(first, _value(item, values)) for item in getattr(right, "elts", ()))
        return 0.0 if found == (kind is ast.In) else 1.0
    second = _value(right, values)
    if kind is ast.Eq:
        distance = abs(_distance(first, second))
        return UNDEFINED if math.isnan(distance) else distance
    if kind is ast.NotEq:
        return 1.0 if _equal(first, second) else 0.0
    difference = _distance(first, second)
    if kind in (ast.Gt, ast.GtE):
        difference = -difference
    is_strict = kind in (ast.Lt, ast.Gt)
    if math.isnan(difference):
        return UNDEFINED
    return math.ulp(_number(first)) if is_strict and difference == 0 else difference


def _equal(first: Scalar, second: Scalar) -> bool:
    return _distance(first, second) == 0


def _distance(first: Scalar, second: Scalar) -> float:
    if isinstance(first, str) or isinstance(second, str):
        return 0.0 if first == second else 1.0
    one, other = float(first), float(second)
    return 0.0 if math.isfinite(one) and _is_near(one, other) else one - other


def _is_near(one: float, other: float) -> bool:
    """Whether two numbers differ by no more than a few roundings (of whole numbers, below 1e13, by none)."""
    return math.isclose(one, other, rel_tol=1e-13, abs_tol=1e-15)


def _floored(first: float, second: float) -> float:
    """first // second, but 3 for 0.3 // 0.1, of which binary arithmetic makes 2."""
    quotient = first / second
    if not math.isfinite(quotient):
        return math.nan
    return float(round(quotient) if _is_near(quotient, round(quotient)) else math.floor(quotient))


def _remainder(first: float, second: float) -> float:
    """first % second, but 0 for 0.3 % 0.1, of which binary arithmetic makes almost 0.1."""
    quotient = first / second
    if not math.isfinite(quotient):
        return math.nan
    return 0.0 if _is_near(quotient, round(quotient)) else first % second


def _value(node: ast.AST, values: Mapping[str, Scalar]) -> Scalar:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            result = _ARITHMETIC[type(op)](_number(_value(left, values)), _number(_value(right, values)))
            return _real(result)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(_value(operand, values))
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(_value(operand, values))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _applied(name, [_number(_value(argument, values)) for argument in args])
        case ast.Compare() | ast.BoolOp() | ast.UnaryOp():
            return _violation(node, values) <= 0
    raise ValueError(f"{ast.unparse(node)} has no value of its own")


def _applied(name: str, arguments: list[float]) -> float:
    try:
        return _FUNCTIONS[name][1](arguments)
    except ValueError:  # log2 of a number <= 0
        return math.nan


def _real(result: object) -> float:
    return result if isinstance(result, float) else math.nan  # a complex root, such as (-8.0) ** 0.5


def _number(value: Scalar) -> float:
    """Every operand is a float, so that no power of whole numbers can grow without end."""
    if isinstance(value, str):
        raise ValueError(f"{value!r} is a text where a number is needed")
    return float(value)
