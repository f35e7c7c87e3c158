"""Losses with data and initial parameters, ready for `adamflow.iterate` and `adamflow.solve`."""

from adamflow.problems.chain import chain
from adamflow.problems.cnn import cnn
from adamflow.problems.digits import logistic, mlp
from adamflow.problems.images import read_cifar10, read_fashion_mnist
from adamflow.problems.monomial import monomial
from adamflow.problems.problem import Problem
from adamflow.problems.quadratic import quadratic
from adamflow.problems.quartic import quartic
from adamflow.problems.rayleigh import rayleigh
from adamflow.problems.signal_and_noise import SignalAndNoise, patch_network, signal_and_noise, two_layer_transformer
from adamflow.problems.transformer import char_transformer

__all__ = [
    "Problem",
    "SignalAndNoise",
    "chain",
    "char_transformer",
    "cnn",
    "logistic",
    "mlp",
    "monomial",
    "patch_network",
    "quadratic",
    "quartic",
    "rayleigh",
    "read_cifar10",
    "read_fashion_mnist",
    "signal_and_noise",
    "two_layer_transformer",
]
