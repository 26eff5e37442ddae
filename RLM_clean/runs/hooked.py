"""A GPT-2 with hooks: what `Run.hooked` returns, made by TransformerLens. Imported only where it is installed."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from RLM_clean.models import gpt2


def bridge(options: dict[str, Any], weights: dict[str, Tensor], tokenizer: dict[str, Any]) -> TransformerBridge:
    """The bridge of a GPT-2 with these options, weights and tokenizer, as models/gpt2.py makes them; on the CPU.

    Nothing is read from the disk or from the network.
    """
    model = GPT2LMHeadModel(GPT2Config(**options))
    tied = {'lm_head.weight'} if options['tie_word_embeddings'] else set()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) == tied and not unexpected
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer)), unk_token=gpt2.UNKNOWN)
    hooked = TransformerBridge.boot_transformers('gpt2', hf_model=model.eval(), tokenizer=words, device='cpu')
    # By default a text gets a first token of its own, which this language does not have.
    hooked.cfg.default_prepend_bos = False
    return hooked
