"""Models: transformers, and networks that are fully connected, convolutional, locally connected and recurrent."""

from RLM_clean.models.cnn import CNN
from RLM_clean.models.fcn import MLP
from RLM_clean.models.gru import GRU
from RLM_clean.models.layers import num_parameters, set_dropout_key
from RLM_clean.models.lcn import LCN
from RLM_clean.models.transformer import BERT, CLM, MLM

__all__ = ['BERT', 'CLM', 'CNN', 'GRU', 'LCN', 'MLM', 'MLP', 'num_parameters', 'set_dropout_key']
