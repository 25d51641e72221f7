"""The table of simulators. Listing it imports none; ``robowire.registry.load`` imports the chosen one."""

from __future__ import annotations

from robowire.registry import Entry

__all__ = ["SIMULATORS"]

SIMULATORS: dict[str, Entry] = {
    "aloha": Entry(
        "benchmark.aloha:make_simulator",
        install="./setup_simulator.sh aloha",
        environ={"MUJOCO_GL": "osmesa"},
        summary="ALOHA's two ViperX arms at 50 Hz: transfer_cube, insertion, by joints or end effectors",
    ),
    "carla": Entry(
        "benchmark.carla:make_simulator",
        summary="a car on a route in a running CARLA server, which ROBOWIRE_CARLA=host:port names",
    ),
    "gymnasium": Entry(
        "benchmark.gymnasium_family:make_simulator",
        install="./setup_simulator.sh gymnasium",
        # SDL draws what MuJoCo does not.
        environ={
            "MUJOCO_GL": "osmesa",
            "SDL_VIDEODRIVER": "offscreen",
            "PYGAME_HIDE_SUPPORT_PROMPT": "1",
        },
        summary="every registered Gymnasium environment: classic_control, mujoco, fetch, metaworld ...",
    ),
    "highway": Entry(
        "benchmark.highway:make_simulator",
        install="./setup_simulator.sh driving",
        # "dummy", which servers without a screen are often told, gives black frames.
        environ={"SDL_VIDEODRIVER": "offscreen", "PYGAME_HIDE_SUPPORT_PROMPT": "1"},
        summary="highway-env's roads, driven by steer, throttle, brake: highway, merge, roundabout ...",
    ),
    "libero": Entry(
        "benchmark.libero:make_simulator",
        environ={"MUJOCO_GL": "osmesa"},
        summary="LIBERO's 130 tasks: libero_spatial, libero_object, libero_goal, libero_10, libero_90",
    ),
    "robosuite": Entry(
        "benchmark.robosuite:make_simulator",
        install="./setup_environment.sh",
        # Without a GPU, OSMesa and Mesa's EGL give the same images in the same time (12 ms a camera), but
        # EGL prints an error when the process ends. With a GPU, set MUJOCO_GL=egl: what is set already stays.
        environ={"MUJOCO_GL": "osmesa"},
        summary="robosuite's tasks for one arm or two (1.4 and 1.5): Lift, Door, PickPlace, TwoArmLift ...",
    ),
}
