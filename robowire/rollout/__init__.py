"""The closed loop: a policy server's actions run on a simulator server; results and videos are kept."""
