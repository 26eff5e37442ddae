"""Models: causal transformers and a fully connected baseline."""

from RLM_clean.models.fcn import MLP
from RLM_clean.models.transformer import CLM, MLM, num_parameters, set_dropout_key

__all__ = ['CLM', 'MLM', 'MLP', 'num_parameters', 'set_dropout_key']
