"""Whether ``my_simulator.py`` keeps what its clients rely on: ``pytest test_my_simulator.py``."""

from my_simulator import make_simulator

from robowire.testing import SimulatorContract


class TestMySimulator(SimulatorContract):
    """Every test comes from the contract."""

    make_simulator = make_simulator
    task_name = "reach"
