"""Evaluate a model and leave no trace: its gradients, buffers, modes and the random states are then as they were."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Put back, at the end, what an evaluation of a model changes.

    That is: `.grad` and the values of all parameters, all buffers (BatchNorm's averages), train or eval mode of each
    module, and the random states of torch (on every device), NumPy and Python. Inside, `.grad` is `None` everywhere.

    Args:
        model: the model.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    values = [parameter.data for parameter in parameters]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    # Closures that shuffle or augment may use NumPy's global generator.
    states = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient, value in zip(parameters, gradients, values, strict=True):
            parameter.data = value
            parameter.grad = gradient
        for module, name, buffer, copy in buffers:
            module._buffers[name] = buffer
            if buffer is not None:
                with torch.no_grad():
                    buffer.copy_(copy)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
