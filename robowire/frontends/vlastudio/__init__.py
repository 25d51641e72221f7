"""VLAStudio's HTTP wire: ``POST /inference`` and ``GET /health``."""
