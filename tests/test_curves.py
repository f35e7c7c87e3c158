"""The curves through the (β, γ) square."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adamflow.analysis import level_curve, normal_curve, stability_exponent


@given(st.floats(1e-3, 1 - 1e-9), st.floats(1e-3, 1 - 1e-9))
def test_identity_curves_pass_through_their_point_with_equal_arcs(beta, gamma):
    betas, gammas = normal_curve(200, beta=beta, gamma=gamma)
    np.testing.assert_allclose(2 * betas**3 + gammas**3, 2 * beta**3 + gamma**3, rtol=1e-12)
    assert (np.diff(stability_exponent(beta=betas, gamma=gammas)) < 0).all()
    level = level_curve(200, beta=beta, gamma=gamma)
    exponent = stability_exponent(beta=beta, gamma=gamma)
    scale = 2 / level[1] + 1 / level[0] + abs(exponent)
    assert (abs(stability_exponent(beta=level[0], gamma=level[1]) - exponent) < 1e-12 * scale).all()
    for b, g in ((betas, gammas), level):
        assert ((b > 0) & (b < 1) & (g > 0) & (g < 1)).all()
    chords = np.hypot(np.diff(betas), np.diff(gammas))
    np.testing.assert_allclose(chords, chords.mean(), rtol=1e-3)


def test_formula_normal_curve_of_the_paper():
    betas, gammas = normal_curve(20_001, beta=0.999, gamma=0.9)
    np.testing.assert_allclose(2 * betas**3 + gammas**3, 2.723006, atol=1e-6)
    at_zero = np.abs(stability_exponent(beta=betas, gamma=gammas)).argmin()
    np.testing.assert_allclose([betas[at_zero], gammas[at_zero]], [0.96192, 0.98059], atol=1e-5)
    np.testing.assert_allclose([betas[-1], gammas[-1]], [0.9515, 1.0], atol=1e-4)
    assert betas[0] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("beta", "gamma"), [(0.999, 0.9), (0.3, 0.3), (0.2, 0.95), (0.9, 0.2)])
def test_identity_normal_curve_crosses_level_sets_at_right_angles(beta, gamma):
    betas, gammas = normal_curve(4000, beta=beta, gamma=gamma)
    tangent = np.array([betas[2:] - betas[:-2], gammas[2:] - gammas[:-2]])
    step = 1e-4 * np.minimum(np.minimum(betas, gammas), np.minimum(1 - betas, 1 - gammas))
    rise_b = stability_exponent(beta=betas + step, gamma=gammas) - stability_exponent(beta=betas - step, gamma=gammas)
    rise_g = stability_exponent(beta=betas, gamma=gammas + step) - stability_exponent(beta=betas, gamma=gammas - step)
    gradient = np.array([rise_b, rise_g])[:, 1:-1]
    lengths = np.hypot(*tangent) * np.hypot(*gradient)
    inner = slice(20, -20)
    np.testing.assert_allclose(
        (tangent[0] * gradient[1] - tangent[1] * gradient[0])[inner] / lengths[inner], 0, atol=1e-3
    )


@pytest.mark.parametrize(
    ("curve", "beta", "gamma", "ends"),
    [
        (normal_curve, 0.999, 0.9, lambda constant: [(1, np.cbrt(constant - 2)), (np.cbrt((constant - 1) / 2), 1)]),
        (normal_curve, 0.9, 0.3, lambda constant: [(np.cbrt(constant / 2), 0), (np.cbrt((constant - 1) / 2), 1)]),
        (normal_curve, 0.3, 0.99, lambda constant: [(np.cbrt(constant / 2), 0), (np.cbrt((constant - 1) / 2), 1)]),
        (normal_curve, 0.3, 0.3, lambda constant: [(np.cbrt(constant / 2), 0), (0, np.cbrt(constant))]),
        (level_curve, 0.999, 0.9, lambda exponent: [(0, 0), (1, 2 / (2 + exponent))]),
        (level_curve, 0.5, 0.9, lambda exponent: [(0, 0), (1 / (1 - exponent), 1)]),
    ],
)
def test_formula_curves_reach_from_border_to_border(curve, beta, gamma, ends):
    level = 2 * beta**3 + gamma**3 if curve is normal_curve else stability_exponent(beta=beta, gamma=gamma)
    betas, gammas = curve(10_000, beta=beta, gamma=gamma)
    piece = np.hypot(np.diff(betas), np.diff(gammas)).mean()
    for index, (b, g) in zip((0, -1), ends(level), strict=True):
        assert np.hypot(betas[index] - b, gammas[index] - g) == pytest.approx(piece / 2, rel=1e-3)


@pytest.mark.parametrize("curve", [normal_curve, level_curve])
@pytest.mark.parametrize("gamma", [1e-9, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("beta", [1e-9, 0.5, 1 - 2**-53])
def test_identity_curves_stay_inside_the_square_near_its_corners(curve, beta, gamma):
    for values in curve(50, beta=beta, gamma=gamma):
        assert values.shape == (50,)
        assert ((values > 0) & (values < 1)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: normal_curve(5, beta=0.9, gamma=1.0),
            r"gamma must lie in \(0, 1\), got 1.0; .*inside the unit square",
        ),
        (lambda: level_curve(5, beta=0.0, gamma=0.9), r"beta must lie in \(0, 1\), got 0.0"),
        (
            lambda: level_curve(5, beta=np.array([0.8, 0.9]), gamma=0.9),
            r"beta must be a single number, got an array of shape \(2,\)",
        ),
        (lambda: normal_curve(2**63, beta=0.9, gamma=0.9), "points must be at most 1000000, got 9223372036854775808"),
        (lambda: normal_curve(0, beta=0.9, gamma=0.9), "points must be a whole number of at least 1, got 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_failure_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


#: Decays of every size, down to the smallest number above 0.
DECAYS = st.floats(0, 1, exclude_min=True, exclude_max=True)


@pytest.mark.parametrize("curve", [normal_curve, level_curve])
@example(beta=1e-5, gamma=0.5)
@given(beta=DECAYS, gamma=DECAYS)
def test_identity_curves_exist_through_every_point_of_the_square(curve, beta, gamma):
    betas, gammas = curve(5, beta=beta, gamma=gamma)
    assert betas.shape == gammas.shape == (5,)
    assert np.all((betas > 0) & (betas < 1) & (gammas > 0) & (gammas < 1))


def test_formula_curves_near_the_smallest_numbers():
    betas, gammas = level_curve(3, beta=1e-320, gamma=1e-320)  # C = 1/β − 1, so γ = 2/(1/b + 1/β)
    np.testing.assert_allclose(betas, [1 / 6, 1 / 2, 5 / 6], rtol=1e-10)
    np.testing.assert_array_equal(gammas, 2 * 1e-320)
    whole, small = (np.stack(normal_curve(7, beta=0.4 * unit, gamma=0.3 * unit)) for unit in (1.0, 1e-200))
    np.testing.assert_allclose(small, 1e-200 * whole, rtol=1e-9)
