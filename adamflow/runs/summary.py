"""A run in a few lines of text: what `print` and Jupyter show of a `Trajectory`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import is_concrete

#: So many leaves of a pytree are listed.
_SHOWN_LEAVES = 4

_COUNTS = {
    "gradient_evaluations": "gradients",
    "accepted_steps": "accepted steps",
    "rejected_steps": "rejected",
    "jacobian_evaluations": "Jacobians",
}


def leaf_names(name: str, tree: Any) -> list[str]:
    """The names of the leaves of a pytree, by their paths: "params.layers.0.weight"; its own name if it is a leaf."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    names = [
        ".".join([name, jax.tree_util.keystr(path, simple=True, separator=".")]) if path else name for path in paths
    ]
    if len(set(names)) == len(names):
        return names
    # Keys that hold dots may give two leaves one name.
    return [f"{name}{jax.tree_util.keystr(path)}" for path in paths]


def summary(run: Any) -> str:
    """A run in a few lines: what was saved, how it ended, and what it cost.

    Args:
        run: a `Trajectory`.
    """
    title, rows = summary_rows(run)
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in rows)])


def summary_rows(run: Any) -> tuple[str, list[tuple[str, str]]]:
    """A title and rows of (name, text), from which both text and HTML are made."""
    count = len(run)
    title = f"{run.name}: {count} saved iteration{'s' if count != 1 else ''}"
    if is_concrete(run.iterations) and count:
        rows = np.asarray(run.iterations)
        title += f", n = {rows.flat[0]:.10g} to {rows.flat[-1]:.10g}"
    if run.iterations.ndim > 1:
        title += f", a batch of {'×'.join(map(str, run.iterations.shape[:-1]))} runs"
    rows = [(name, _leaves_text(name, tree)) for name, tree in _saved(run).items()]
    rows += [("outcome", str(run.outcome)), ("cost", _cost_text(run.stats))]
    if run.error_estimate is not None and is_concrete(run.error_estimate) and run.error_estimate.size:
        rows.append(("estimated error", f"at most {np.max(np.asarray(run.error_estimate)):.1e}"))
    return title, rows


def _saved(run: Any) -> dict[str, Any]:
    """What a run has saved, by the name of its field."""
    return {name: tree for name, tree in (("params", run.params), ("observed", run.observed)) if tree is not None}


def _leaves_text(name: str, tree: Any) -> str:
    """The leaves of a pytree, with their shapes without batch and time where these are known."""
    names, leaves = leaf_names(name, tree), jax.tree.leaves(tree)
    shown = []
    for leaf_name, leaf in list(zip(names, leaves, strict=True))[:_SHOWN_LEAVES]:
        shape = "×".join(map(str, jnp.shape(leaf))) or "number"
        shown.append(shape if leaf_name == name else f"{leaf_name.removeprefix(name).lstrip('.')} {shape}")
    more = f", … {len(leaves)} leaves in all" if len(leaves) > _SHOWN_LEAVES else ""
    return f"{', '.join(shown)}{more}"


def _cost_text(stats: Any) -> str:
    if not is_concrete(stats):
        return "unknown while jax is tracing the run"
    parts = []
    for name, words in _COUNTS.items():
        value = getattr(stats, name)
        if value is None:
            continue
        total = int(np.sum(value))
        if total or name in ("gradient_evaluations", "accepted_steps"):
            parts.append(f"{total} {words}")
    if stats.seconds is not None:
        parts.append(f"{stats.seconds:.2g} s")
    return ", ".join(parts) + (" in all runs" if np.ndim(stats.accepted_steps) else "")
