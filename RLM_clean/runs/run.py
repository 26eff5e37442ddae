"""A run read from its files, to look at: `load_run`."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.storage import load


class Run:
    """A run read from its files, finished or not: what `load_run` returns.

    Attributes:
        config: its options (Config).
        rlm: its language, with the rules of its files.
        dynamics: its records, one dict an evaluation: t, trainloss, testloss, testacc, excess, lr, seconds.
        steps: the steps that have a checkpoint.
        entropy, marginal, floors: the lowest loss of any model and of one that sees nothing, and H(x_n | last k tokens)
            as {k: (value, standard error)}, in nats; None where they are not known.
        done: whether the run reached its end.
    """

    def __init__(self, outname: str | os.PathLike[str]) -> None:
        self.files = RunFiles(outname)
        if not self.files.config.exists():
            raise ValueError(f'outname={str(outname)!r} has no file {self.files.config}: give the path of a run')
        stored = self.files.load_config()
        # The machine that opens a run need not have the device that made it, nor a compiler.
        here = {'outname': str(outname), 'device': 'cpu', 'compile': 'auto', 'tensorboard': False}
        self.config = Config(**{**stored['config'], **here})
        self.entropy: float | None = stored['entropy']
        self.marginal: float | None = stored['marginal']
        self.floors: dict[int, tuple[float, float]] | None = stored['floors']
        self.rlm = init.init_data(self.config, rules=stored['rules'])
        self._final = self.files.load_final() if self.files.final.exists() else None
        self.done = self._final is not None
        self.dynamics: list[Record] = self._final['output']['dynamics'] if self._final else self.files.read_log()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return self.files.steps()

    @property
    def best_step(self) -> int | None:
        """The step of the lowest test loss; None before the run is done."""
        return self._final['best']['step'] if self._final else None

    def model(self, step: int | str | None = None) -> nn.Module:
        """The model at a step with a checkpoint, by default the last one, or 'best'; in eval mode.

        Raises ValueError for a step that has no checkpoint.
        """
        model = init.init_model(self.config)
        model.load_state_dict(self._weights(step))
        return model.eval()

    def test_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets on which the record of `step` was measured."""
        inputs, targets = self.rlm.batch(step, self.config.test_size, 'test')
        return init.select_task(inputs, targets, self.config)

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The model's logits for the task's targets, from token indices `(B, T)`, in the run's format and precision."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.config.dtype == 'bfloat16'):
            return init.task_logits(model, inputs, self.config)

    def _weights(self, step: int | str | None) -> dict[str, Tensor]:
        if step == 'best' and self._final:
            return self._final['best']['model']
        if self._final and step in (None, self._final['output']['step']):
            return self._final['model']
        if step is None and self.steps:
            step = self.steps[-1]
        if step not in self.steps:
            raise ValueError(f'step={step!r} has no checkpoint: use one of {self.steps}')
        assert isinstance(step, int)
        return load(self.files.checkpoint(step))['model']


def load_run(outname: str | os.PathLike[str]) -> Run:
    """The run whose files are `{outname}_config.pt` and so on, finished or not.

        run = load_run('results/rlm_128L1_b2_ts32768_1')
        run.dynamics[-1]['testloss'], run.model(1024)

    Raises ValueError when there is no such run, UnreadableFileError when a file of it cannot be read.
    """
    return Run(outname)
