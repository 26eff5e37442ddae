"""How transformers learn hierarchical language: the Random Language Model, exact floors, seeded training runs."""

__version__ = '0.1.0'
