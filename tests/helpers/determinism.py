"""A lint for code that must do the same whenever it is run: it reads no clock, draws from seeds alone, and no order
comes out of a set, which differs from process to process for texts and from run to run for objects.

Types are told from annotations and from what is assigned, within one file; of attributes of other objects it is known
whether all classes that have one of that name declare it a set. What functions of other files return is not.

Functions that do not depend on the order of what they are given may be given a set. A key leaves ties to that order, so
`min`, `max` and `sorted` with one may not.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

CLOCKS = (
    "time.",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
)
RANDOM = ("uuid.", "secrets.", "os.urandom", "os.getrandom", "random.SystemRandom", "random.", "numpy.random.")
SEEDED = ("random.Random", "numpy.random.default_rng", "numpy.random.SeedSequence", "numpy.random.RandomState")
BY_SEED = ("numpy.random.Generator", "numpy.random.PCG64", "numpy.random.BitGenerator")  # made of what has a seed
IDENTITY = ("hash", "id")
SETS = ("set", "frozenset", "Set", "AbstractSet", "MutableSet", "FrozenSet")
MAPPINGS = ("dict", "Mapping", "MutableMapping", "defaultdict", "OrderedDict")
ORDER_FREE = ("any", "all", "sum", "len", "set", "frozenset", "bool", "isinstance", "type")
ORDER_FREE_WITHOUT_KEY = ("sorted", "min", "max")
ORDERED = ("list", "tuple", "iter", "enumerate", "zip", "map", "filter", "deque", "repr", "str", "dict")
MAKES_SET = ("union", "intersection", "difference", "symmetric_difference", "copy")
TAKES_ORDER = ("extend", "join", "fromkeys", "writelines", "extendleft")

SET = ast.Name("set")


class Problem(NamedTuple):
    """What is wrong in which line. `rule` is one of clock, random, identity, set."""

    rule: str
    line: int
    what: str


def problems(source: str, sets: Collection[str] = ()) -> list[Problem]:
    """All that the lint finds in a module, by line. `sets` are attributes that are sets, whatever has them."""
    lint = _Lint(ast.parse(source), sets)
    return sorted(lint.found, key=lambda problem: (problem.line, problem.rule, problem.what))


def set_attributes(sources: Iterable[str]) -> frozenset[str]:
    """The names of attributes that every class of these modules which declares them declares as sets."""
    sets, others = set[str](), set[str]()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            for name, kind in _declared(node):
                (sets if _name(kind) in SETS else others).add(name)
    return frozenset(sets - others)


def _declared(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
        yield node.target.attr, node.annotation
    elif isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                yield inner.target.id, inner.annotation
            elif isinstance(inner, ast.FunctionDef) and inner.returns is not None and _is_property(inner):
                yield inner.name, inner.returns


class _Lint(ast.NodeVisitor):
    def __init__(self, tree: ast.Module, sets: Collection[str]) -> None:
        self._sets = sets
        self.found: list[Problem] = []
        self._modules: dict[str, str] = {}  # local names of modules, and of what is imported from them
        self._attributes: dict[str, ast.expr] = {}  # of `self` in the class that is visited, by name
        self._returns: dict[str, ast.expr] = {}  # of functions and methods of this file
        self._scopes: list[dict[str, ast.expr | None]] = [{}]
        self._free: set[int] = set()  # ids of comprehensions whose order nobody sees
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                self._returns[node.name] = node.returns
        self.visit(tree)

    def _tell(self, rule: str, node: ast.AST, what: str) -> None:
        self.found.append(Problem(rule, getattr(node, "lineno", 0), what))

    # -- names

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            self._modules[name] = alias.name if alias.asname else name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if not node.level:
                self._modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _dotted(self, node: ast.expr) -> str:
        """`numpy.random.default_rng` of `np.random.default_rng`; empty for what no import has brought."""
        if isinstance(node, ast.Name):
            return "" if self._is_local(node.id) else self._modules.get(node.id, "")
        if isinstance(node, ast.Attribute):
            base = self._dotted(node.value)
            return f"{base}.{node.attr}" if base else ""
        return ""

    def _is_local(self, name: str) -> bool:
        return any(name in scope for scope in self._scopes)

    # -- scopes, and what is known of names

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._attributes = self._attributes, {}
        for inner in ast.walk(node):
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                self._attributes.setdefault(inner.target.id, inner.annotation)
            elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Attribute):
                self._attributes[inner.target.attr] = inner.annotation
            elif isinstance(inner, ast.Assign):
                for target in inner.targets:
                    if isinstance(target, ast.Attribute) and (kind := self._type(inner.value)) is not None:
                        self._attributes.setdefault(target.attr, kind)
            elif isinstance(inner, ast.FunctionDef) and inner.returns is not None and _is_property(inner):
                self._attributes[inner.name] = inner.returns
        self.generic_visit(node)
        self._attributes = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        self._scopes.append({one.arg: one.annotation for one in named})
        for starred in (arguments.vararg, arguments.kwarg):
            if starred is not None:
                self._scopes[-1][starred.arg] = None
        self.generic_visit(node)
        self._scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._scopes.append({one.arg: None for one in node.args.args})
        self.generic_visit(node)
        self._scopes.pop()

    def _bind(self, target: ast.expr, kind: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            self._scopes[-1][target.id] = kind
        elif isinstance(target, ast.Tuple | ast.List):
            kinds = _arguments(kind) if kind is not None and _name(kind) == "tuple" else []
            for at, inner in enumerate(target.elts):
                self._bind(inner, kinds[at] if at < len(kinds) else None)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._bind(node.target, node.annotation)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Tuple | ast.List):
                self._ordered(node.value, "an assignment to several names")
            self._bind(target, self._type(node.value))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self._bind(node.target, self._type(node.value))

    def _type(self, node: ast.expr) -> ast.expr | None:
        """The annotation that an expression would have, as far as this file says; of sets at least `set`."""
        match node:
            case ast.Set() | ast.SetComp():
                return SET
            case ast.Name(id=name):
                return next((scope[name] for scope in reversed(self._scopes) if name in scope), None)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return self._attributes.get(name) or (SET if name in self._sets else None)
            case ast.Attribute(attr=name):
                return SET if name in self._sets else None
            case ast.BinOp(left=left, op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor(), right=right):
                return SET if self._is_set(left) or self._is_set(right) or _is_view(left) or _is_view(right) else None
            case ast.IfExp(body=one, orelse=other) | ast.BoolOp(values=[one, other]):
                return self._type(one) or self._type(other)
            case ast.Subscript(value=value):
                return _element(self._type(value))
            case ast.Call():
                return self._type_of_call(node)
        return None

    def _type_of_call(self, node: ast.Call) -> ast.expr | None:
        function = node.func
        if isinstance(function, ast.Subscript):
            return function if _name(function) in (*SETS, *MAPPINGS) else None  # set[str]()
        if isinstance(function, ast.Name):
            return SET if function.id in ("set", "frozenset") else self._returns.get(function.id)
        if not isinstance(function, ast.Attribute):
            return None
        of = self._type(function.value)
        if of is not None and _name(of) in SETS:
            return SET if function.attr in MAKES_SET else None
        if of is not None and _name(of) in MAPPINGS:
            if function.attr in ("get", "pop", "setdefault"):
                return _element(of)
            if function.attr == "values":
                return _list_of(_element(of))
            if function.attr == "items":
                return _list_of(ast.Subscript(ast.Name("tuple"), ast.Tuple(_arguments(of))))
            return None
        if isinstance(function.value, ast.Name) and function.value.id in ("self", "cls"):
            return self._returns.get(function.attr)
        return None

    def _is_set(self, node: ast.expr) -> bool:
        kind = self._type(node)
        return kind is not None and _name(kind) in SETS

    # -- uses

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._check_name(node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self._check_name(node)
        if node.id in IDENTITY and isinstance(node.ctx, ast.Load) and not self._is_local(node.id):
            self._tell("identity", node, f"{node.id} differs from process to process")

    def _check_name(self, node: ast.Name | ast.Attribute) -> None:
        name = self._dotted(node)
        if not name or not isinstance(node.ctx, ast.Load):
            return
        if name.startswith(CLOCKS):
            self._tell("clock", node, f"{name} reads a clock")
        elif name.startswith(RANDOM) and not name.startswith((*SEEDED, *BY_SEED)) and name != "numpy.random":
            self._tell("random", node, f"{name} has no seed")

    def visit_Call(self, node: ast.Call) -> None:
        name = self._dotted(node.func)
        seeds = [*node.args, *(keyword.value for keyword in node.keywords)]
        if name in SEEDED and (not seeds or (isinstance(seeds[0], ast.Constant) and seeds[0].value is None)):
            self._tell("random", node, f"{name} is given no seed")
        self._check_order(node)
        self.generic_visit(node)

    def _check_order(self, node: ast.Call) -> None:
        function = node.func
        called = function.id if isinstance(function, ast.Name) else ""
        method = function.attr if isinstance(function, ast.Attribute) else ""
        keyed = any(keyword.arg == "key" for keyword in node.keywords)
        order_free = called in ORDER_FREE or (called in ORDER_FREE_WITHOUT_KEY and not keyed)
        if order_free or (isinstance(function, ast.Attribute) and self._is_set(function.value)):
            self._free |= {
                id(argument) for argument in node.args if isinstance(argument, ast.GeneratorExp | ast.ListComp)
            }
        elif called in (*ORDERED, *ORDER_FREE_WITHOUT_KEY) or method in TAKES_ORDER:
            for argument in node.args:
                self._ordered(
                    argument, f"{called or method}()" + (" with a key, whose ties it orders" if keyed else "")
                )
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                self._ordered(argument.value, "arguments")
        if isinstance(function, ast.Attribute) and method == "pop" and not node.args and self._is_set(function.value):
            self._tell("set", node, "pop() takes any element of a set")

    def _ordered(self, node: ast.expr, where: str) -> None:
        if self._is_set(node):
            self._tell("set", node, f"the order of a set goes into {where}")

    def visit_For(self, node: ast.For) -> None:
        self._ordered(node.iter, "a loop")
        self._bind(node.target, _iterated(self._type(node.iter)))
        self.generic_visit(node)

    def visit_YieldFrom(self, node: ast.YieldFrom) -> None:
        self._ordered(node.value, "a generator")
        self.generic_visit(node)

    def visit_List(self, node: ast.List | ast.Tuple) -> None:
        for one in node.elts:
            if isinstance(one, ast.Starred) and isinstance(node.ctx, ast.Load):
                self._ordered(one.value, "a list or tuple")
        self.generic_visit(node)

    visit_Tuple = visit_List

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        order_free = isinstance(node, ast.SetComp) or id(node) in self._free
        self._scopes.append({})
        for part in node.generators:
            if not order_free:
                self._ordered(part.iter, "a comprehension")
            self._bind(part.target, _iterated(self._type(part.iter)))
        self.generic_visit(node)
        self._scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


def _is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(one, ast.Name) and one.id in ("property", "cached_property") for one in node.decorator_list)


def _is_view(node: ast.expr) -> bool:
    """`table.keys()`, which makes sets of operators."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("keys", "items")


def _name(kind: ast.expr) -> str:
    """`dict` of `dict[str, int]`; of a union the first part that is no None."""
    match kind:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _name(value)
        case ast.BinOp(left=left, right=right):
            return _name(right) if isinstance(left, ast.Constant) else _name(left)
        case ast.Constant(value=str(text)):
            return _name(ast.parse(text, mode="eval").body)
    return ""


def _arguments(kind: ast.expr) -> list[ast.expr]:
    """`str` and `int` of `dict[str, int]`."""
    if isinstance(kind, ast.BinOp):
        return _arguments(kind.left)
    if not isinstance(kind, ast.Subscript):
        return []
    return list(kind.slice.elts) if isinstance(kind.slice, ast.Tuple) else [kind.slice]


def _element(kind: ast.expr | None) -> ast.expr | None:
    """What a container holds: of a mapping its values, which its subscripts are."""
    if kind is None:
        return None
    inside = _arguments(kind)
    at = 1 if _name(kind) in MAPPINGS else 0
    return inside[at] if len(inside) > at else None


def _iterated(kind: ast.expr | None) -> ast.expr | None:
    """What comes of a loop: of a mapping its keys."""
    inside = [] if kind is None else _arguments(kind)
    return inside[0] if inside else None


def _list_of(kind: ast.expr | None) -> ast.expr | None:
    return None if kind is None else ast.Subscript(ast.Name("list"), kind)
