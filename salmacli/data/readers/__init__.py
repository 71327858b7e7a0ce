"""One reader per official layout; ``salmacli.data.benchmarks.open_benchmark`` chooses."""
