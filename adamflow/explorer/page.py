"""The page: sliders, six pictures, and the numbers in words. It computes nothing but `settings_view`."""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    Div,
    FixedTicker,
    Label,
    Slider,
    Span,
)
from bokeh.plotting import figure
from jinja2 import Template

import adamflow as af
from adamflow.explorer.model import STEPS, Settings, View, is_prepared, prepare, problem, settings_view

#: Colours of Okabe and Ito, told apart by colour-blind readers; the runs differ by their marks too.
_BLUE, _VERMILLION, _GREY = "#0072B2", "#D55E00", "#666666"
#: What axes of iterations show.
_ITERATIONS = (-10, STEPS + 10)
#: The largest values that logarithmic axes show.
_LARGEST = 1e6

_TEMPLATE = Template(
    """{% extends base %}
{% block preamble %}<style>
body { margin: 0; background: #f4f5f7; font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1d2733; }
header { background: #12324a; color: white; padding: 10px 20px; }
header b { font-size: 19px; } header span { font-size: 14px; margin-left: 14px; color: #d3e2ee; }
main { padding: 10px 14px; }
</style>{% endblock %}
{% block contents %}<header><b>adamflow explorer</b><span>Move a slider: an optimizer, the differential equation that
follows it, and what theory says of both.</span></header><main>{{ super() }}</main>{% endblock %}
"""
)


def _position(decay: float) -> float:
    """Where a decay stands on a slider or an axis: the decades between it and 1."""
    return -math.log10(1 - decay)


def _decay(position: float) -> float:
    return 1 - 10**-position


_DECAY_TICKS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
_AS_DECAY = CustomJSTickFormatter(code="return (1 - Math.pow(10, -tick)).toFixed(tick > 2 ? 5 : 4)")
_AS_POWER = CustomJSTickFormatter(code="return Number(Math.pow(10, tick).toPrecision(2)).toString()")


class Page:
    """One open page."""

    def __init__(self, document: Any, compiler: ThreadPoolExecutor) -> None:
        self.document, self.compiler = document, compiler
        self.is_waiting = False
        self.compiling: set[tuple[int, int]] = set()
        self.sliders = _sliders(Settings())
        self.numbers = Div(name="numbers", width=270)
        self.status = Div(name="status", width=270)
        self.panels = Panels()
        for slider in self.sliders.values():
            slider.on_change("value", self._moved)
        self.panels.region.on_event(Tap, self._move_to)
        controls = column(*self.sliders.values(), self.numbers, self.status, width=280)
        document.title = "adamflow explorer"
        document.template = _TEMPLATE
        document.add_root(row(controls, self.panels.layout(), sizing_mode="stretch_both"))
        self._ask()

    @property
    def settings(self) -> Settings:
        """Where the sliders stand."""
        at = {name: slider.value for name, slider in self.sliders.items()}
        return Settings(
            beta=_decay(at["beta"]),
            gamma=_decay(at["gamma"]),
            learning_rate=10 ** at["learning_rate"],
            weight_decay=at["weight_decay"],
            k=int(at["k"]),
            order=int(at["order"]),
            iteration=int(at["iteration"]),
        )

    def _moved(self, attr: str, old: Any, new: Any) -> None:
        self._ask()

    def _ask(self) -> None:
        """Show where the sliders stand, soon: moves that arrive until then are shown together."""
        if not self.is_waiting:
            self.is_waiting = True
            self.document.add_next_tick_callback(self._update)

    def _move_to(self, event: Any) -> None:
        """Put the decays where the region was clicked."""
        for name, value in (("beta", event.x), ("gamma", event.y)):
            slider = self.sliders[name]
            slider.value = min(max(value, slider.start), slider.end)

    def _update(self) -> None:
        self.is_waiting = False
        settings = self.settings
        key = settings.k, settings.order
        if not is_prepared(*key):
            self.status.text = (
                f"<b>Compiling for k = {settings.k}, order {settings.order}</b>: once, some seconds. "
                "The pictures are those of before."
            )
            self._compile(key)
            return
        begun = time.perf_counter()
        view = settings_view(settings)
        # All changes in one message.
        self.document.hold("combine")
        try:
            self.panels.show(view)
            self.numbers.text = numbers_text(view)
            milliseconds = 1e3 * (time.perf_counter() - begun)
            self.status.text = f"<span style='color:{_GREY}'>computed in {milliseconds:.0f} ms</span>"
        finally:
            self.document.unhold()

    def _compile(self, key: tuple[int, int]) -> None:
        """Compile in another thread, so that sliders move on; then show where they stand."""
        if key in self.compiling:
            return
        self.compiling.add(key)

        def ended(future: Future) -> None:
            self.compiling.discard(key)
            if future.cancelled():
                return
            error = future.exception()
            self.document.add_next_tick_callback(self._update if error is None else lambda: self._tell(error))

        self.compiler.submit(prepare, *key).add_done_callback(ended)

    def _tell(self, error: BaseException) -> None:
        self.status.text = f"<b style='color:{_VERMILLION}'>{type(error).__name__}: {error}</b>"


def _sliders(start: Settings) -> dict[str, Slider]:
    """A slider for each number; decays and the learning rate move on logarithmic scales."""

    def slider(title: str, low: float, high: float, step: float, value: float, **others: Any) -> Slider:
        return Slider(title=title, start=low, end=high, step=step, value=value, width=260, **others)

    return {
        "beta": slider("β, second moment (b2)", 0.3, 4, 0.02, _position(start.beta), format=_AS_DECAY, name="beta"),
        "gamma": slider("γ, first moment (b1)", 0.06, 3, 0.02, _position(start.gamma), format=_AS_DECAY, name="gamma"),
        "learning_rate": slider(
            "η, learning rate", -4, 0, 0.02, math.log10(start.learning_rate), format=_AS_POWER, name="learning_rate"
        ),
        "weight_decay": slider("λ, weight decay", 0, 1, 0.01, start.weight_decay, name="weight_decay"),
        "k": slider("k, stages (compiles once)", 1, 3, 1, start.k, name="k"),
        "order": slider("order of the flow (compiles once)", 1, 3, 1, start.order, name="order"),
        "iteration": slider("n, iteration of the eigenvalues", 0, STEPS, 1, start.iteration, name="iteration"),
    }


def numbers_text(view: View) -> str:
    """The numbers of a view in words, as a table."""
    beta, gamma = view.decays[-1]
    largest = float(np.abs(view.multipliers).max())
    end = view.relative_error[view.shown_iteration]
    rows = [
        ("Updates", "bounded, γ² &lt; β" if view.is_bounded else "can grow without limit, γ² ≥ β"),
        ("C(β, γ)", f"{view.exponent:.4g}"),
        (f"Bₙ at n = {view.bound_iterations[-1]:.0f}", f"{view.bound[-1]:.4g}"),
        ("η·s, its edge", f"{view.scaled_sharpness[view.shown_iteration]:.4g}, {view.edge:.4g}"),
        ("largest |eigenvalue|", f"{largest:.4g}: {'stable' if largest < 1 else 'unstable'}"),
        (f"distance at n = {view.shown_iteration}", f"{end:.3g}" if np.isfinite(end) else "none: a run ended"),
        ("discrete run", view.outcomes[0].replace("_", " ")),
        ("flow", view.outcomes[1].replace("_", " ")),
    ]
    if view.settings.k > 1:
        rows.insert(0, ("last stage", f"β {beta:.5g}, γ {gamma:.5g}"))
    cells = "".join(
        f"<tr><td style='color:{_GREY};padding-right:10px'>{name}</td><td><b>{value}</b></td></tr>"
        for name, value in rows
    )
    return f"<table style='font-size:13px;line-height:1.5'>{cells}</table>"


class Panels:
    """The six pictures, and the data that they draw."""

    def __init__(self) -> None:
        self.iterations = np.arange(STEPS + 1.0)
        nothing = np.full(STEPS + 1, np.nan)
        self.sources = {
            "point": ColumnDataSource({"x": [1.0], "y": [1.0]}),
            "stages": ColumnDataSource({"x": [], "y": []}),
            "bound": ColumnDataSource({"x": [], "y": []}),
            "runs": ColumnDataSource(
                {"n": self.iterations}
                | dict.fromkeys(("x", "y", "flow_x", "flow_y", "update", "distance", "sharpness"), nothing)
            ),
            "multipliers": ColumnDataSource({"x": [], "y": []}),
            "flow_multipliers": ColumnDataSource({"x": [], "y": []}),
        }
        self.edge = Span(dimension="width", line_color="black", line_dash="dashed", line_width=2)
        self.edge_label = Label(x=4, y=1, text="", text_font_size="12px", x_units="data")
        self.cursors = [Span(location=STEPS, dimension="height", line_color=_GREY, line_dash="dotted") for _ in "ab"]
        self.region = self._region()
        self.figures = [
            self.region,
            self._bound(),
            self._plane(),
            self._distance(),
            self._sharpness(),
            self._eigenvalues(),
        ]

    def layout(self) -> Any:
        """Three pictures in each of two rows."""
        rows = [row(*self.figures[i : i + 3], sizing_mode="stretch_both") for i in (0, 3)]
        return column(*rows, sizing_mode="stretch_both", min_height=680)

    def show(self, view: View) -> None:
        """Draw a view."""
        beta, gamma = view.settings.beta, view.settings.gamma
        stages = np.asarray(view.decays) if view.settings.k > 1 else np.zeros((0, 2))
        self.sources["point"].data = {"x": [_position(beta)], "y": [_position(gamma)]}
        self.sources["stages"].data = {"x": -np.log10(1 - stages[:, 0]), "y": -np.log10(1 - stages[:, 1])}
        bound = np.where(view.bound < _LARGEST, view.bound, np.nan)
        self.sources["bound"].data = {"x": view.bound_iterations, "y": bound}
        self.sources["runs"].data = {
            "n": self.iterations,
            "x": view.discrete[:, 0],
            "y": view.discrete[:, 1],
            "flow_x": view.continuous[:, 0],
            "flow_y": view.continuous[:, 1],
            "update": view.updates,
            "distance": np.where(view.relative_error > 0, view.relative_error, np.nan),
            "sharpness": np.where(view.scaled_sharpness > 0, view.scaled_sharpness, np.nan),
        }
        for name, values in (("multipliers", view.multipliers), ("flow_multipliers", view.flow_multipliers)):
            shown = values[np.abs(values) < _LARGEST]
            self.sources[name].data = {"x": shown.real, "y": shown.imag}
        self.edge.location = view.edge
        self.edge_label.update(y=view.edge, text=f"edge {view.edge:.4g}")
        for cursor in self.cursors:
            cursor.location = view.shown_iteration

    def _region(self) -> Any:
        plot = _figure("Updates: where they stay bounded", "β", "γ", x_range=(0.3, 4), y_range=(0.06, 3))
        beta, gamma = (1 - 10.0 ** -np.linspace(low, high, 240) for low, high in ((0.3, 4), (0.06, 3)))
        signs = [
            af.analysis.bounded_update_sign(beta=beta, gamma=gamma[:, None], kind=kind)
            for kind in ("gould_tanaka", "discrete")
        ]
        image = (signs[0] > 0).astype(np.uint8) + (signs[1] > 0)
        palette = ["#f3c6a5", "#dfe7ee", "#b9d7ec"]
        plot.image(image=[image], x=0.3, y=0.06, dw=3.7, dh=2.94, palette=palette)
        # Between both borders, γ² < β and C < 0, lies a band that is thinner than a line for decays near 1.
        for x, y, text in ((2.4, 0.3, "bounded: γ² < β"), (0.4, 2.7, "can grow: γ² > β")):
            plot.add_layout(Label(x=x, y=y, text=text, text_font_size="12px"))
        plot.scatter("x", "y", source=self.sources["stages"], size=8, marker="diamond", color=_VERMILLION)
        plot.scatter("x", "y", source=self.sources["point"], size=14, color=_BLUE, line_color="white", line_width=2)
        for axis in (plot.xaxis, plot.yaxis):
            axis.ticker = FixedTicker(ticks=[_position(decay) for decay in _DECAY_TICKS])
            axis.major_label_overrides = {_position(decay): f"{decay:g}" for decay in _DECAY_TICKS}
        return plot

    def _bound(self) -> Any:
        log = {"x_axis_type": "log", "y_axis_type": "log"}
        plot = _figure("Largest update", "iteration n", "|uₙ|", y_range=(1e-2, 1e4), **log)
        plot.line("x", "y", source=self.sources["bound"], color="black", line_width=2, legend_label="bound Bₙ")
        runs = self.sources["runs"]
        plot.scatter("n", "update", source=runs, color=_BLUE, size=4, legend_label="this run")
        return _with_legend(plot, "top_left")

    def _plane(self) -> Any:
        plot = _figure("Both runs in the plane", "θ₁", "θ₂", x_range=(-0.95, 0.6), y_range=(-0.5, 1.5))
        x, y = np.linspace(-0.95, 0.6, 60), np.linspace(-0.5, 1.5, 60)
        points = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), axis=-1)
        values = np.asarray(jax.vmap(jax.vmap(problem().loss))(points))
        plot.contour(x, y, np.log10(values + 1e-4), levels=np.linspace(-3, 1, 13), line_color="#c9d2da")
        self._two_runs(plot)
        return _with_legend(plot, "top_right")

    def _two_runs(self, plot: Any) -> None:
        runs = self.sources["runs"]
        plot.scatter("x", "y", source=runs, color=_BLUE, size=5, fill_alpha=0.5, legend_label="optimizer")
        plot.line("flow_x", "flow_y", source=runs, color=_VERMILLION, line_width=2, legend_label="flow")

    def _distance(self) -> Any:
        title = "Distance of flow and optimizer"
        plot = _figure(title, "iteration n", "relative", y_axis_type="log", x_range=_ITERATIONS, y_range=(1e-9, 10))
        plot.line("n", "distance", source=self.sources["runs"], color=_VERMILLION, line_width=2)
        plot.add_layout(self.cursors[0])
        return plot

    def _sharpness(self) -> Any:
        plot = _figure(
            "Sharpness against the edge",
            "iteration n",
            "η·s",
            y_axis_type="log",
            x_range=_ITERATIONS,
            y_range=(1e-3, 1e4),
        )
        plot.line("n", "sharpness", source=self.sources["runs"], color=_BLUE, line_width=2)
        for part in (self.edge, self.edge_label, self.cursors[1]):
            plot.add_layout(part)
        return plot

    def _eigenvalues(self) -> Any:
        plot = _figure("Eigenvalues of a step", "real", "imaginary", x_range=(-1.5, 1.5), y_range=(-1.3, 1.3))
        angle = np.linspace(0, 2 * np.pi, 200)
        plot.line(np.cos(angle), np.sin(angle), color="black", line_dash="dashed")
        plot.scatter("x", "y", source=self.sources["multipliers"], color=_BLUE, size=10, legend_label="optimizer")
        plot.scatter(
            "x",
            "y",
            source=self.sources["flow_multipliers"],
            color=_VERMILLION,
            marker="x",
            line_width=3,
            size=12,
            legend_label="flow",
        )
        return _with_legend(plot, "top_left")


def _figure(title: str, x_label: str, y_label: str, **options: Any) -> Any:
    plot = figure(
        title=title,
        x_axis_label=x_label,
        y_axis_label=y_label,
        tools="pan,wheel_zoom,reset,save",
        toolbar_location=None,
        sizing_mode="stretch_both",
        min_height=300,
        output_backend="canvas",
        **options,
    )
    plot.title.text_font_size = "14px"
    plot.axis.axis_label_text_font_style = "normal"
    plot.grid.grid_line_color = "#eef0f3"
    return plot


def _with_legend(plot: Any, location: str) -> Any:
    plot.legend.location = location
    plot.legend.background_fill_alpha = 0.8
    plot.legend.padding = 4
    plot.legend.label_text_font_size = "11px"
    return plot
