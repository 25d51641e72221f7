"""What LIBERO has in addition to the contract of a simulator: initial states, success, images and files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from robowire.errors import BackendError, InvalidParams
from robowire.interfaces import Chunked, Named, Restorable, Simulator, TaskOptions
from robowire.meta import MetaAction
from robowire.registry import load

BLIND = TaskOptions(camera_names=())
DRAWER = "libero_goal/0"  # open the middle drawer of the cabinet


@pytest.fixture(scope="module")
def libero(libero_assets: Path) -> Iterator[Simulator]:
    simulator = load("simulator", "libero", SIMULATORS)()
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def drawer(libero_assets: Path) -> Iterator[Simulator]:
    """The task with a drawer, without cameras."""
    simulator = load("simulator", "libero", SIMULATORS)()
    simulator.load_task(DRAWER, BLIND)
    yield simulator
    simulator.close()


def test_every_file_of_all_130_tasks_is_there(libero_assets: Path) -> None:
    from benchmark.libero.assets import missing_files
    from benchmark.libero.tasks import all_tasks

    assert {task.name: files for task in all_tasks() if (files := missing_files(task, libero_assets))} == {}


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("suite", ["libero_object", "libero_spatial"])
def test_stand_ins_for_its_meshes_build_a_task_with_the_state_of_its_initial_states(
    libero: Simulator, libero_stand_ins: Path, suite: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.libero.tasks import find_task

    monkeypatch.setenv("ROBOWIRE_LIBERO_ASSETS", str(libero_stand_ins))
    libero.load_task(f"{suite}/{number}", BLIND)
    states = find_task(f"{suite}/{number}").init_states()
    assert libero._env.get_sim_state().shape == states.shape[1:]  # type: ignore[attr-defined]
    libero.reset(seed=0, init_state=0)
    assert libero.step(np.array([0, 0, 0, 0, 0, 0, -1.0])).info == {"success": False}


@pytest.fixture
def incomplete(libero_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The assets without the ketchup's description and the mesh of the wine bottle."""
    for folder, _, names in os.walk(libero_assets):
        here = tmp_path / Path(folder).relative_to(libero_assets)
        here.mkdir(exist_ok=True)
        for name in names:
            (here / name).symlink_to(Path(folder) / name)
    (tmp_path / "stable_hope_objects" / "ketchup" / "ketchup.xml").unlink()
    monkeypatch.setenv("ROBOWIRE_LIBERO_ASSETS", str(tmp_path))
    return tmp_path


def test_a_task_that_lacks_a_file_says_which_how_many_tasks_do_and_where_to_get_it(
    libero: Simulator, incomplete: Path
) -> None:
    with pytest.raises(BackendError) as caught:
        libero.load_task("libero_object/4", BLIND)
    assert str(caught.value) == (
        "pick_up_the_ketchup_and_place_it_in_the_basket lacks stable_hope_objects/ketchup/ketchup.xml, of "
        f"LIBERO's files in {incomplete}. Files are missing for 28 of the 130 tasks; "
        "`python -m benchmark.libero` lists them. They are in the folder libero/libero/assets of "
        "https://github.com/Lifelong-Robot-Learning/LIBERO. Give its path to `server.py simulator "
        "--libero_assets` or as ROBOWIRE_LIBERO_ASSETS, or copy it to ~/.cache/libero/assets"
    )


def test_a_named_folder_that_is_none_is_not_replaced_by_another(
    libero: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBOWIRE_LIBERO_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(
        BackendError, match=r"so none of its 130 tasks can be loaded\. Looked in \S+/nowhere\. They "
    ):
        libero.load_task(DRAWER, BLIND)


def test_the_tasks_of_one_suite_are_listed(libero: Simulator) -> None:
    assert len(libero.list_tasks()) == 130
    assert len(libero.list_tasks("libero_goal")) == 10
    assert "turn_on_the_stove" in libero.list_tasks("libero_goal")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TaskOptions(robot="Sawyer"), "LIBERO's robot is 'Panda', not 'Sawyer'"),
        (
            TaskOptions(controller="OSC_POS"),
            "LIBERO has no controller 'OSC_POS'. Did you mean 'OSC_POSE'? "
            "Known: JOINT_POSITION, OSC_POSE, OSC_POSITION",
        ),
        (
            TaskOptions(camera_names=("agentview", "eye_in_hand"), image_height=8, image_width=8),
            "LIBERO has no camera 'eye_in_hand' here. Did you mean 'robot0_eye_in_hand'? Known: agentview, "
            "birdview, frontview, galleryview, robot0_eye_in_hand, robot0_robotview, sideview",
        ),
        (
            TaskOptions(reward_shaping=True),
            "reward_shaping is True, but LIBERO's reward is 1 at success and 0 before",
        ),
        (
            TaskOptions(control_hz=30.0),
            "control_hz is 30.0, expected 500 divided by a whole number: 29.4118 or 31.25 for example",
        ),
        (TaskOptions(horizon=0), "horizon is 0, expected at least 1"),
    ],
    ids=["robot", "controller", "camera", "reward", "rate", "horizon"],
)
def test_an_option_that_libero_does_not_know_is_refused(
    libero: Simulator, options: TaskOptions, message: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        libero.load_task(DRAWER, options)
    assert str(caught.value) == message


def test_the_spec_has_the_suites_step_limit_and_the_instruction(drawer: Simulator) -> None:
    spec = drawer._spec  # type: ignore[attr-defined]
    assert (spec.task, spec.max_episode_steps) == ("open_the_middle_drawer_of_the_cabinet", 300)
    assert spec.instruction == "open the middle drawer of the cabinet"
    assert (spec.camera_names, spec.image_height, spec.rendering) == ((), None, None)


def test_a_chunk_gives_what_its_steps_give_and_ends_with_the_episode(libero: Simulator) -> None:
    libero.load_task("libero_spatial/0", TaskOptions(image_height=32, image_width=32, horizon=5))
    assert isinstance(libero, Chunked)
    actions = np.random.default_rng(1).uniform(-1, 1, (9, 7))
    libero.reset(seed=0, init_state=0)
    steps = [libero.step(action) for action in actions[:5]]
    for count in (3, 9):
        libero.reset(seed=0, init_state=0)
        rewards, last = libero.step_chunk(actions[:count])
        expected = steps[: len(rewards)]
        assert len(rewards) == min(count, 5)
        assert rewards == [step.reward for step in expected]
        assert last.truncated is (count > 5)
        for name, value in expected[-1].observation.items():
            assert last.observation[name].tobytes() == value.tobytes(), name


def test_under_an_older_servers_names_everything_else_is_the_same(libero: Simulator) -> None:
    from benchmark.libero.conventions import CENTER_NAMES

    assert isinstance(libero, Named)
    assert list(libero.names) == ["raw", "center"]
    small = {"image_height": 32, "image_width": 32}
    seen = []
    for names in libero.names:
        libero.load_task("libero_spatial/0", TaskOptions(names=names, **small))
        first = libero.reset(seed=0, init_state=0)
        assert isinstance(libero, Restorable)
        again = libero.restore_state(libero.save_state())
        assert isinstance(libero, Chunked)
        seen.append([first, again, libero.step(np.ones(7)).observation])
        seen[-1].append(libero.step_chunk(np.ones((2, 7)))[1].observation)
        seen[-1].append(vars(libero.to_meta_obs(seen[-1][-1])))
    own, center = seen
    for theirs, ours in zip(center[:-1], own[:-1], strict=True):
        assert theirs.keys() == CENTER_NAMES.keys()
        for name, value in theirs.items():
            assert value.tobytes() == ours[CENTER_NAMES[name]].tobytes(), name
    for name, value in own[-1].items():
        np.testing.assert_array_equal(center[-1][name], value)


def test_an_initial_state_that_is_none_of_the_50_is_refused(drawer: Simulator) -> None:
    with pytest.raises(InvalidParams, match=r"^init_state is 50, expected 0 to 49$"):
        drawer.reset(seed=0, init_state=50)


def test_an_initial_state_is_where_the_objects_are(drawer: Simulator) -> None:
    from benchmark.libero.tasks import find_task

    states = find_task(DRAWER).init_states()
    seen = [drawer.reset(seed=0, init_state=number) for number in (0, 7)]
    for observation, state in zip(seen, states[[0, 7]], strict=True):
        # The flattened state is the time, every position, every velocity; the bowl stays where it stands.
        where = observation["akita_black_bowl_1_pos"][:2]
        distances = [np.abs(state[i : i + 2] - where).max() for i in range(1, len(state) - 1)]
        assert min(distances) < 0.005
    assert np.abs(seen[0]["akita_black_bowl_1_pos"] - seen[1]["akita_black_bowl_1_pos"]).max() > 0.005


def test_one_seed_and_one_initial_state_give_the_same_bits_whatever_ran_before(drawer: Simulator) -> None:
    def episode() -> list[bytes]:
        seen = [drawer.reset(seed=4, init_state=9)]
        for action in np.random.default_rng(1).uniform(-1, 1, (10, 7)):
            seen.append(drawer.step(action).observation)
        return [b"".join(observation[name].tobytes() for name in sorted(observation)) for observation in seen]

    first = episode()
    drawer.reset(seed=5, init_state=1)
    for _ in range(20):
        drawer.step(np.array([0.5, 0, -1, 0, 0, 0, 1]))
    assert episode() == first


def test_an_episode_begins_when_the_scene_has_settled(drawer: Simulator) -> None:
    """Objects are placed above the table; ten steps of waiting later nothing moves."""
    before = drawer.reset(seed=0, init_state=0)["akita_black_bowl_1_pos"]
    after = drawer.step(np.array([0, 0, 0, 0, 0, 0, -1.0])).observation["akita_black_bowl_1_pos"]
    np.testing.assert_allclose(before, after, atol=1e-4)


def test_the_drawer_opened_is_success_and_ends_the_episode_with_reward_1(drawer: Simulator) -> None:
    drawer.reset(seed=0, init_state=0)
    wait = np.array([0, 0, 0, 0, 0, 0, -1.0])
    result = drawer.step(wait)
    assert (result.reward, result.terminated, result.info) == (0.0, False, {"success": False})
    # By hand, since no policy is here to pull it.
    sim = drawer._env.sim  # type: ignore[attr-defined]
    sim.data.set_joint_qpos("wooden_cabinet_1_middle_level", -0.15)
    result = drawer.step(wait)
    assert (result.reward, result.terminated, result.truncated) == (1.0, True, False)
    assert result.info == {"success": True}


def test_the_gripper_opens_at_1_and_closes_at_0(drawer: Simulator) -> None:
    drawer.reset(seed=0, init_state=0)
    for opening in (1.0, 0.0):
        action = drawer.from_meta_action(
            MetaAction("ee", "delta", np.array([0, 0, 0, 0, 0, 0, opening], np.float32))
        )
        for _ in range(15):
            observation = drawer.step(action).observation
        seen = drawer.to_meta_obs(observation)
        assert seen.state_ee is not None
        assert seen.state_ee[-1] == pytest.approx(opening, abs=0.05)


def test_the_step_limit_counts_from_when_the_scene_has_settled(libero: Simulator) -> None:
    spec = libero.load_task(DRAWER, TaskOptions(camera_names=(), horizon=2))
    assert spec.max_episode_steps == 2
    libero.reset(seed=0, init_state=0)
    assert [libero.step(np.zeros(7)).truncated for _ in range(2)] == [False, True]


def test_a_raw_picture_is_upside_down_and_a_policys_is_turned(libero: Simulator) -> None:
    options = TaskOptions(camera_names=("agentview",), image_height=256, image_width=256)
    spec = libero.load_task("libero_spatial/0", options)
    assert spec.rendering == (
        "reflections off, multisampling off; raw upside down, MetaObs turned by 180 degrees"
    )
    raw = libero.reset(seed=0, init_state=0)
    seen = libero.to_meta_obs(raw).image
    assert seen is not None
    np.testing.assert_array_equal(seen[0].transpose(1, 2, 0), np.rot90(raw["agentview_image"], 2))
    # Beyond the wooden table, above, is the grey floor with the robot's foot.
    person = libero.render("agentview").astype(int)
    brown = person[..., 0] - person[..., 2]
    assert brown[-60:].mean() > 20 > brown[:60].mean()
    assert np.abs(raw["agentview_image"][::-1].astype(int) - person).mean() < 1  # nothing moves here


@pytest.mark.parametrize(
    ("task", "init_state"),
    [("libero_spatial/4", None), ("libero_10/2", 5)],
    ids=["a bowl in a drawer left open", "a stove"],
)
def test_an_episode_has_the_bits_that_libero_itself_gives(
    libero: Simulator, task: str, init_state: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its model is not made again at a reset, and images are drawn only when somebody looks."""
    from benchmark.libero.package import environments
    from benchmark.libero.tasks import find_task

    monkeypatch.setenv("ROBOWIRE_LIBERO_RENDERING", "libero")
    libero.load_task(task, TaskOptions(image_height=32, image_width=32))
    libero.reset(seed=8)  # another episode before
    libero.step(np.ones(7))
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 7))
    ours = [
        libero.reset(seed=3, init_state=init_state),
        *(libero.step(action).observation for action in actions),
    ]

    # As published evaluations do it.
    env = environments().OffScreenRenderEnv(
        bddl_file_name=str(find_task(task).bddl_file), camera_heights=32, camera_widths=32
    )
    env.seed(3)
    env.reset()
    if init_state is not None:
        env.set_init_state(find_task(task).init_states()[init_state])
    for _ in range(10):
        first = env.step([0, 0, 0, 0, 0, 0, -1])[0]
    theirs = [first, *(env.step(action)[0] for action in actions)]
    env.close()
    for own, plain in zip(ours, theirs, strict=True):
        assert own.keys() == plain.keys()
        for name, value in plain.items():
            assert own[name].tobytes() == np.asarray(value).tobytes(), name
