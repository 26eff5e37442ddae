"""How transformers learn hierarchical language: the Random Language Model, exact floors, seeded training runs."""

__version__ = '2.0.0'
