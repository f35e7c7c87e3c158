"""What tests of pictures share."""

import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def ax():
    """Axes on which a test draws; that they can be rendered is checked at its end."""
    figure, axes = plt.subplots(layout="constrained")
    yield axes
    figure.draw_without_rendering()
    plt.close(figure)
