import pytest
from pydantic import ValidationError

from trainers.schedules import POWER_A, POWER_B, Schedule

BUDGET = 1_000_000
EDGES = [0, 1, 99_999, 100_000, 100_001, 500_000, 799_999, 800_000, 800_001, 999_999, 1_000_000]


def rate(kind: str, tokens: int, peak: float = 1.0) -> float:
    return Schedule(kind=kind, warmup=0.1, decay=0.2, final=0.05)(tokens, BUDGET, peak, batch_tokens=4096)


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
def test_warm_up_is_linear_and_reaches_the_peak(kind):
    assert rate(kind, 0) == 0
    assert rate(kind, 50_000) == pytest.approx(0.5)
    assert rate(kind, 100_000) == pytest.approx(1.0)
    assert rate(kind, 50_000, peak=3e-3) == pytest.approx(1.5e-3)


@pytest.mark.parametrize(("kind", "end"), [("constant", 1.0), ("cosine", 0.05), ("wsd", 0.05)])
def test_the_last_token_and_those_after_it_end_at_the_final_rate(kind, end):
    assert rate(kind, BUDGET) == rate(kind, BUDGET + 5000) == pytest.approx(end)


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd", "power"])
def test_no_jumps_and_nothing_rises_after_warm_up(kind):
    rates = [rate(kind, tokens) for tokens in EDGES]
    for (a, x), (b, y) in zip(zip(EDGES, rates, strict=True), zip(EDGES[1:], rates[1:], strict=False), strict=False):
        assert abs(y - x) <= 1.2e-5 * (b - a)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_wsd_is_stable_then_linear():
    assert rate("wsd", 300_000) == rate("wsd", 800_000) == 1.0
    assert rate("wsd", 900_000) == pytest.approx((1 + 0.05) / 2)


def test_cosine_halfway():
    assert rate("cosine", 550_000) == pytest.approx((1 + 0.05) / 2)


def test_power_follows_its_law_under_the_cap_and_decays_from_it():
    law = POWER_A * 500_000**POWER_B
    assert rate("power", 500_000) == pytest.approx(law)
    assert rate("power", 50_000) == pytest.approx(0.5 * POWER_A * 100_000**POWER_B)
    assert rate("power", BUDGET) == pytest.approx(0.05 * POWER_A * 800_000**POWER_B)
    assert rate("power", 500_000, peak=law / 2) == law / 2
    # Published example: batches of 128 sequences have a rate of 0.0041 after 10 B tokens.
    published = Schedule(kind="power", warmup=0.0, decay=0.0)(10**10, 10**10, 0.02, batch_tokens=128 * 4096)
    assert published == pytest.approx(0.0041, abs=5e-5)


def test_no_warm_up_starts_at_the_peak():
    assert Schedule(kind="wsd", warmup=0, decay=0)(1, BUDGET, 2.0, 1) == 2.0


def test_overlapping_phases_and_unknown_names_are_refused():
    with pytest.raises(ValidationError, match="overlap"):
        Schedule(warmup=0.6, decay=0.5)
    with pytest.raises(ValidationError):
        Schedule(kind="linear")
