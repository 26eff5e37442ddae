"""Languages: grammars on a binary tree, from which sequences are drawn."""

from RLM_clean.datasets.filtered import FilteredGrammar
from RLM_clean.datasets.random_hierarchy_model import RHM
from RLM_clean.datasets.random_language_model import RLM
from RLM_clean.datasets.tree_grammar import TreeGrammar
from RLM_clean.datasets.unambiguous import Unambiguous

__all__ = ['RHM', 'RLM', 'FilteredGrammar', 'TreeGrammar', 'Unambiguous']
