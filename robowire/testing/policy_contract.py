"""What every policy keeps, as tests for a policy of your own.

A test file of five lines, run by ``pytest`` in the environment of the policy::

    from my_policy import make_policy
    from robowire.testing import PolicyContract

    class TestMine(PolicyContract):
        make_policy = make_policy

Needs numpy and whatever runs the methods; nothing of pytest is imported.
"""

from __future__ import annotations

import copy
import json
from typing import Any, Callable, ClassVar

import numpy as np

from robowire.interfaces import Policy, PolicyOptions, StridedImages
from robowire.meta import MetaObs
from robowire.registry import require_policy
from robowire.specs import PolicySpec

__all__ = ["PolicyContract"]


class PolicyContract:
    """Base class of the tests of one policy; name the derived class with ``Test`` first.

    Attributes:
        make_policy: The factory that a server would call with ``options``.
        options: Argument of the factory, such as the folder of a checkpoint.
        deterministic: Whether equal observations give equal actions. A policy that draws at random should
            draw from ``raw_lang``, ``timestep`` and the like, so that this holds.
        tolerance: Largest difference between an action computed in a batch and the same computed alone:
            matrix products of another size round in another order.
    """

    make_policy: ClassVar[Callable[[PolicyOptions], Any]]
    options: ClassVar[PolicyOptions] = PolicyOptions(device="cpu")
    deterministic: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-4

    _made: ClassVar[Any] = None

    def observations(self, spec: PolicySpec, count: int) -> list[MetaObs]:
        """Return random observations that fit the spec; override it where the policy needs others.

        Where the spec allows any size, they are those of one camera of 64 x 64 pixels and a state of 8.
        """
        rng = np.random.default_rng(count)
        cameras = 1 if spec.camera_names is None else len(spec.camera_names)
        shape = (cameras, 3, spec.image_height or 64, spec.image_width or 64)
        return [
            MetaObs(
                state=rng.standard_normal(spec.state_dim or 8).astype(np.float32),
                image=rng.integers(0, 256, shape, dtype=np.uint8) if cameras else None,
                raw_lang="lift the cube",
                timestep=step,
            )
            for step in range(count)
        ]

    @classmethod
    def teardown_class(cls) -> None:
        """Forget the policy, which may hold a device's memory; pytest calls it."""
        cls._made = None

    # -- spec --------------------------------------------------------------------------------------------

    def test_it_has_what_a_server_uses(self) -> None:
        require_policy(type(self).__name__, self._policy())

    def test_the_spec_says_what_a_client_must_know(self) -> None:
        spec = self._policy().spec
        for name in ("policy", "action_dim"):
            _require(getattr(spec, name), f"{name} of the spec", getattr(spec, name), "a value")
        steps = spec.n_action_steps
        within = steps is None or 1 <= steps <= spec.chunk_size
        _require(within, "n_action_steps of the spec", steps, f"1 to chunk_size, {spec.chunk_size}, or None")

    def test_the_spec_is_plain_data(self) -> None:
        spec = self._policy().spec
        try:
            text = json.dumps(spec.to_wire())
        except (TypeError, ValueError) as exc:
            raise AssertionError(f"the spec: found {spec}, expected what JSON can hold: {exc}") from exc
        again = type(spec).from_wire(json.loads(text))
        _require(again == spec, "the spec, after it was sent", again, spec)

    def test_the_spec_stays_the_same(self) -> None:
        policy = self._policy()
        before = policy.spec
        policy.infer(self.observations(before, 2))
        _require(policy.spec == before, "the spec after an inference", policy.spec, before)

    # -- actions -----------------------------------------------------------------------------------------

    def test_a_chunk_has_the_declared_shape_and_float32(self) -> None:
        policy = self._policy()
        for count in (1, 3):
            actions = policy.infer(self.observations(policy.spec, count))
            self._require_chunks(actions, count, f"infer of {count} observations")

    def test_actions_are_a_fresh_array(self) -> None:
        policy = self._policy()
        given = self.observations(policy.spec, 2)
        first = policy.infer(given)
        _require(first.flags.writeable, "actions", "a read-only array", "one that the caller may change")
        expected = first.copy()
        second = policy.infer(given)
        _require(not np.shares_memory(first, second), "actions of two inferences", "one array", "two")
        _require_equal(first, expected, "actions that were returned before the last inference")
        for observation in given:
            for name, value in vars(observation).items():
                shared = isinstance(value, np.ndarray) and np.shares_memory(second, value)
                _require(not shared, "actions", f"memory of the observation's {name}", "memory of their own")

    def test_equal_observations_give_equal_actions(self) -> None:
        policy = self._policy()
        if not self.deterministic:
            return
        one, other = self.observations(policy.spec, 2)
        first = policy.infer([copy.deepcopy(one)]).copy()
        policy.infer([other])
        _require_equal(
            policy.infer([copy.deepcopy(one)]), first, "actions of one observation, inferred twice"
        )

    def test_a_row_depends_on_its_own_observation_alone(self) -> None:
        policy = self._policy()
        if not self.deterministic:
            return
        given = self.observations(policy.spec, 5)
        alone = np.concatenate([policy.infer([one]) for one in given])
        for order in (slice(None), slice(None, None, -1)):
            batch = policy.infer(given[order])
            _require(batch.shape == alone.shape, "actions of a batch", batch.shape, alone.shape)
            difference = float(np.abs(batch - alone[order]).max())
            _require(
                difference <= self.tolerance,
                "an action computed in a batch and alone",
                f"a difference of {difference:g}",
                f"at most {self.tolerance:g}",
            )

    # -- observations ------------------------------------------------------------------------------------

    def test_observations_are_not_modified(self) -> None:
        policy = self._policy()
        given = self.observations(policy.spec, 2)
        before = copy.deepcopy(given)
        policy.infer(given)
        for now, then in zip(given, before):
            changed = [name for name in {**vars(then), **vars(now)} if _differs(then, now, name)]
            _require(not changed, "observations after an inference", f"another {changed}", "the same")

    def test_the_order_of_images_in_memory_changes_nothing(self) -> None:
        policy = self._policy()
        if not (isinstance(policy, StridedImages) and policy.strided_images and self.deterministic):
            return
        given = [seen for seen in self.observations(policy.spec, 3) if seen.image is not None]
        for count in range(1, len(given) + 1):
            expected = policy.infer(given[:count]).copy()
            strided = copy.deepcopy(given[:count])
            for observation in strided[::2]:
                assert observation.image is not None
                rows = np.ascontiguousarray(observation.image.transpose(0, 2, 3, 1))
                observation.image = rows.transpose(0, 3, 1, 2)
            found = policy.infer(strided)
            _require_equal(found, expected, "actions for images in another order of memory")

    def test_a_missing_field_is_handled_or_refused(self) -> None:
        policy = self._policy()
        spec = policy.spec
        fields = ["state"] if spec.state_dim else []
        if spec.camera_names:
            fields.append("image")
        for name in fields:
            (observation,) = self.observations(spec, 1)
            setattr(observation, name, None)
            try:
                actions = policy.infer([observation])
            except Exception:  # refused, by whatever error: a server answers it, and goes on
                pass
            else:
                self._require_chunks(actions, 1, f"infer without {name}")
            again = policy.infer(self.observations(spec, 1))
            self._require_chunks(again, 1, f"infer after one without {name}")

    # -- what the tests share ----------------------------------------------------------------------------

    @classmethod
    def _policy(cls) -> Policy:
        if cls._made is None:
            # By the class: a function that is its attribute would be bound to an instance.
            cls._made = cls.make_policy(cls.options)
        policy: Policy = cls._made
        return policy

    def _require_chunks(self, actions: Any, count: int, what: str) -> None:
        spec = self._policy().spec
        is_array = isinstance(actions, np.ndarray)
        _require(is_array, what, f"a {type(actions).__name__}", "a numpy array")
        _require(actions.dtype == np.float32, what, f"{actions.dtype}", "float32")
        shape = (count, spec.chunk_size, spec.action_dim)
        _require(
            actions.shape == shape, what, f"shape {actions.shape}", f"(B, chunk_size, action_dim) {shape}"
        )
        finite = bool(np.isfinite(actions).all())
        _require(finite, what, "actions that are NaN or infinite", "finite numbers")


def _require(condition: Any, what: str, found: Any, expected: Any) -> None:
    """Raise unless the condition holds. Not ``assert``: what pytest makes of that is for test files."""
    if not condition:
        raise AssertionError(f"{what}: found {found}, expected {expected}")


def _require_equal(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    same = found.shape == expected.shape and found.tobytes() == expected.tobytes()
    _require(same, what, "others", "the same, bit for bit")


def _differs(then: MetaObs, now: MetaObs, name: str) -> bool:
    try:
        np.testing.assert_array_equal(getattr(now, name, None), getattr(then, name, None))
    except AssertionError:
        return True
    return False
