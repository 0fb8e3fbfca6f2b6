"""Trains small models for linnet: python3 -m train CONFIG (docs/train.md)."""
