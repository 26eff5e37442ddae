"""The import path of the first version: see `RLM_clean.runs`."""

from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import Run, load_run
from RLM_clean.runs.storage import UnreadableFileError, load, save

__all__ = ['Run', 'RunFiles', 'UnreadableFileError', 'load', 'load_run', 'save']
