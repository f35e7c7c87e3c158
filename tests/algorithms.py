"""Algorithms of papers and of other libraries in plain NumPy, written from their sources, as peers of the family.

Each function returns one of (η, start, gradients): dicts by the name of the tensor, gradients with a leading axis of
iterations; it returns the parameters after each of them in the same form.
"""

import numpy as np
import scipy.linalg


def by_entry(step):
    """An algorithm that treats every entry alike, from its step (x, g, n, memory, η) -> x; memory is a dict."""

    def run(eta, start, gradients):
        paths = {}
        for name, x in start.items():
            memory, rows = {}, []
            for n, g in enumerate(gradients[name]):
                x = step(x, g, n, memory, eta)
                rows.append(x)
            paths[name] = np.stack(rows)
        return paths

    return run


def average(memory, name, value, decay):
    memory[name] = decay * memory.get(name, 0.0) + (1 - decay) * value
    return memory[name]


def signum(gamma):
    @by_entry
    def step(x, g, n, memory, eta):
        return x - eta * np.sign(average(memory, "m", g, gamma))

    return step


def uadam(beta, gamma, interpolation, epsilon):
    """Jiang et al., 2023: m̃ = λ(1−γ) g + (1 − λ(1−γ)) m."""

    @by_entry
    def step(x, g, n, memory, eta):
        m, v = average(memory, "m", g, gamma), average(memory, "v", g**2, beta)
        share = interpolation * (1 - gamma)
        return x - eta * (share * g + (1 - share) * m) / (np.sqrt(v) + epsilon)

    return step


def interpolated_momentum(gamma, interpolation):
    @by_entry
    def step(x, g, n, memory, eta):
        m = average(memory, "m", g, gamma)
        share = interpolation * (1 - gamma)
        return x - eta * (share * g + (1 - share) * m)

    return step


def nadam(beta, gamma, epsilon):
    @by_entry
    def step(x, g, n, memory, eta):
        m, v = average(memory, "m", g, gamma), average(memory, "v", g**2, beta)
        numerator = (gamma * m + (1 - gamma) * g) / (1 - gamma ** (n + 1))
        return x - eta * numerator / (np.sqrt(v / (1 - beta ** (n + 1))) + epsilon)

    return step


def nadam_of_torch(beta, gamma, epsilon, momentum_decay):
    """torch.optim.NAdam, as its documentation has it: t = n + 1."""

    @by_entry
    def step(x, g, n, memory, eta):
        t = n + 1
        now = gamma * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        following = gamma * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        memory["product"] = memory.get("product", 1.0) * now
        m, v = average(memory, "m", g, gamma), average(memory, "v", g**2, beta)
        numerator = following * m / (1 - memory["product"] * following) + (1 - now) * g / (1 - memory["product"])
        return x - eta * numerator / (np.sqrt(v / (1 - beta**t)) + epsilon)

    return step


def adagrad(epsilon):
    @by_entry
    def step(x, g, n, memory, eta):
        memory["sum"] = memory.get("sum", 0.0) + g**2
        return x - eta * g / (np.sqrt(memory["sum"]) + epsilon)

    return step


def amsgrad(beta, gamma, epsilon):
    """Reddi et al., 2018: nothing is corrected for its start."""

    @by_entry
    def step(x, g, n, memory, eta):
        m, v = average(memory, "m", g, gamma), average(memory, "v", g**2, beta)
        memory["max"] = np.maximum(memory.get("max", 0.0), v)
        return x - eta * m / (np.sqrt(memory["max"]) + epsilon)

    return step


def amsgrad_of_torch(beta, gamma, epsilon):
    """torch.optim.Adam with amsgrad=True: the maximum of v, divided by 1 − βⁿ⁺¹ afterwards."""

    @by_entry
    def step(x, g, n, memory, eta):
        m, v = average(memory, "m", g, gamma), average(memory, "v", g**2, beta)
        memory["max"] = np.maximum(memory.get("max", 0.0), v)
        denominator = np.sqrt(memory["max"]) / np.sqrt(1 - beta ** (n + 1)) + epsilon
        return x - eta / (1 - gamma ** (n + 1)) * m / denominator

    return step


def yogi(beta, gamma, epsilon, initial):
    @by_entry
    def step(x, g, n, memory, eta):
        m, v = average(memory, "m", g, gamma), memory.get("v", initial)
        memory["v"] = v - (1 - beta) * np.sign(v - g**2) * g**2
        return x - eta * m / (np.sqrt(memory["v"]) + epsilon)

    return step


def radam(beta, gamma, epsilon):
    """Liu et al., 2019, algorithm 2, t = n + 1."""

    @by_entry
    def step(x, g, n, memory, eta):
        t, final = n + 1, 2 / (1 - beta) - 1
        m, v = average(memory, "m", g, gamma), average(memory, "v", g**2, beta)
        first, length = m / (1 - gamma**t), final - 2 * t * beta**t / (1 - beta**t)
        if length <= 4:
            return x - eta * first
        factor = np.sqrt((length - 4) * (length - 2) * final / ((final - 4) * (final - 2) * length))
        return x - eta * factor * first / (np.sqrt(v / (1 - beta**t)) + epsilon)

    return step


def adabound(eta, *, nesterov, beta=0.999, gamma=0.9, epsilon=1e-8, final=0.1, convergence_rate=1e-3):
    """The authors' code, t = n + 1, and Nesterov's numerator."""

    @by_entry
    def step(x, g, n, memory, eta):
        t = n + 1
        m, v = average(memory, "m", g, gamma), average(memory, "v", g**2, beta)
        step_size = eta * np.sqrt(1 - beta**t) / (1 - gamma**t) / (np.sqrt(v) + epsilon)
        lower, upper = final * (1 - 1 / (convergence_rate * t + 1)), final * (1 + 1 / (convergence_rate * t))
        return x - np.clip(step_size, lower, upper) * (gamma * m + (1 - gamma) * g if nesterov else m)

    return step


def adafom(gamma, epsilon, *, shrinks):
    """Chen et al., 2018, with step sizes η or η/√t, t = n + 1."""

    @by_entry
    def step(x, g, n, memory, eta):
        m = average(memory, "m", g, gamma)
        memory["sum"] = memory.get("sum", 0.0) + g**2
        rate = eta / np.sqrt(n + 1) if shrinks else eta
        return x - rate * m / (np.sqrt(memory["sum"] / (n + 1)) + epsilon)

    return step


def adan(b1, b2, b3, epsilon, weight_decay):
    """The authors' code, with its decays; the step is proximal."""

    @by_entry
    def step(x, g, n, memory, eta):
        difference = g - memory.get("last", g)
        memory["last"] = g
        m, d = average(memory, "m", g, b1), average(memory, "d", difference, b2)
        q = average(memory, "q", (g + b2 * difference) ** 2, b3)
        c1, c2, c3 = (1 - b ** (n + 1) for b in (b1, b2, b3))
        update = (m / c1 + b2 * d / c2) / (np.sqrt(q) / np.sqrt(c3) + epsilon)
        return (x - eta * update) / (1 + eta * weight_decay)

    return step


def vradam(beta, gamma, epsilon):
    """Li, Rakhlin and Jadbabaie, 2023, algorithm 2, with m₀ of batch 0; a gradient is a pair, at θₙ and at θₙ₋₁."""

    @by_entry
    def step(x, pair, n, memory, eta):
        g, before = pair
        if n == 0:
            memory["m"] = g
        else:
            memory["m"] = gamma * memory["m"] + (1 - gamma) * g + gamma * (g - before)
        v = average(memory, "v", g**2, beta)
        return x - eta * memory["m"] / (np.sqrt(v / (1 - beta ** (n + 1))) + epsilon)

    return step


def maxva(lowest, highest, gamma, *, averages_last):
    """Zhu et al., 2020: MAdam, or LaMAdam, which averages last."""

    @by_entry
    def step(x, g, n, memory, eta):
        if n == 0:
            memory.update(u=0.0 * g, v=0.0 * g, w=0.0 * g)
            beta = np.full_like(g, highest)
        else:
            mean, w = memory["u"] / memory["w"], memory["w"]
            variance = memory["v"] / w - mean**2
            deviation = (g - mean) ** 2
            beta = (deviation + variance) / (w * (deviation - variance) + deviation + variance)
            beta = np.clip(beta, lowest, highest)
        for name, value in (("u", g), ("v", g**2), ("w", 1.0)):
            memory[name] = beta * memory[name] + (1 - beta) * value
        root = np.sqrt(memory["v"] / memory["w"])
        correction = 1 - gamma ** (n + 1)
        if averages_last:
            return x - eta * average(memory, "m", g / root, gamma) / correction
        return x - eta * average(memory, "m", g, gamma) / correction / root

    return step


def clipped_adam(gamma, clip):
    """Ahn and Cutkosky, 2024: Σ γᵏ g_{n−k} over the root of Σ γ²ᵏ g²_{n−k}."""

    @by_entry
    def step(x, g, n, memory, eta):
        memory["s"] = gamma * memory.get("s", 0.0) + g
        memory["q"] = gamma**2 * memory.get("q", 0.0) + g**2
        return x - eta * np.clip(memory["s"] / np.sqrt(memory["q"]), -clip, clip)

    return step


def adam_plus(gamma, *, exponent=1.0, smallest=1e-8):
    """Liu et al., 2020, algorithm 1; what is returned are the extrapolated points, at which gradients are taken."""

    def run(eta, start, gradients):
        names, count = list(start), len(next(iter(gradients.values())))
        theta, z = dict(start), None
        rows = {name: [] for name in names}
        for n in range(count):
            g = {name: gradients[name][n] for name in names}
            z = g if z is None else {name: gamma * z[name] + (1 - gamma) * g[name] for name in names}
            norm = np.sqrt(sum(np.sum(z[name] ** 2) for name in names))
            step = eta * (1 - gamma) ** exponent / max(np.sqrt(norm), smallest)
            following = {name: theta[name] - step * z[name] for name in names}
            b = 1 - gamma
            for name in names:
                rows[name].append((1 - 1 / b) * theta[name] + following[name] / b)
            theta = following
        return {name: np.stack(rows[name]) for name in names}

    return run


def lars(gamma, coefficient, decay):
    """You et al., 2017, algorithm 1: v ← γ v + lr κ‖x‖/(‖g‖ + λ‖x‖) (g + λx), at the rate lr = (1−γ) η."""

    @by_entry
    def step(x, g, n, memory, eta):
        local = coefficient * np.linalg.norm(x) / (np.linalg.norm(g) + decay * np.linalg.norm(x))
        memory["v"] = gamma * memory.get("v", 0.0) + (1 - gamma) * eta * local * (g + decay * x)
        return x - memory["v"]

    return step


def steepest(norm):
    """Steepest descent in the norm of the largest entry, and unit steps in the spectral norm."""

    def run(eta, params, sequence):
        rows = {name: [] for name in params}
        for n in range(len(sequence["vector"])):
            gradient = {name: rows_of[n] for name, rows_of in sequence.items()}
            if norm == "max":
                length = sum(np.abs(g).sum() for g in gradient.values())
                steps = {name: length * np.sign(g) for name, g in gradient.items()}
            else:
                polar = {name: scipy.linalg.polar(g.reshape(len(g), -1))[0] for name, g in gradient.items()}
                steps = {name: polar[name].reshape(g.shape) for name, g in gradient.items()}
            params = {name: x - eta * steps[name] for name, x in params.items()}
            for name, x in params.items():
                rows[name].append(x)
        return {name: np.stack(row) for name, row in rows.items()}

    return run


def muon(gamma, *, beta=0.999, adam_gamma=0.9, epsilon=1e-8):
    """The author's code in float64; Adam for what is no matrix."""

    def orthogonalize(matrix):
        a, b, c = 3.4445, -4.7750, 2.0315
        x = matrix / (np.linalg.norm(matrix) + 1e-7)
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x

    @by_entry
    def step(x, g, n, memory, eta):
        if g.ndim == 2:
            m = average(memory, "m", g, gamma)
            scale = np.sqrt(max(1.0, g.shape[0] / g.shape[1]))
            return x - eta * scale * orthogonalize(gamma * m + (1 - gamma) * g)
        m, v = average(memory, "m", g, adam_gamma), average(memory, "v", g**2, beta)
        return x - eta * m / (1 - adam_gamma ** (n + 1)) / (np.sqrt(v / (1 - beta ** (n + 1))) + epsilon)

    return step


def shampoo(epsilon):
    """Gupta et al., 2018, algorithm 1, and for vectors the root of one sum."""

    def power(matrix, exponent):
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(values**exponent) @ vectors.T

    @by_entry
    def step(x, g, n, memory, eta):
        matrix = g.reshape(len(g), -1)
        rows, columns = matrix.shape
        memory["left"] = memory.get("left", epsilon * np.eye(rows)) + matrix @ matrix.T
        memory["right"] = memory.get("right", epsilon * np.eye(columns)) + matrix.T @ matrix
        if g.ndim == 1:
            return x - eta * power(memory["left"], -0.5) @ g
        return x - eta * power(memory["left"], -0.25) @ g @ power(memory["right"], -0.25)

    return step
