"""Sizes of dims that are not known yet: sums of symbols, and what is known about them.

A dim is an int, a :class:`Sum` such as ``past + sequence``, or ``None`` where nothing can be said. What an operator
demands of its inputs is told to :class:`Sizes`; a symbol that must have one value is pinned, one that must be a sum of
others is replaced by it, the rest is kept to be checked on a choice of values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt, prod


@dataclass(frozen=True)
class Sum:
    """``constant + Σ factor · symbol``, with at least one symbol and no factor of 0; symbols are in order."""

    constant: int
    terms: tuple[tuple[str, int], ...]


Dim = int | Sum | None


def symbol(name: str) -> Sum:
    """Returns the symbol *name* as a dim."""
    return Sum(0, ((name, 1),))


def _sum(constant: int, terms: Mapping[str, int]) -> int | Sum:
    kept = tuple(sorted((name, factor) for name, factor in terms.items() if factor))
    return Sum(constant, kept) if kept else constant


def scaled(a: Dim, factor: int) -> Dim:
    """Returns a · factor."""
    if a is None or isinstance(a, int):
        return None if a is None else a * factor
    return _sum(a.constant * factor, {name: f * factor for name, f in a.terms})


def plus(a: Dim, b: Dim, factor: int = 1) -> Dim:
    """Returns a + factor · b."""
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a + factor * b
    left, right = (Sum(x, ()) if isinstance(x, int) else x for x in (a, b))
    terms = dict(left.terms)
    for name, f in right.terms:
        terms[name] = terms.get(name, 0) + factor * f
    return _sum(left.constant + factor * right.constant, terms)


def total(dims: Iterable[Dim]) -> Dim:
    """Returns the sum of dims."""
    result: Dim = 0
    for dim in dims:
        result = plus(result, dim)
    return result


def symbols_of(dim: Dim) -> tuple[str, ...]:
    """Returns the names of the symbols in a dim."""
    return tuple(name for name, _ in dim.terms) if isinstance(dim, Sum) else ()


def exact_quotient(a: Dim, divisor: int) -> Dim:
    """Returns a / divisor where that is a sum with whole factors, else ``None``."""
    if a is None or divisor == 0:
        return None
    if isinstance(a, int):
        return a // divisor if a % divisor == 0 else None
    if a.constant % divisor or any(f % divisor for _, f in a.terms):
        return None
    return Sum(a.constant // divisor, tuple((name, f // divisor) for name, f in a.terms))


@dataclass(frozen=True)
class Window:
    """Size of what a window slides over: ``(of + margin) // stride + 1``, or a floor division (*more* is 0)."""

    of: Sum
    margin: int
    stride: int
    more: int = 1


@dataclass(frozen=True)
class Product:
    """The product of several sums."""

    of: tuple[Sum, ...]


class Sizes:
    """Symbols, what they are equal to, and what has to hold of them.

    Attributes:
        order: the symbols that stand for a size of an input, in the order of the inputs.
        past: those that count what a cache holds.
        batch: those that an operator takes for the rows of a batch.
        limits: sums that may not exceed a number, and the number.
    """

    def __init__(self) -> None:
        self.order: dict[str, int] = {}
        self.past: set[str] = set()
        self.batch: set[str] = set()
        self.limits: dict[tuple[Sum, int], None] = {}
        self._equal: dict[str, int | Sum] = {}
        self._made: dict[str, Window | Product] = {}
        self._names: dict[Window | Product, str] = {}
        self._firm: dict[Sum, None] = {}
        self._soft: dict[Sum, None] = {}
        self._checks: dict[Sum, None] = {}

    def copy(self) -> Sizes:
        """Returns a copy that can be told more."""
        other = Sizes()
        other.order, other.past, other.batch, other.limits = self.order, self.past, self.batch, self.limits
        other._made, other._names = self._made, self._names
        other._equal, other._checks = dict(self._equal), dict(self._checks)
        return other

    def declare(self, name: str) -> Sum:
        """Returns the symbol *name* of an input."""
        self.order.setdefault(name, len(self.order))
        return symbol(name)

    # ---- what operators say -------------------------------------------------------------------------------------

    def now(self, dim: Dim) -> Dim:
        """Returns a dim with everything put in that is known."""
        while isinstance(dim, Sum) and (known := [t for t in dim.terms if t[0] in self._equal]):
            for name, factor in known:
                dim = plus(plus(dim, symbol(name), -factor), self._equal[name], factor)
        return dim

    def equal(self, a: Dim, b: Dim, *, firm: bool = True) -> None:
        """Says that two dims are equal; not *firm*: or one of them is 1, which then nobody pins."""
        if a is None or b is None or a is b or (isinstance(a, int) and isinstance(b, int)):
            return
        difference = self.now(plus(a, b, -1))
        if not isinstance(difference, Sum):
            return
        if len(difference.terms) == 1:
            self._pin(difference)
        elif difference not in self._firm:
            (self._firm if firm else self._soft)[difference] = None

    def limit(self, dim: Dim, most: Dim) -> None:
        """Says that a dim is at most *most*."""
        if isinstance(dim, Sum) and isinstance(most, int):
            self.limits[dim, most] = None

    def window(self, of: Dim, margin: int, stride: int, more: int = 1) -> Dim:
        """Returns ``(of + margin) // stride + more`` as a dim."""
        of = self.now(of)
        if of is None or stride < 1:
            return None
        if isinstance(of, int):
            return (of + margin) // stride + more
        if stride == 1:
            return plus(of, margin + more)
        if (exact := exact_quotient(plus(of, margin), stride)) is not None:
            return plus(exact, more)
        return self._derived(Window(of, margin, stride, more))

    def product(self, dims: Iterable[Dim]) -> Dim:
        """Returns the product of dims as a dim."""
        number, rest = 1, list[Sum]()
        for dim in map(self.now, dims):
            if dim is None:
                return None
            if isinstance(dim, int):
                number *= dim
            elif (
                len(dim.terms) == 1
                and isinstance(made := self._made.get(dim.terms[0][0]), Product)
                and (dim == symbol(dim.terms[0][0]))
            ):
                rest += made.of
            else:
                rest.append(dim)
        if not rest or number == 0:
            return number
        if len(rest) == 1:
            return scaled(rest[0], number)
        return scaled(self._derived(Product(tuple(sorted(rest, key=repr)))), number)

    def factors(self, dim: Dim) -> tuple[int, list[Sum]] | None:
        """Returns a dim as a number times sums; ``None`` for one that is not known."""
        dim = self.now(dim)
        if dim is None:
            return None
        if isinstance(dim, int):
            return dim, []
        if len(dim.terms) == 1 and dim.constant == 0:
            name, factor = dim.terms[0]
            made = self._made.get(name)
            return factor, list(made.of) if isinstance(made, Product) else [symbol(name)]
        return 1, [dim]

    def _derived(self, made: Window | Product) -> Sum:
        name = self._names.setdefault(made, f"={len(self._names)}")
        self._made[name] = made
        return symbol(name)

    # ---- solving ------------------------------------------------------------------------------------------------

    def solve(self) -> None:
        """Puts together what was said of several symbols: what speaks of a cache first, what need not hold last."""
        for said in (self._firm, self._soft):
            for difference in sorted(said, key=lambda d: not self.past.intersection(symbols_of(self.now(d)))):
                self._eliminate(difference)
            said.clear()

    def _eliminate(self, said: Sum) -> None:
        difference = self.now(said)
        if not isinstance(difference, Sum):
            return
        if len(difference.terms) == 1:
            self._pin(difference)
            return
        signs = {factor > 0 for _, factor in difference.terms}
        if len(signs) == 1 and (difference.constant == 0 or (difference.constant > 0) in signs):
            return  # nothing but zeros could be meant
        names = [name for name, factor in difference.terms if abs(factor) == 1 and name in self.order]
        names = [name for name in names if not self._within(name, difference)]
        if not names:
            self._checks[said] = None
            return
        factors = dict(difference.terms)

        def cost(name: str) -> tuple[bool, bool, int]:
            alone = all((f > 0) != (factors[name] > 0) for other, f in difference.terms if other != name)
            return not alone, name in self.past, -self.order[name]

        name = min(names, key=cost)
        rest = scaled(plus(difference, symbol(name), -factors[name]), -factors[name])
        assert rest is not None
        self._equal[name] = rest

    def _within(self, name: str, difference: Sum) -> bool:
        """Whether some other symbol of *difference* is made of *name*."""
        wanted = [other for other, _ in difference.terms if other != name]
        while wanted:
            made = self._made.get(wanted.pop())
            sums = () if made is None else made.of if isinstance(made, Product) else (made.of,)
            for inner in (symbols_of(self.now(one)) for one in sums):
                if name in inner:
                    return True
                wanted += inner
        return False

    def _pin(self, difference: Sum) -> None:
        """Gives the one symbol of a sum that is 0 its value."""
        name, factor = difference.terms[0]
        value, rest = divmod(-difference.constant, factor)
        if rest or value < 1:
            return
        made = self._made.get(name)
        if made is None:
            self._equal.setdefault(name, value)
        elif isinstance(made, Window):
            self.equal(made.of, (value - made.more) * made.stride - made.margin)
        else:
            self._pin_product(made, value)

    def _pin_product(self, made: Product, value: int) -> None:
        known = [dim for dim in map(self.now, made.of) if isinstance(dim, int)]
        open_ones = [dim for dim in map(self.now, made.of) if isinstance(dim, Sum)]
        side, rest = divmod(value, prod(known) or 1)
        if rest or not open_ones:
            return
        if len(open_ones) == 1 or len(set(open_ones)) == 1 or isqrt(side) ** 2 == side:  # two sides of one picture
            side = side if len(open_ones) == 1 else isqrt(side)
            if len(open_ones) <= 2:
                for dim in open_ones:
                    self.equal(dim, side)

    # ---- choosing values ----------------------------------------------------------------------------------------

    def wish(self, name: str, value: int) -> None:
        """Gives a symbol a value, 0 included, if it is still free; what it is a sum of gives way if it must."""
        difference = self.now(plus(symbol(name), value, -1))
        if not isinstance(difference, Sum):
            return
        signs = {factor > 0 for _, factor in difference.terms}
        if len(difference.terms) == 1:
            free, factor = difference.terms[0]
            chosen, rest = divmod(-difference.constant, factor)
            if not rest and chosen >= 0 and free in self.order:
                self._equal[free] = chosen
        elif len(signs) == 2 or difference.constant:
            self._eliminate(difference)

    def free(self, names: Collection[str] | None = None) -> list[str]:
        """Returns the symbols of inputs without a value, in order."""
        return [name for name in names or self.order if name not in self._equal]

    def value(self, dim: Dim) -> int | None:
        """Returns the value of a dim, ``None`` as long as it has none."""
        dim = self.now(dim)
        if dim is None or isinstance(dim, int):
            return dim
        result = dim.constant
        for name, factor in dim.terms:
            made = self._made.get(name)
            if made is None:
                return None
            of = [self.value(one) for one in (made.of if isinstance(made, Product) else (made.of,))]
            sizes = [one for one in of if one is not None]
            if len(sizes) < len(of):
                return None
            if isinstance(made, Product):
                result += factor * prod(sizes)
            else:
                result += factor * ((sizes[0] + made.margin) // made.stride + made.more)
        return result

    def holds(self) -> bool:
        """Whether no value is below 0, none above its limit, every window fits and what must be equal is."""
        sums = [(self.value(dim), most) for dim, most in self.limits]
        if any(size is not None and size > most for size, most in sums):
            return False
        if any((self.value(dim) or 0) != 0 for dim in self._checks):
            return False
        if any((self.value(symbol(name)) or 0) < 0 for name in self.order):
            return False
        windows = (self.value(symbol(name)) for name, made in self._made.items() if isinstance(made, Window))
        return all(size is None or size > 0 for size in windows)
