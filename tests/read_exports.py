"""What other programs make of exported models: run as a program, in a process of its own.

    python read_exports.py FOLDER

In each sub-folder of FOLDER it reads `exported` and the tokens `inputs.pt`, and writes `logits.pt`: the logits of
transformers and of TransformerLens at all positions, and then those of `Run.hooked`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Everything is on the disk: a look at the network would be an error.
os.environ['HF_HUB_OFFLINE'] = os.environ['TRANSFORMERS_OFFLINE'] = '1'


@torch.no_grad()
def read(folder: Path, inputs: Tensor) -> dict[str, Any]:
    """Logits and hidden activations of an exported model, and what its tokenizer makes of a text."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    words = AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), device='cpu')
    logits, cache = bridge.run_with_cache(inputs)
    return {
        'transformers': model.eval()(inputs).logits,
        'TransformerLens': logits,
        'patterns': cache['blocks.0.attn.hook_pattern'],
        'report': {name: list(keys) for name, keys in report.items()},
        'dtype': str(model.dtype),
        'tokens': words('2 0 7')['input_ids'],
        'text': words.decode([2, 0, 7]),
        'same matrix': model.lm_head.weight is model.transformer.wte.weight,
    }


@torch.no_grad()
def hook(outname: Path, inputs: Tensor) -> dict[str, Any]:
    """The same of `Run.hooked`, and its logits where the first block adds nothing."""
    from RLM_clean.runs import load_run

    run = load_run(outname)
    bridge = run.hooked()

    def remove(activation: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(activation)

    return {
        'hooked': bridge(inputs),
        'at the start': run.hooked(0)(inputs),
        'without a block': bridge.run_with_hooks(inputs, fwd_hooks=[('blocks.0.hook_attn_out', remove)]),
        'hooked tokens': bridge.to_tokens('2 0 7').tolist(),
        'hooked text': bridge.to_str_tokens(torch.tensor([2, 0, 7])),
    }


def main(root: Path) -> None:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    inputs = [torch.load(folder / 'inputs.pt') for folder in folders]
    found = [read(folder / 'exported', x) for folder, x in zip(folders, inputs, strict=True)]
    assert not any(name.startswith('RLM_clean') for name in sys.modules)
    for folder, x, of_others in zip(folders, inputs, found, strict=True):
        torch.save(of_others | hook(folder / 'run', x), folder / 'logits.pt')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
