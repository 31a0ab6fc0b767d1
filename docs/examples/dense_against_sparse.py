"""The same model before and after accelerate: same tokens? how much faster?

python docs/examples/dense_against_sparse.py FOLDER "Once upon a time" 64 [float32]

In bfloat16 transformers rounds gate and up where our kernels do not, so a near tie may fall to the other side.
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prosparse

folder, prompt, new_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
dtype = sys.argv[4] if len(sys.argv) > 4 else "auto"
with prosparse.patched():  # also opens MiniCPM, ProSparse and Bamboo folders
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
inputs = tokenizer(prompt, return_tensors="pt")


def generate() -> tuple[torch.Tensor, float]:
    model.generate(**inputs, max_new_tokens=2)  # warm up
    start = time.perf_counter()
    ids = model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    return ids, new_tokens / (time.perf_counter() - start)


sparse, sparse_speed = generate()
prosparse.restore(model)
dense, dense_speed = generate()
differs = (dense != sparse)[0, inputs["input_ids"].shape[1] :].nonzero().flatten().tolist()
print(f"same tokens: {not differs}")
if differs:
    print(f"the first other one is new token {differs[0] + 1}: {model.dtype} rounds; try float32 as the last argument")
print(f"dense {dense_speed:.1f} tokens/s, sparse {sparse_speed:.1f} tokens/s, ratio {sparse_speed / dense_speed:.2f}")
