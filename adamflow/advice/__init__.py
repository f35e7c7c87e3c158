"""Answers in words, with their numbers as fields, to the three questions that come first.

- `assess`: is my setting safe?
- `explain`: until when is the flow right, and why does it stop?
- `recommend`: which flow and solver should I take for this problem?
"""

from adamflow.advice.assessment import Assessment, assess
from adamflow.advice.explanation import Cause, Explanation, explain
from adamflow.advice.recommendation import Recommendation, recommend

__all__ = ["Assessment", "Cause", "Explanation", "Recommendation", "assess", "explain", "recommend"]
