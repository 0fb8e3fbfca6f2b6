"""Upstream checkpoints to linnet model files: `python3 -m export SOURCE -o OUT.gguf`."""
