"""The two records, as their users and their pickles see them."""

from __future__ import annotations

import numpy as np
import pytest

from robowire.meta import MetaAction, MetaObs


def test_both_pickle_under_the_address_that_every_peer_resolves() -> None:
    assert {(record.__module__, record.__qualname__) for record in (MetaObs, MetaAction)} == {
        ("benchmark.base", "MetaObs"),
        ("benchmark.base", "MetaAction"),
    }


def test_fields_are_found_by_name() -> None:
    assert MetaObs(raw_lang="lift")["raw_lang"] == "lift"


def test_a_batch_of_one_gets_a_leading_axis() -> None:
    obs = MetaObs(state=np.zeros(3), image=np.zeros((1, 3, 2, 2)), timestep=np.array([4]))
    obs.to_batch()
    assert (obs.state.shape, obs.image.shape, obs.timestep.tolist()) == ((1, 3), (1, 1, 3, 2, 2), [[4]])
    action = MetaAction(action=np.zeros(3))
    action.to_batch()
    assert action.action.shape == (1, 3)


@pytest.mark.parametrize(("action", "length"), [(None, 0), (np.zeros(3), 1), (np.zeros((5, 3)), 5)])
def test_an_action_knows_how_many_it_holds(action: np.ndarray | None, length: int) -> None:
    assert len(MetaAction(action=action)) == length


def test_a_field_this_version_does_not_know_is_left_out() -> None:
    obs = MetaObs()
    obs.__setstate__({"raw_lang": "lift", "smell": "burnt"})
    assert vars(obs) == vars(MetaObs(raw_lang="lift"))


def test_a_state_that_is_no_dict_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^the state of a MetaObs is a dict, not a list$"):
        MetaObs().__setstate__([])
