"""Linearizing a trained Llama: attention by feature maps, a window and sinks (docs/linearize.md)."""
