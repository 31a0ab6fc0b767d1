"""How close does model.generate() come to what the FFN's speed-up allows (Amdahl)?

    limit = T / (T - F + S)     T: a dense token, F: its FFNs, S: the same FFNs on our kernels, called by themselves

All in one run, dense and sparse taking turns, on MiniCPM-S-1B's shape with random weights whose gates are open for a
chosen share of the neurons.

    python docs/examples/amdahl.py --layers 52 --tokens 32 --rounds 5
"""

import argparse
import statistics
import time
from typing import Any

import torch

import prosparse
from prosparse.hf.minicpm import MiniCPMConfig

THRESHOLD = 0.03  # of MiniCPM-S-1B


def make_model(layers: int, vocab: int, activation_sparsity: float) -> Any:
    config = MiniCPMConfig(
        hidden_size=1536, intermediate_size=3840, num_hidden_layers=layers, num_attention_heads=24,
        num_key_value_heads=8, vocab_size=vocab, max_position_embeddings=4096, rms_norm_eps=1e-5, hidden_act="fatrelu",
        hidden_act_param=THRESHOLD, scale_emb=12, scale_depth=1.4, dim_model_base=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = prosparse.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # a normed input has mean square 1, so a gate is normal with deviation `std * sqrt(hidden)`
    std = THRESHOLD / torch.distributions.Normal(0, 1).icdf(torch.tensor(activation_sparsity)) / 1536**0.5
    for layer in model.model.layers:
        layer.mlp.gate_proj.weight.data.normal_(0, float(std))
    return model


def seconds_per_token(model: Any, tokens: int) -> float:
    prompt = torch.arange(32)[None]
    times = []
    for new_tokens in (2, tokens + 2):
        start = time.perf_counter()
        model.generate(prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / tokens


@torch.no_grad()
def ffn_seconds_per_token(model: Any, passes: int = 8) -> float:
    """All FFNs after each other, so that every pass reads every layer's weights from memory."""
    x = torch.randn(1, 1, 1536).to(torch.bfloat16)
    for n in range(passes + 1):
        if n == 1:  # the first pass warms up
            start = time.perf_counter()
        for layer in model.model.layers:
            layer.mlp(x)
    return (time.perf_counter() - start) / passes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=52)
    parser.add_argument("--vocab", type=int, default=73440)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--activation-sparsity", type=float, default=0.88)
    options = parser.parse_args()
    model = make_model(options.layers, options.vocab, options.activation_sparsity)
    samples: dict[str, list[float]] = {"dense": [], "dense FFN": [], "sparse": [], "sparse FFN": []}
    for _ in range(options.rounds):
        prosparse.restore(model)
        samples["dense"].append(seconds_per_token(model, options.tokens))
        samples["dense FFN"].append(ffn_seconds_per_token(model))
        prosparse.accelerate(model)
        samples["sparse FFN"].append(ffn_seconds_per_token(model))
        prosparse.stats(model, reset=True)
        samples["sparse"].append(seconds_per_token(model, options.tokens))
    ms = {name: 1000 * statistics.median(times) for name, times in samples.items()}
    limit = ms["dense"] / (ms["dense"] - ms["dense FFN"] + ms["sparse FFN"])
    ratio = ms["dense"] / ms["sparse"]
    print("ms per token: " + ", ".join(f"{name} {time:.1f}" for name, time in ms.items()))
    print(f"activation sparsity {prosparse.stats(model)['activation_sparsity']['mean']:.1%}, {model.dtype}")
    share = ms["dense FFN"] / ms["dense"]
    print(f"FFN share {share:.1%}, limit {limit:.2f}x, measured {ratio:.2f}x = {ratio / limit:.0%}")


if __name__ == "__main__":
    main()
