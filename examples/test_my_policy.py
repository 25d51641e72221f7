"""Whether ``my_policy.py`` keeps what the server and its clients rely on: ``pytest test_my_policy.py``."""

from my_policy import make_policy

from robowire.testing import PolicyContract


class TestMyPolicy(PolicyContract):
    """Every test comes from the contract."""

    make_policy = make_policy
