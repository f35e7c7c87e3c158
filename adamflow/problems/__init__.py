"""Losses with data and initial parameters, ready for `adamflow.iterate` and `adamflow.solve`."""

from adamflow.problems.chain import chain
from adamflow.problems.digits import logistic, mlp
from adamflow.problems.monomial import monomial
from adamflow.problems.problem import Problem
from adamflow.problems.quadratic import quadratic
from adamflow.problems.quartic import quartic
from adamflow.problems.transformer import char_transformer

__all__ = ["Problem", "chain", "char_transformer", "logistic", "mlp", "monomial", "quadratic", "quartic"]
