"""Flags of servers that record their sessions. Runs on Python 3.8."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from robowire.cli.parser import setting
from robowire.errors import ConfigurationError

if TYPE_CHECKING:
    from robowire.recording.recorder import FileRecorder

__all__ = ["RecordFlags"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordFlags:
    """Recording of sessions.

    Attributes:
        record: Folder for a file of each session's requests and replies; client.py replay sends them again,
            and --policy replay or --replay answers from them. Not recorded by default.
        record_max_mb: Megabytes of all files of this run together; then recording ends.
        record_images: Images in recordings: png loses nothing, jpeg is smaller, raw is quickest.
    """

    record: str | None = None
    # Ten minutes of two 96x96 cameras at 20 Hz are 300 MB as PNG.
    record_max_mb: float = 1000.0
    record_images: str = field(default="png", metadata=setting(choices=("png", "jpeg", "raw")))

    def recorder(self) -> FileRecorder | None:
        """Return the recorder of a server, which runs; ``None`` where nothing is to be recorded.

        Raises:
            ConfigurationError: The folder can't be written to.
            MissingDependency: Pillow is not installed.
        """
        if self.record is None:
            return None
        if not self.record_max_mb > 0:
            raise ConfigurationError(f"record_max_mb is {self.record_max_mb:g}, expected a positive number")
        from robowire.recording.recorder import FileRecorder  # servers only

        recorder = FileRecorder(
            self.record, max_bytes=int(self.record_max_mb * 1e6), images=self.record_images
        )
        logger.info("%s", recorder.describe())
        return recorder
