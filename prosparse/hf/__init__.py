"""The door to Hugging Face transformers: its models on our kernels, and models of this family that it cannot open."""

from .activation import FATReLU
from .live import accelerate, restore, stats
from .patched import AutoModelForCausalLM, patched, register

__all__ = ["AutoModelForCausalLM", "FATReLU", "accelerate", "patched", "register", "restore", "stats"]
