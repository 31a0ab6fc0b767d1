"""The same model with its weights rounded to int8 or int4: how much memory, and how far from the original?

python docs/examples/quantised.py FOLDER "Once upon a time" int4
"""

import sys

import torch
from transformers import AutoTokenizer

import prosparse

folder, prompt, weights = sys.argv[1:4]
model = prosparse.AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")


def megabytes() -> float:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values()) / 1e6


@torch.no_grad()
def logits() -> torch.Tensor:
    return model(**inputs).logits.float()


before, original = megabytes(), logits()
prosparse.accelerate(model, weights=weights, linears=True)  # drops the original weights
output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
kl = torch.nn.functional.kl_div(logits().log_softmax(-1), original.log_softmax(-1), log_target=True, reduction="none")
print(f"{before:.1f} MB before, {megabytes():.1f} MB in {weights}; KL divergence {kl.sum(-1).mean():.4f} nats a token")
