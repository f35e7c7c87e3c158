"""The coefficients of the modified flows as exact fractions: B_j/j! of the step and c_j(α) of a filter, j < 6.

Run `python docs/coefficients.py`. Nothing but the standard library is needed; where adamflow is installed its numbers
are compared with these. The derivation is in modified-flows.md: with A = −ln α and the moments M_j of the geometric
distribution (1−α) αᵏ,

    c_j = φ_j + φ_{j−1}/A,   φ_j = (−1)^j M_j/j!,   M_j = Σ_k k^j (1−α) αᵏ = α E_j(α)/(1−α)^j,

where E_j is the Eulerian polynomial. So c_j is one rational function of α plus another divided by A.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

ORDER = 6
DECAYS = (Fraction(9, 10), Fraction(99, 100), Fraction(999, 1000))
#: Digits carried in decimals, far more than the 3j that cancel at α = .999, and digits shown.
CARRIED, SHOWN = 80, 20


def step_coefficients(order: int) -> list[Fraction]:
    """B_j/j! for j < order: the series of y/(e^y − 1)."""
    inverse = [Fraction(1, math.factorial(i + 1)) for i in range(order)]
    found: list[Fraction] = []
    for j in range(order):
        found.append((j == 0) - sum((found[i] * inverse[j - i] for i in range(j)), Fraction(0)))
    return found


def filter_series(decay: Fraction, order: int) -> list[Fraction]:
    """φ_j(α) for j < order: the series of (1−α)/(1−α e^{−y})."""
    factor = decay / (1 - decay)
    found: list[Fraction] = []
    for j in range(order):
        # From (1−α e^{−y}) Σ φ_j y^j = 1−α, divided by 1−α.
        known = [Fraction((-1) ** (j - i), math.factorial(j - i)) * found[i] for i in range(j)]
        found.append((j == 0) + factor * sum(known, Fraction(0)))
    return found


def eulerian(degree: int) -> list[int]:
    """The coefficients of the Eulerian polynomial E_j(α), lowest power first: 1; 1; 1, 1; 1, 4, 1; …."""
    row = [1]
    for n in range(2, degree + 1):
        row = [(k + 1) * (row[k] if k < len(row) else 0) + (n - k) * (row[k - 1] if k > 0 else 0) for k in range(n)]
    return row


def filter_coefficients(decay: Fraction, order: int) -> list[tuple[Fraction, Fraction]]:
    """(p, q) with c_j(α) = p + q/A for j < order."""
    series = filter_series(decay, order)
    return [(series[j], series[j - 1] if j else Fraction(0)) for j in range(order)]


def value(decay: Fraction, coefficient: tuple[Fraction, Fraction]) -> Decimal:
    """p + q/A as a decimal."""
    with localcontext() as context:
        context.prec = CARRIED
        alpha, p, q = (Decimal(x.numerator) / Decimal(x.denominator) for x in (decay, *coefficient))
        return p - q / alpha.ln()


def formula(j: int) -> str:
    """φ_j(α) in words."""
    if j < 2:
        return ("1", "−α/(1−α)")[j]
    powers = ["", "α", *(f"α^{k}" for k in range(2, j))]
    terms = [f"{c if c > 1 else ''} {power}".strip() or "1" for c, power in zip(eulerian(j), powers, strict=True)]
    return f"{'−' if j % 2 else ''}α ({' + '.join(terms)})/({math.factorial(j)} (1−α)^{j})"


def check_formula(decay: Fraction, order: int) -> None:
    """Raise unless the recursion and the Eulerian polynomials agree, exactly."""
    for j, found in enumerate(filter_series(decay, order)):
        moment = decay * sum(c * decay**k for k, c in enumerate(eulerian(j))) / (1 - decay) ** j if j else Fraction(1)
        if found != Fraction((-1) ** j, math.factorial(j)) * moment:
            raise ArithmeticError(f"φ_{j}({decay}) is {found} by recursion, which is not ±M_{j}/{j}!")


def largest_difference() -> float:
    """The largest difference of adamflow's coefficients, in float64, from these.

    Raises:
        ImportError: adamflow is not installed.
    """
    import jax

    from adamflow.flows import modified

    jax.config.update("jax_enable_x64", True)
    pairs: list[tuple[Any, Any]] = [*zip(step_coefficients(ORDER), modified.step_coefficients(ORDER), strict=True)]
    for decay in DECAYS:
        exact = [value(decay, coefficient) for coefficient in filter_coefficients(decay, ORDER)]
        pairs.extend(zip(exact, modified.filter_coefficients(float(decay), ORDER), strict=True))
    return max(abs(float(exact) - float(found)) for exact, found in pairs)


def main() -> None:
    """Print all of it."""
    print("B_j/j!:", ", ".join(map(signed, step_coefficients(ORDER))))
    print("\nc_j(α) = φ_j + φ_{j−1}/A, A = −ln α, with")
    for j in range(ORDER):
        print(f"  φ_{j} = {formula(j)}")
    for decay in DECAYS:
        check_formula(decay, ORDER)
        print(f"\nα = {decay}")
        for j, (p, q) in enumerate(filter_coefficients(decay, ORDER)):
            size = f"{abs(q)}" if q.denominator == 1 else f"({abs(q)})"
            over = f" {'−' if q < 0 else '+'} {size}/A" if q else ""
            print(f"  c_{j} = {signed(p)}{over} = {signed(f'{value(decay, (p, q)):.{SHOWN}f}')}")
    try:
        print(f"\nlargest difference from adamflow's coefficients in float64: {largest_difference():.1e}")
    except ImportError:
        print("\nadamflow is not installed here: nothing to compare with")


def signed(number: Fraction | str) -> str:
    """A number with a true minus."""
    return str(number).replace("-", "−")


if __name__ == "__main__":
    main()
