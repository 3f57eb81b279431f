"""Scripts that measure; results go to benchmarks/results/<machine>/<bench>.jsonl, one JSON object a row."""
