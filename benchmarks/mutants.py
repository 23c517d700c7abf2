"""Small wrong changes of a module, one at a time, made on its syntax tree.

Left alone: docstrings, annotations, decorators, imports, assertions, what a ``raise`` says, and
strings that select nothing.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
_OTHER_CALLS = {
    "min": "max",
    "amin": "amax",
    "clamp_min": "clamp_max",
    "any": "all",
    "floor": "ceil",
    "floor_": "ceil_",
}
_OTHER_CALLS |= {other: name for name, other in _OTHER_CALLS.items()}
_PASSED_ANYWAY = {"device", "strict"}  # keywords: one device in the tests, and a check of ours
_NUMBERS = {"float", "int", "Tensor"}  # what a function returns if its value can be negated
_LONGEST = 70  # letters of a change that is printed
_LEFT_ALONE = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)


class Mutant(NamedTuple):
    """One wrong change of one file."""

    file: str
    node: int
    """The place of what is changed in the order of ``ast.walk``."""
    choice: int
    """Which of the changes of that node."""
    line: int
    last_line: int
    before: str
    after: str

    def __str__(self) -> str:
        """Return the place and the change, for people."""
        before, after = _differing(self.before, self.after)
        return f"{self.file}:{self.line}: {before}  ->  {after}"


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Return all mutants of a module.

    Args:
        file: its name, for the mutants.
        source: its text.
    """
    found = []
    for number, node, changes in _changeable(ast.parse(source)):
        for choice, changed in enumerate(changes):
            words = ast.unparse(node), ast.unparse(changed)
            found.append(Mutant(file, number, choice, node.lineno, node.end_lineno, *words))
    return found


def mutated(mutant: Mutant, source: str) -> ast.Module:
    """Return the syntax tree of the module with one change in it.

    Args:
        mutant: of :func:`mutants_of`.
        source: the text that it was made from.
    """
    tree = ast.parse(source)
    for number, node, changes in _changeable(tree):
        if number == mutant.node:
            _put(tree, node, changes[mutant.choice])
            break
    return ast.fix_missing_locations(tree)


def _changeable(tree: ast.Module) -> Iterator[tuple[int, Any, list[Any]]]:
    """Yield number, node and changes of every node that has any."""
    skipped, returned = _skipped(tree), _returned(tree)
    for number, node in enumerate(ast.walk(tree)):
        if node in skipped:
            continue
        if isinstance(node, ast.Return):
            changes = list(_return(node, returned[node]))
        else:
            changes = list(_CHANGES.get(type(node), _none)(node))
        if changes:
            yield number, node, changes


def _skipped(tree: ast.Module) -> set[ast.AST]:
    roots: list[Any] = []
    selecting: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, _LEFT_ALONE) or getattr(node, "arg", "") in _PASSED_ANYWAY:
            roots.append(node)
        roots += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        roots += getattr(node, "decorator_list", [])
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            roots.append(node)
        selecting.update(_selecting(node))
    strings = {n for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) is str}
    below = {below for root in roots if root is not None for below in ast.walk(root)}
    return below | (strings - selecting)


def _selecting(node: Any) -> Iterator[ast.AST]:
    """Yield the parts of a node where a string selects what is done, or names what is returned."""
    if isinstance(node, ast.Compare):
        for part in (node.left, *node.comparators):
            yield part
            yield from getattr(part, "elts", [])
    elif isinstance(node, ast.Dict):
        yield from (key for key in node.keys if key is not None)
    elif isinstance(node, ast.keyword):
        yield node.value
    elif isinstance(node, ast.arguments):
        yield from (default for default in [*node.defaults, *node.kw_defaults] if default)


def _returned(tree: ast.Module) -> dict[ast.AST, str]:
    """Return what the function of each ``return`` is said to return."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        below: ast.unparse(function.returns) if function.returns else ""
        for function in functions
        for below in ast.walk(function)
        if isinstance(below, ast.Return)
    }


def _changed(node: Any, **fields: Any) -> Any:
    """Return a copy of a node with other fields."""
    made = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _compare(node: ast.Compare) -> Iterator[ast.AST]:
    for place, operator in enumerate(node.ops):
        for other in _COMPARISONS[type(operator)]:
            yield _changed(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])


def _arithmetic(node: ast.BinOp | ast.AugAssign) -> Iterator[ast.AST]:
    other = _ARITHMETIC.get(type(node.op))
    if other is not None:
        yield _changed(node, op=other())


def _boolean(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _unary(node: ast.UnaryOp) -> Iterator[ast.AST]:
    if isinstance(node.op, ast.USub | ast.Not):
        yield copy.deepcopy(node.operand)


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(2 * value or 1.0)
    elif isinstance(value, str):
        yield ast.Constant(value + "?")


def _branch(node: ast.If | ast.IfExp) -> Iterator[ast.AST]:
    for value in (True, False):
        yield _changed(node, test=ast.Constant(value))


def _loop(node: ast.While) -> Iterator[ast.AST]:
    yield _changed(node, test=ast.Constant(False))


def _statement(node: ast.Expr) -> Iterator[ast.AST]:
    if isinstance(node.value, ast.Call):
        yield ast.Pass()


def _assignment(node: ast.Assign) -> Iterator[ast.AST]:
    if isinstance(node.targets[0], ast.Subscript):
        yield ast.Pass()


def _continue(node: ast.Continue) -> Iterator[ast.AST]:
    yield ast.Break()


def _return(node: ast.Return, kind: str) -> Iterator[ast.AST]:
    if node.value is None or ast.unparse(node.value) == "None" or kind == "bool":
        return  # None is as good as False; the value of a truth has mutants of its own
    yield ast.Return(ast.Constant(None))
    if kind in _NUMBERS:
        yield ast.Return(ast.UnaryOp(ast.USub(), copy.deepcopy(node.value)))


def _call(node: ast.Call) -> Iterator[ast.AST]:
    called: Any = node.func
    name = getattr(called, "attr", getattr(called, "id", ""))
    if name in _OTHER_CALLS:
        field = "attr" if isinstance(called, ast.Attribute) else "id"
        yield _changed(node, func=_changed(called, **{field: _OTHER_CALLS[name]}))
    for place, keyword in enumerate(node.keywords):
        if keyword.arg not in _PASSED_ANYWAY:
            yield _changed(node, keywords=node.keywords[:place] + node.keywords[place + 1 :])
    if isinstance(called, ast.Attribute) and _is_object(called.value):
        yield copy.deepcopy(called.value)


def _is_object(node: ast.AST) -> bool:
    """Return whether a method is called on an expression or a local, not on a module or self."""
    words = ast.unparse(node)
    return words.split(".")[0] not in ("torch", "math", "np", "self", "super()", "functools")


def _none(node: ast.AST) -> Iterator[ast.AST]:
    return iter(())


_CHANGES: dict[type[ast.AST], Callable[[Any], Iterator[ast.AST]]] = {
    ast.Compare: _compare,
    ast.BinOp: _arithmetic,
    ast.AugAssign: _arithmetic,
    ast.BoolOp: _boolean,
    ast.UnaryOp: _unary,
    ast.Constant: _constant,
    ast.If: _branch,
    ast.IfExp: _branch,
    ast.While: _loop,
    ast.Expr: _statement,
    ast.Assign: _assignment,
    ast.Continue: _continue,
    ast.Call: _call,
}


def _put(tree: ast.Module, old: ast.AST, new: ast.AST) -> None:
    """Put a node in the place of another one."""
    ast.copy_location(new, old)
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                value[:] = [new if item is old else item for item in value]


def _differing(before: str, after: str, around: int = 24) -> tuple[str, str]:
    """Return both texts on a line, without most of what they have in common."""
    before, after = " ".join(before.split()), " ".join(after.split())
    start = _num_common(before, after)
    end = _num_common(before[start:][::-1], after[start:][::-1])
    cut = max(0, start - around)
    return _cut(before, cut, end - around), _cut(after, cut, end - around)


def _num_common(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _cut(text: str, start: int, end: int) -> str:
    """Return a text without the first and the last letters, few of them kept."""
    end = max(0, end)
    middle = text[start : len(text) - end]
    if len(middle) > _LONGEST:
        middle = middle[: _LONGEST - 3] + "..."
    return ("..." if start else "") + middle + ("..." if end else "")
