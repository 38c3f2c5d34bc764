r"""What a program does, counted on its jaxpr: nothing is compiled and nothing is run.

The compiled program's own counts (``cost_analysis``) have a loop's body once. Here a loop counts
its body as often as it runs, which the jaxpr says, unless it ends by what it finds. Of two branches
one counts: the cheaper, or the dearer.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

_FUNCTIONS = {
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "pow", "sin", "cos", "tan"),
    *("erf", "erfc", "erf_inv", "lgamma", "digamma", "asin", "acos", "atan", "atan2", "sinh"),
    *("cosh", "asinh", "acosh", "atanh", "cbrt"),
}
_ROOTS = {"sqrt", "rsqrt", "div"}
_ELEMENTWISE = {
    *("add", "sub", "mul", "neg", "abs", "sign", "square", "max", "min", "rem", "floor", "ceil"),
    *("round", "clamp", "select_n", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not"),
    *("lt_to", "le_to", "eq_to", "add_any", "is_finite", "integer_pow", "nextafter"),
    *("convert_element_type", "reduce_precision", "population_count", "clz"),
    *("shift_left", "shift_right_logical", "shift_right_arithmetic"),
}
_REDUCTIONS = {
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_or", "reduce_and"),
    *("reduce_xor", "argmax", "argmin", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
}
_MADE = {"broadcast_in_dim", "iota", "pad", "concatenate", "stack", "empty2", "rev"}
_VIEWS = {
    *("reshape", "squeeze", "expand_dims", "transpose", "slice", "dynamic_slice", "split"),
    *("stop_gradient", "bitcast_convert_type", "optimization_barrier", "copy", "copy_p"),
    *("pvary", "psum_invariant", "mutable_array", "freeze"),
}
_KEYS = {
    *("random_seed", "random_wrap", "random_unwrap", "random_split", "random_fold_in"),
    *("random_clone", "platform_index", "axis_index"),
}
_INLINED = {
    **dict.fromkeys(("jit", "pjit", "remat2", "checkpoint", "shard_map"), "jaxpr"),
    **dict.fromkeys(
        ("custom_jvp_call", "custom_vjp_call", "closed_call", "core_call"), "call_jaxpr"
    ),
    "custom_vmap_call": "call",
}
_WORD = 58  # integer operations of Threefry with 20 rounds for each word that it draws
_INTEGERS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "max": max,
    "min": min,
    "lt": lambda a, b: a < b,
    "convert_element_type": lambda a: a,
    "stop_gradient": lambda a: a,
}


class Counts(NamedTuple):
    """What a program does.

    Attributes:
      products: operations of products and convolutions at precision HIGHEST.
      loose: the same at the default precision, which is the device's own.
      factored: operations of factorisations and substitutions.
      elementwise: additions, products, comparisons, choices, of floats and integers.
      functions: exponentials, logarithms, powers and the like.
      roots: square roots, their reciprocals and quotients.
      traffic: bytes that products, factorisations, sorts and reductions read and write, and what
        chains of other operations between them read.
      calls: of products, factorisations, sorts, gathers and scatters, or turns of a loop without
        any: each is at least one kernel of a device.
    """

    products: float = 0.0
    loose: float = 0.0
    factored: float = 0.0
    elementwise: float = 0.0
    functions: float = 0.0
    roots: float = 0.0
    traffic: float = 0.0
    calls: float = 0.0

    def plus(self, other: "Counts") -> "Counts":
        """Returns the sum."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Counts":
        """Returns the product with a number."""
        return Counts(*(factor * a for a in self))

    @property
    def operations(self) -> float:
        """Of all kinds: by which branches are compared."""
        return sum(self[:6])


def num_bytes(aval: Any) -> float:
    """Returns the bytes of an array of this shape and dtype; keys have none."""
    return float(math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 0))


class _Value:
    """What is known of an array: its size, where it lives, and its value if it is a counter."""

    def __init__(self, aval: Any, stored: bool, known: Any = None) -> None:
        self.size, self.bytes = math.prod(aval.shape), num_bytes(aval)
        self.stored, self.read, self.known = stored, False, known


class Counter:
    """Counts programs.

    Attributes:
      passes: how often a loop runs that ends by what it finds, the innermost of such loops.
      assumed: whether there was one.
    """

    def __init__(self, *, passes: int = 1, dear: bool = False, platform: str = "cuda") -> None:
        """Makes a counter.

        Args:
          passes: how often a loop runs that ends by what it finds.
          dear: whether the dearer one of two branches counts, else the cheaper one.
          platform: whose branch counts where they are by platform.
        """
        self.passes, self._dear, self._platform = passes, dear, platform
        self.assumed = False

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Counts:
        """Returns the counts of a function of arrays, or of their shapes."""
        return self.of(jax.make_jaxpr(fn)(*args))

    def of(self, closed: Any) -> Counts:
        """Returns the counts of a closed jaxpr."""
        jaxpr, _ = partial_eval.dce_jaxpr(
            closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
        )
        return self._body(jaxpr, [None] * len(jaxpr.invars))[0]

    def _body(self, jaxpr: Any, known: Sequence[Any]) -> tuple[Counts, list[Any]]:
        """Returns the counts of a jaxpr whose arguments and results live in memory."""
        args = [_Value(v.aval, True, k) for v, k in zip(jaxpr.invars, known, strict=True)]
        counts, outs = self._walk(jaxpr, args)
        return counts.plus(_stored(outs)), [out.known for out in outs]

    def _walk(self, jaxpr: Any, args: Sequence[_Value]) -> tuple[Counts, list[_Value]]:
        values: dict[Any, _Value] = dict(zip(jaxpr.invars, args, strict=True))
        values |= {var: _Value(var.aval, True) for var in jaxpr.constvars}

        def get(atom: Any) -> _Value:
            if hasattr(atom, "val"):  # a literal
                number = atom.val if getattr(atom.aval, "shape", ()) == () else None
                return _Value(atom.aval, False, number)
            return values[atom]

        total = Counts()
        for eqn in jaxpr.eqns:
            counts, outs = self._equation(eqn, [get(atom) for atom in eqn.invars])
            total = total.plus(counts)
            values |= dict(zip(eqn.outvars, outs, strict=True))
        return total, [get(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[_Value]) -> tuple[Counts, list[_Value]]:
        name, params = eqn.primitive.name, eqn.params
        if name in _INLINED:
            inner = params[_INLINED[name]]
            return self._walk(getattr(inner, "jaxpr", inner), ins)
        if name == "custom_linear_solve":
            lengths = params["const_lengths"]
            first = lengths.matvec + lengths.vecmat
            consts = ins[first : first + lengths.solve]
            return self._walk(params["jaxprs"].solve.jaxpr, [*consts, *ins[sum(lengths) :]])
        if name in ("scan", "while", "cond"):
            counts, known = getattr(self, f"_{name}")(params, ins)
            results = zip(eqn.outvars, known, strict=True)
            return counts, [_Value(var.aval, True, k) for var, k in results]
        outs = [_Value(var.aval, False) for var in eqn.outvars]
        if name in _INTEGERS and all(value.known is not None for value in ins):
            outs[0].known = _INTEGERS[name](*(value.known for value in ins))
        if name == "platform_index":
            fits = (places is None or self._platform in places for places in params["platforms"])
            outs[0].known = next(number for number, fit in enumerate(fits) if fit)
        if name in _VIEWS:
            views = ins if len(ins) == len(outs) else ins[:1] * len(outs)
            for value, out in zip(views, outs, strict=True):
                out.stored = value.stored
            return Counts(), outs
        return _operation(name, eqn, ins, outs), outs

    # control flow; what comes out of it lives in memory

    def _turn(self, body: Any, known: Sequence[Any]) -> tuple[Counts, list[Any]]:
        counts, outs = self._body(body, known)
        return counts._replace(calls=max(counts.calls, 1)), outs

    def _scan(self, params: Any, ins: list[_Value]) -> tuple[Counts, list[Any]]:
        consts, carried, length = params["num_consts"], params["num_carry"], params["length"]
        body = params["jaxpr"].jaxpr
        fixed, carry = [v.known for v in ins[:consts]], [v.known for v in ins[consts:][:carried]]
        slices: list[Any] = [None] * (len(ins) - consts - carried)
        total, left, outs = Counts(), length, [None] * len(body.outvars)
        while left:
            counts, outs = self._turn(body, [*fixed, *carry, *slices])
            # where no inner loop asks how far this one is, each turn is like the first
            alike = not _loops(body) or carry == outs[:carried]
            total, left = total.plus(counts.times(left if alike else 1)), 0 if alike else left - 1
            carry = outs[:carried]
        known = carry if length and carry == [v.known for v in ins[consts:][:carried]] else None
        return total, [*(known or [None] * carried), *[None] * (len(outs) - carried)]

    def _while(self, params: Any, ins: list[_Value]) -> tuple[Counts, list[Any]]:
        at, body = params["cond_nconsts"], params["body_jaxpr"].jaxpr
        known = [value.known for value in ins]
        asked, fixed = known[:at], known[at : at + params["body_nconsts"]]
        carry = known[at + params["body_nconsts"] :]
        outside, self.assumed = self.assumed, False
        counts, outs = self._turn(body, [*fixed, *carry])
        inside, self.assumed = self.assumed, outside or self.assumed
        turns = _turns(params["cond_jaxpr"].jaxpr, [*asked, *carry], [*asked, *outs])
        if turns is None:
            # around another one that ends by what it finds: seldom begun again
            turns, self.assumed = 1 if inside else self.passes, True
        elif _loops(body):
            total = Counts()
            for _ in range(turns):
                counts, carry = self._turn(body, [*fixed, *carry])
                total = total.plus(counts)
            return total, [None] * len(outs)
        return counts.times(turns), [None] * len(outs)

    def _cond(self, params: Any, ins: list[_Value]) -> tuple[Counts, list[Any]]:
        index, *rest = ins
        known = [value.known for value in rest]
        branches = [branch.jaxpr for branch in params["branches"]]
        if index.known is not None:
            branches = [branches[min(max(int(index.known), 0), len(branches) - 1)]]
        found = [self._body(branch, known) for branch in branches]
        choose = max if self._dear else min
        return choose(found, key=lambda each: each[0].operations)


def _turns(condition: Any, carry: list[Any], after: list[Any]) -> int | None:
    """Returns how often a loop of i < n runs whose body makes `after` of `carry`, or None."""
    test = condition.eqns[0] if len(condition.eqns) == 1 else None
    if test is None or test.primitive.name != "lt":
        return None
    places = {var: place for place, var in enumerate(condition.invars)}

    def of(atom: Any, values: list[Any]) -> Any:
        return atom.val if hasattr(atom, "val") else values[places[atom]]

    low, high = (of(atom, carry) for atom in test.invars)
    following = of(test.invars[0], after)
    if low is None or high is None or following is None:
        return None
    return max(0, -(-int(high - low) // int(following - low)))


@functools.cache
def _loops(jaxpr: Any) -> bool:
    """Returns whether there is a while loop inside."""
    inner = core.jaxprs_in_params
    return any(
        eqn.primitive.name == "while" or any(map(_loops, inner(eqn.params))) for eqn in jaxpr.eqns
    )


def _stored(values: Sequence[_Value]) -> Counts:
    """Writes what lives in no memory yet."""
    written = 0.0
    for value in values:
        if not value.stored and value.size > 1:
            written += value.bytes
            value.stored = value.read = True
    return Counts(traffic=written)


def _operation(name: str, eqn: Any, ins: list[_Value], outs: list[_Value]) -> Counts:
    """Returns the counts of a primitive without jaxprs."""
    size, taken = sum(out.size for out in outs), sum(value.size for value in ins)
    apart = _apart(name, eqn, size, ins)
    if apart is not None:
        traffic = _stored(ins).traffic + sum(value.bytes for value in (*ins, *outs))
        if name == "dynamic_update_slice" or name.startswith("scatter"):
            traffic = 3 * ins[-1 if name.startswith("scatter") else 1].bytes  # in place
        for out in outs:
            out.stored = True
        return apart._replace(traffic=traffic)
    traffic = 0.0  # a chain reads once what is stored, and holds the rest
    for value in ins:
        if value.stored and not value.read:
            traffic, value.read = traffic + value.bytes, True
    if name in _REDUCTIONS:
        for out in outs:
            out.stored = True
        return Counts(elementwise=taken, traffic=traffic + sum(out.bytes for out in outs))
    if name in _FUNCTIONS:
        return Counts(functions=size, traffic=traffic)
    if name in _ROOTS:
        return Counts(roots=size, traffic=traffic)
    if name == "integer_pow":
        power = abs(eqn.params["y"])
        multiplied = max(1, power.bit_length() - 1 + power.bit_count() - 1)
        inverse = size if eqn.params["y"] < 0 else 0
        return Counts(elementwise=size * multiplied, roots=inverse, traffic=traffic)
    if name == "random_bits":
        return Counts(elementwise=_WORD * size, traffic=traffic)
    if name in _ELEMENTWISE:
        return Counts(elementwise=size, traffic=traffic)
    if name in _MADE or name in _KEYS:
        return Counts(traffic=traffic)
    raise NotImplementedError(f"counts: got the primitive {name}; it is not counted yet")


def _apart(name: str, eqn: Any, size: int, ins: list[_Value]) -> Counts | None:
    """Returns the counts of what no chain of operations takes in, None for what one does."""
    params = eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        return _products(2.0 * size * depth, params)
    if name == "conv_general_dilated":
        spec = params["dimension_numbers"].rhs_spec
        per_output = ins[1].size / eqn.invars[1].aval.shape[spec[0]]
        return _products(2.0 * size * per_output / math.prod(params["lhs_dilation"]), params)
    if name == "cholesky":
        return Counts(factored=size * eqn.outvars[0].aval.shape[-1] / 3, calls=1)
    if name == "triangular_solve":
        return Counts(factored=float(size * eqn.invars[0].aval.shape[-1]), calls=1)
    if name == "sort":
        length = eqn.invars[0].aval.shape[params["dimension"]]
        return Counts(elementwise=ins[0].size * math.log2(max(length, 2)), calls=1)
    if name == "top_k":
        return Counts(elementwise=ins[0].size * math.log2(params["k"] + 1), calls=1)
    if name == "dynamic_update_slice":
        return Counts()
    if name == "gather":
        return Counts(calls=1)
    if name.startswith("scatter"):
        return Counts(elementwise=float(ins[-1].size), calls=1)
    return None


def _products(operations: float, params: Any) -> Counts:
    precision = params["precision"]
    levels = precision if isinstance(precision, tuple) else (precision,)
    if any(level in (jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST) for level in levels):
        return Counts(products=operations, calls=1)
    return Counts(loose=operations, calls=1)
