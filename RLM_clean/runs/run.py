"""A run opened from its files, for notebooks: `load_run`."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from RLM_clean import init, measures, tasks
from RLM_clean.config import EXECUTION, Config, format_value
from RLM_clean.extras import needed
from RLM_clean.measures import Reference
from RLM_clean.models import gpt2
from RLM_clean.runs import columns, contents
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.tasks import Task

if TYPE_CHECKING:
    import pandas
    from transformer_lens.model_bridge import TransformerBridge


class Run:
    """A run opened from its files, finished or not: what `load_run` returns.

    Attributes:
        config: its options (Config), with the outname and the device of this machine, and resume='auto'.
        rlm: its language, with the rules of its files.
        dynamics: its records, one dict per evaluation: t, trainloss, testloss, testacc, excess, lr, seconds. Losses and
            excess are in nats. testloss and testacc are expectations on the contexts of `reference`; in runs of the
            first version they were measured on `test_batch(t)`.
        entropy: the lowest loss that any model can have, in nats.
        marginal: the lowest loss of a model that sees nothing, in nats.
        floors: H_k, the lowest loss of a model that sees the part k of its context, {k: (value, standard error)}, in
            nats: the last k tokens where x_n is predicted, see docs/tasks.md for the other tasks.
        contexts: on how many sampled contexts each floor rests, {k: number}; empty in runs of the first version.
        done: whether the run reached its end.
    """

    def __init__(self, outname: str | os.PathLike[str]) -> None:
        outname = os.fspath(outname)
        self.files = RunFiles(outname)
        if not self.files.config.exists() and outname.endswith('.pt'):  # the file that a run names at its end
            outname = outname.removesuffix('.pt')
            self.files = RunFiles(outname)
        if not self.files.config.exists():
            remedy = 'give the path of a run'
            if os.path.isfile(os.path.join(outname, 'sweep.json')):
                remedy = 'it is the folder of a sweep, which sweep.load opens; its runs are in it'
            raise ValueError(f'outname={outname!r} has no file {self.files.config}: {remedy}')
        stored = self.files.load_config()
        self.config = Config(**{**stored['config'], 'outname': outname, 'device': 'cpu', 'resume': 'auto'})
        self.entropy: float = stored['entropy']
        self.marginal: float = stored['marginal']
        self.floors: dict[int, tuple[float, float]] = stored['floors']
        self.contexts: dict[int, int] = stored.get('contexts', {})
        self.rlm = init.init_data(self.config, rules=stored['rules'])
        self._final = self.files.load_final() if self.files.final.exists() else None
        self.done = self._final is not None
        self.dynamics: list[Record] = self._final['output']['dynamics'] if self._final else self.files.read_log()

    def __repr__(self) -> str:
        """The run in a line: its name, the options that differ from their defaults, its steps, floor and last excess.

        Run('results/small'): num_features=32 lr=0.01; step 500 of 500, done; floor 1.2345, excess 0.0678 (nats)
        """
        differing = {name: value for name, value in self.config.changes().items() if name not in EXECUTION}
        changes = ' '.join(f'{name}={format_value(value)}' for name, value in differing.items())
        last = self.dynamics[-1] if self.dynamics else {'t': 0}
        excess = f', excess {last["excess"]:.4f}' if 'excess' in last else ''
        early = self._final is not None and self._final['output']['early_stop']
        status = 'not finished' if not self.done else 'stopped early' if early else 'done'
        return (
            f'Run({str(self.files.outname)!r}): {changes or "all options at their defaults"}; step {last["t"]} of '
            f'{self.config.last_step}, {status}; floor {self.entropy:.4f}{excess} (nats)'
        )

    def to_pandas(self) -> pandas.DataFrame:
        """The records as a data frame: a row for each, with the step `t` as its index.

        The columns are the keys of the records (docs/files.md); `bp` becomes bp_0, bp_1, ... `frame.attrs` holds what
        belongs to the run as a whole: `run` (its name), `config`, `entropy`, `marginal` and `floors`, and the `units`
        (nat, s) and `long_names` of the columns. Raises ModuleNotFoundError without pandas.
        """
        pandas = needed('pandas', by='to_pandas')
        names = [name for name in contents.RECORD if not name.endswith('?')]
        rows = [columns.flat(record) for record in self.dynamics]
        frame = pandas.DataFrame(rows, columns=list(dict.fromkeys([*names, *(n for row in rows for n in row)])))
        frame = frame.set_index('t')
        frame.attrs = {
            'run': str(self.files.outname),
            'config': self.config.to_dict(),
            'entropy': self.entropy,
            'marginal': self.marginal,
            'floors': self.floors,
            **columns.described(['t', *frame.columns]),
        }
        return frame

    @cached_property
    def task(self) -> Task:
        """What the model sees and predicts; `run.task.best(run.rlm, inputs)` is the exact best prediction."""
        return tasks.of(self.config)

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return self.files.steps()

    @property
    def best_step(self) -> int | None:
        """The step of the smallest excess (in runs of the first version, lowest test loss); None before the end."""
        return self._final['best']['step'] if self._final else None

    def model(self, step: int | str | None = None) -> nn.Module:
        """The model at a step with a checkpoint, by default the last one, or 'best'; in eval mode.

        Raises ValueError for a step that has no checkpoint, UnreadableFileError for weights of another model.
        """
        model = init.init_model(self.config)
        contents.load_weights(model, *self._weights(step))
        return model.eval()

    def hooked(self, step: int | str | None = None) -> TransformerBridge:
        """The model at a step, as in `model`, as a TransformerLens bridge, whose activations can be read and changed.

            logits, cache = run.hooked().run_with_cache(inputs)     # inputs (B, T) int64, logits (B, T, v)

        It is the GPT-2 of models/gpt2.py, in float32, without the tokens that text models put first. The logits are
        those of `model` to rounding; of a model with a single prediction they are at the last position. Raises
        ValueError for a model that GPT-2 cannot be, ModuleNotFoundError without transformer_lens.
        """
        model, whitened = gpt2.check(self.model(step), self.config.model), bool(self.config.whitening)
        needed('transformer_lens', by='hooked', extra='transformer-lens')
        from RLM_clean.runs import hooked

        words = gpt2.tokenizer(model.vocab_size)
        return hooked.bridge(gpt2.options(model, whitened), gpt2.weights(model, whitened), words)

    @cached_property
    def reference(self) -> Reference:
        """The contexts with exact posteriors on which records are measured; made when first used.

        run.reference.evaluate(run.model(step), run.logits) gives the loss, the accuracy and the excess of a model.
        Early records may have been measured on the first of the contexts alone: see `reference_at`.
        """
        return measures.reference(self.rlm, self.config.context_size, self.task)

    def reference_at(self, step: int) -> Reference:
        """The contexts that the record of a step is measured on (by earlier versions, always those of `reference`).

        All of them where the run ends, before that at most `init.record_contexts`.
        """
        last = self.done and step == self.dynamics[-1]['t']
        return self.reference if last else self.reference.part(init.record_contexts(step, self.config))

    def test_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Fresh sequences: batch number `step` of the test stream, test_size inputs with their targets.

        Runs of the first version measured the testloss and testacc of `step` on them.
        """
        batches = self.task.batches(self.rlm, self.config.window, step, 1, self.config.test_size, 'test')
        return batches[0][0], batches[1][0]

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The model's logits for the targets of the task, from token indices `(B, T)`, in the precision of the run."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.config.dtype == 'bfloat16'):
            return init.task_logits(model, inputs, self.config)

    def _weights(self, step: int | str | None) -> tuple[dict[str, Tensor], Path]:
        """The weights of a model and the file that holds them."""
        if step == 'best' and self._final:
            return self._final['best']['model'], self.files.final
        if self._final and step in (None, self._final['output']['step']):
            return self._final['model'], self.files.final
        if step is None and self.steps:
            step = self.steps[-1]
        steps = self.steps
        if step not in steps:
            raise ValueError(f'step={step!r} has no checkpoint: use one of {steps}')
        path = self.files.checkpoint(steps[steps.index(step)])  # a plain int, also for one of numpy
        return self.files.load_checkpoint(path)['model'], path


def load_run(outname: str | os.PathLike[str]) -> Run:
    """The run whose files are `{outname}_config.pt` and so on, finished or not.

        run = load_run('results/rlm_128L1_b2_ts32768_1')
        run.dynamics[-1]['testloss'], run.model(1024)

    Raises ValueError when there is no such run, UnreadableFileError when a file of it cannot be read.
    """
    return Run(outname)
