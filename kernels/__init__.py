"""The arithmetic of prosparse: one file per op, installed as `prosparse.kernels`.

`kernels/<op>.py` says what an op means (checks, reference in plain PyTorch, registration), `kernels/cpu/` holds its
C++ kernel. Nothing is imported here: with a checkout's root on `sys.path`, transformers runs this file as if it were
Hugging Face's package of the same name.
"""
