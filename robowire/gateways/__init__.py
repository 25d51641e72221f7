"""Other wires and interfaces in front of the same servers. Each needs an extra of its own."""
