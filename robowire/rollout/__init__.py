"""The closed loop: a policy server's actions run on a simulator server, counted, filmed, written down."""
