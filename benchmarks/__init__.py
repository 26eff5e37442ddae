"""What things cost: `python -m benchmarks.run`. docs/benchmarks.md has the figures."""
