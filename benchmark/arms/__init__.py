"""What families of simulated arms share: robosuite's commands and snapshots, and images of MuJoCo models."""
