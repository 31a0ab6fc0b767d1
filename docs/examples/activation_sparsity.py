"""How sparse is a live model on your own text? Counted while it generates.

python docs/examples/activation_sparsity.py FOLDER "Once upon a time" "In the beginning"
"""

import sys

from transformers import AutoTokenizer

import prosparse

folder, prompts = sys.argv[1], sys.argv[2:]
model = prosparse.AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
for prompt in prompts:
    model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=40, do_sample=False)
    stats = prosparse.stats(model, reset=True)
    sparsity = stats["activation_sparsity"]
    print(f"{prompt!r}: {sparsity['mean']:.1%} of the neurons at exactly zero, {stats['decode_tokens']} tokens")
    for layer, share in enumerate(sparsity["layers"]):
        print(f"  layer {layer:2d} {share:6.1%} {'#' * round(40 * share)}")
