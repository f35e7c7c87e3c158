"""Which fixed points and cycles does the step of an optimizer have, and are they stable?

- `newton`: fixed points and cycles of any optimizer on any loss, by Newton's method.
- `adam_two_cycle`: Adam's 2-cycle on a parabola, in closed form.
"""

from adamflow.analysis.orbits.adam_two_cycle import TwoCycle, two_cycle
from adamflow.analysis.orbits.newton import PeriodicOrbit, periodic_orbit

__all__ = ["PeriodicOrbit", "TwoCycle", "periodic_orbit", "two_cycle"]
