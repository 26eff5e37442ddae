"""Tasks: what a model sees and predicts, with the exact best predictor of each."""

from RLM_clean.tasks.choice import TASKS, make, of
from RLM_clean.tasks.denoise import Denoise
from RLM_clean.tasks.masked import Masked
from RLM_clean.tasks.next_token import All, Last
from RLM_clean.tasks.root import Root
from RLM_clean.tasks.task import Contexts, Task, expected_loss

__all__ = ['TASKS', 'All', 'Contexts', 'Denoise', 'Last', 'Masked', 'Root', 'Task', 'expected_loss', 'make', 'of']
