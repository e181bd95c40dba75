"""What repeated tokens are worth: the law of effective data of "Scaling Data-Constrained Language Models".

Muennighoff et al. 2023, arXiv 2305.16264: each epoch over the same `unique` tokens adds less than the one before, and
all repeats together never add more than REPEATS times the unique tokens. The constants were fitted on models of up to
9 B parameters, on web text, with exact repeats; near-duplicates repeat too, so count unique tokens after dedupe.
Epochs of fine-tuning do not follow it.
"""

from __future__ import annotations

import math

REPEATS = 15.387756  # R*_D: epochs in which the worth of a repeat falls to 1/e
EXCESS = 5.309743  # R*_N: the same for parameters beyond those that the unique tokens can fill
EXPONENT = 0.3526596  # alpha = beta
SIZE, DATA, FLOOR = math.exp(6.255414), math.exp(7.3049974), math.exp(0.6254804)  # A, B, E


def effective(tokens: float, unique: float) -> float:
    """How many tokens of new text `tokens` read from `unique` ones are worth; at most (1 + REPEATS) * unique.

    Up to one epoch every token is new. ValueError for negative numbers, or tokens of nothing.
    """
    _check(tokens, unique)
    if tokens <= unique:
        return float(tokens)
    return _saturating(unique, tokens / unique - 1, REPEATS)


def marginal(tokens: float, unique: float) -> float:
    """What the next token is worth after `tokens` read from `unique` ones, in tokens of new text (1 to 0)."""
    _check(tokens, unique)
    return math.exp(-(tokens / unique - 1) / REPEATS) if tokens > unique else 1.0


def loss(parameters: float, tokens: float, unique: float) -> float:
    """Predicted loss, nats per token, of a model trained on `tokens` read from `unique` ones; for ranking alone."""
    fitting = unique * (SIZE / DATA) ** (1 / EXPONENT)  # parameters that the unique tokens fill; alpha = beta
    size = parameters if parameters <= fitting else _saturating(fitting, parameters / fitting - 1, EXCESS)
    return FLOOR + SIZE / size**EXPONENT + DATA / effective(tokens, unique) ** EXPONENT


def _saturating(unique: float, repeats: float, most: float) -> float:
    return unique * (1 - most * math.expm1(-repeats / most))


def _check(tokens: float, unique: float) -> None:
    if not (tokens >= 0 and unique >= 0 and (unique > 0 or tokens == 0)):
        raise ValueError(f"{tokens} tokens of {unique} unique ones: give numbers that are not negative, unique > 0")
