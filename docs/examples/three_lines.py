"""Speed up a transformers script: three lines, and one to take them back.

python docs/examples/three_lines.py FOLDER "Once upon a time"
"""

import sys

from transformers import AutoTokenizer

import prosparse

folder, prompt = sys.argv[1:3]
# for a model you already have: prosparse.accelerate(model)
model = prosparse.AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
output = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=40, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))

prosparse.restore(model)
