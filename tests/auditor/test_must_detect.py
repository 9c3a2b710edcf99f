from auditor.must_detect import MUST_DETECT, SHOWS_WITH
from auditor.reference.deviations import DEVIATIONS


def needs(deviation):
    asked = {
        "noise": deviation.needs_noise,
        "filter": deviation.needs_filter,
        "penalty": deviation.needs_penalty,
    }
    return [name for name, needed in asked.items() if needed] or ["anything"]


def test_the_plain_list_of_simulated_deviations_is_the_catalogues():
    assert {name: [needed] for name, needed in SHOWS_WITH.items()} == {
        name: needs(deviation) for name, deviation in DEVIATIONS.items()
    }
    assert set(MUST_DETECT) <= SHOWS_WITH.keys()
