"""The colours of pictures under the three kinds of colour blindness, simulated."""

import itertools

import numpy as np
import pytest

from adamflow.plotting import colours

#: G. M. Machado, M. M. Oliveira and L. A. F. Fernandes, A physiologically-based model for simulation of color vision
#: deficiency, IEEE Trans. Vis. Comput. Graph. 15 (2009), table 1, severity 1: matrices on linear RGB. They are
#: those of colorspacious 1.1.2, too.
SIMULATIONS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
#: Linear RGB to XYZ of sRGB (IEC 61966-2-1), whose white is D65.
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
#: A just noticeable difference is about 2.3; thin lines need several times as much.
APART = 15.0


def linear(colour):
    channels = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB."""
    ratio = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(axis=1)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(palette, simulation):
    """The smallest CIELAB distance (ΔE of 1976) of two colours of a palette, and of each from white."""
    seen = [lab(np.asarray(simulation) @ linear(colour)) for colour in palette]
    pairs = min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))
    return pairs, min(np.linalg.norm(colour - [100, 0, 0]) for colour in seen)


def test_formula_lab_of_known_colours():
    np.testing.assert_allclose(lab(linear("#FFFFFF")), [100, 0, 0], atol=0.02)
    # CIELAB of the primaries of sRGB as B. Lindbloom tabulates them.
    np.testing.assert_allclose(lab(linear("#FF0000")), [53.24, 80.09, 67.20], atol=0.05)
    np.testing.assert_allclose(lab(linear("#0000FF")), [32.30, 79.19, -107.86], atol=0.05)


@pytest.mark.parametrize("kind", SIMULATIONS)
def test_identity_lines_stay_apart_and_off_the_paper(kind):
    pairs, paper = nearest(colours.LINES, SIMULATIONS[kind])
    assert pairs > APART
    assert paper > 2 * APART


def test_failure_of_purple_beside_grey():
    pair = [colours.PURPLE, "#8C8C8C"]
    assert nearest(pair, SIMULATIONS["none"])[0] > 2 * APART
    assert nearest(pair, SIMULATIONS["deuteranopia"])[0] < APART


def test_identity_more_lines_than_colours_differ_in_their_style():
    styles = [tuple(style.values()) for style in colours.line_styles(28)]
    assert len(set(styles)) == 28
