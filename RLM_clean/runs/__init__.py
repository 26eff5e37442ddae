"""The files of a run: how they are written, read, locked, and opened again."""

from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import Run, load_run
from RLM_clean.runs.storage import UnreadableFileError

__all__ = ['Run', 'RunFiles', 'UnreadableFileError', 'load_run']
