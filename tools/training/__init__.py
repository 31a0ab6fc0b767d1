"""Training small ReLU-sparse LLaMA models from a folder of text: the parts of tools/train_embedded.py."""
