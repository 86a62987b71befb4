"""A plan in words, as JSON, as a chart, and beside what a running vLLM said."""
