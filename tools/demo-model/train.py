"""Trains the demo model and writes it as a Qwen2.5-style checkpoint.

    python tokenizer.py ../../examples/demo-model
    python train.py ../../examples/demo-model

Training data is generated on the fly from `corpus.py`, so no conversation is
seen twice by plan. All randomness comes from --seed; the number of threads still
changes the order of float sums, and with it the last bits of the weights.
"""

import argparse
import json
import pathlib
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

import corpus
from tokenizer import renderer

# Every row of every matrix is 256 or 512 long, so that all GGUF block formats
# (blocks of up to 256) fit. Depth is preferred over width: copying and carrying
# need several steps one after the other. The last vocabulary rows stay unused,
# as in the published checkpoints.
SHAPE = dict(
    vocab_size=1536,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
)

MAX_TOKENS = 512  # longer conversations are dropped
MICRO_TOKENS = 1024  # padded tokens per forward pass; more only means more padding
DOCUMENTS = 0.2  # share of plain documents
OTHER_WEIGHT = 0.1  # loss weight of tokens that are not the assistant's


class Encoder:
    """Turns conversations into token ids and loss weights."""

    def __init__(self, folder):
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.render = renderer()
        self.end = self.tok.token_to_id("<|im_end|>")
        self.eot = self.tok.token_to_id("<|endoftext|>")
        (self.equals,), (self.stop,) = self.tok.encode(" =").ids, self.tok.encode(".").ids
        self.opening = self.tok.encode("<|im_start|>assistant\n").ids

    def conversation(self, talk):
        """(ids, weights); a weight belongs to the token as a target."""
        ids = self.tok.encode(self.render(talk)).ids
        weights = [OTHER_WEIGHT] * len(ids)
        n, i = len(self.opening), 0
        while i < len(ids):
            if ids[i : i + n] != self.opening:
                i += 1
                continue
            i += n
            while True:
                weights[i] = 1.0
                i += 1
                if ids[i - 1] == self.end:
                    break
        return ids, weights

    def document(self, text):
        """The same for plain text. The operands of sums are drawn by lot, there is
        nothing to learn in them: only their results have full weight."""
        ids = self.tok.encode(text).ids + [self.eot]
        weights, full = [], self.equals not in ids
        for id in ids:
            weights.append(1.0 if full or id == self.eot else OTHER_WEIGHT)
            if self.equals in ids:
                full = id == self.equals or (full and id != self.stop)
        return ids, weights

    def question(self, question):
        """(prompt ids, answer ids) of a test question with its right answer."""
        expect = question["expect"]
        if isinstance(expect, str):
            answer = {"role": "assistant", "content": expect}
        elif "json" in expect:
            answer = {"role": "assistant", "content": json.dumps(expect["json"])}
        else:
            answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": expect["tool_call"]}]}
        prompt = self.tok.encode(self.render(question, add_generation_prompt=True)).ids
        whole = self.tok.encode(self.render({**question, "messages": question["messages"] + [answer]})).ids
        return prompt, whole[len(prompt) : -1]  # without the newline after the end token


def micro_batches(encoder, rng, step_tokens):
    """The padded (ids, targets, weights) batches of one optimiser step.

    A step mixes all sorts of conversations; inside the step they are sorted by
    length, so that little is spent on padding.
    """
    rows, total = [], 0
    while total < step_tokens:
        if rng.random() < DOCUMENTS:
            row = encoder.document(corpus.document(rng))
        else:
            row = encoder.conversation(corpus.conversation(rng))
        if len(row[0]) <= MAX_TOKENS:
            rows.append(row)
            total += len(row[0])
    rows.sort(key=lambda row: len(row[0]))
    group = []
    for row in rows:
        if group and (len(group) + 1) * len(row[0]) > MICRO_TOKENS:
            yield _pad(group)
            group = []
        group.append(row)
    yield _pad(group)


def _pad(rows):
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    for i, (row, weight) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(weight)
    # Padding stands on the right, so the causal mask alone keeps it unseen.
    return ids[:, :-1], ids[:, 1:], weights[:, 1:]


def exact(model, encoder, questions):
    """Share of questions that greedy decoding answers exactly, per category.

    One forward pass each: if every token of the right answer is the most likely
    one given those before it, greedy decoding produces that very answer.
    """
    model.eval()
    right, seen = {}, {}
    with torch.no_grad():
        for question in questions:
            prompt, answer = encoder.question(question)
            logits = model(input_ids=torch.tensor([prompt + answer[:-1]]), use_cache=False).logits[0]
            ok = logits[len(prompt) - 1 :].argmax(-1).tolist() == answer
            category = question["category"]
            right[category] = right.get(category, 0) + ok
            seen[category] = seen.get(category, 0) + 1
    model.train()
    return sum(right.values()) / len(questions), {c: f"{right[c]}/{seen[c]}" for c in seen}


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal first (Muon), in `dtype`.

    PyTorch's own computes in bf16 always, which CPUs without bf16 matrix units do
    at half the speed of f32.
    """

    def __init__(self, params, lr, dtype, momentum=0.95, weight_decay=0.05):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                mean = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(mean, group["momentum"]).to(self.dtype))
                # Scaled to the size of an AdamW update: one rate serves both.
                scale = 0.2 * max(p.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix, steps=5):
    """Pushes all singular values towards 1 by Newton-Schulz iterations."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def optimisers(model, lr, dtype):
    """Muon for the matrices of the layers (it needs far fewer steps than AdamW
    here), AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=lr, dtype=dtype),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step, steps, warm_up, decay):
    """Share of the full learning rate: warm-up, plateau, linear decay to zero."""
    return min(1.0, (step + 1) / warm_up, (steps - step) / (decay * steps))


def write_checkpoint(model, encoder, folder):
    """config.json, generation_config.json and bf16 weights in published form."""
    end, eot = encoder.end, encoder.eot
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": eot,
        "eos_token_id": end,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": SHAPE["num_hidden_layers"],
        "model_type": "qwen2",
        "sliding_window": SHAPE["max_position_embeddings"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        **SHAPE,
    }
    generation = {
        "bos_token_id": eot,
        "do_sample": False,
        "eos_token_id": [end, eot],
        "max_new_tokens": 256,
        "pad_token_id": eot,
        "transformers_version": "4.43.1",
    }
    (folder / "config.json").write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {n: t.to(torch.bfloat16).contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folder", type=pathlib.Path, help="holds tokenizer.json, receives the checkpoint")
    args.add_argument("--steps", type=int, default=2000)
    args.add_argument("--step-tokens", type=int, default=4000)
    args.add_argument("--lr", type=float, default=2e-3)
    args.add_argument("--warm-up", type=int, default=60)
    args.add_argument("--decay", type=float, default=0.4, help="share of the steps with falling rate")
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--check-every", type=int, default=200)
    args.add_argument("--bf16", action="store_true", help="products in bf16: faster where the CPU has them")
    args.add_argument("--go-on", action="store_true", help="start from the weights that the folder holds")
    args.add_argument("--state", type=pathlib.Path, help="where to keep the training state, to go on after a stop")
    args = args.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    encoder = Encoder(args.folder)
    # Plain attention: the fused one is slower on short sequences.
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, attn_implementation="eager"))
    if args.go_on:
        model.load_state_dict(load_file(args.folder / "model.safetensors"), strict=False)
        model.tie_weights()
    model.train()
    opts = optimisers(model, args.lr, torch.bfloat16 if args.bf16 else torch.float32)
    # Other questions than those of the final test, from the same unseen split.
    dev = corpus.questions(seed=7, counts={c: 4 * n for c, n in corpus.QUESTIONS.items()})

    first, spent = 0, 0.0
    if args.state and args.state.exists():
        state = torch.load(args.state)
        first, spent = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"]):
            opt.load_state_dict(saved)

    start = time.time() - spent
    tokens, loss_sum = 0, 0.0
    for step in range(first, args.steps):
        factor = rate(step, args.steps, args.warm_up, args.decay)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.lr * factor
        # A generator per step: a resumed run sees the data of an unbroken one.
        batches = list(micro_batches(encoder, random.Random(f"{args.seed}:{step}"), args.step_tokens))
        weight = sum(w.sum() for _, _, w in batches)
        for ids, targets, weights in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = model(input_ids=ids, use_cache=False).logits
            losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
            loss = (losses * weights.flatten()).sum() / weight
            loss.backward()
            loss_sum += loss.item()
            tokens += ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)

        done = step + 1
        if done % 20 == 0:
            seconds = time.time() - start
            print(f"step {done} loss {loss_sum / 20:.4f} rate {factor:.3f} tokens {tokens} seconds {seconds:.0f}", flush=True)
            loss_sum = 0.0
        if done % args.check_every == 0 or done == args.steps:
            score, parts = exact(model, encoder, dev)
            print(f"step {done} unseen questions right {score:.3f} {parts}", flush=True)
            if args.state:
                torch.save({"step": done, "seconds": time.time() - start, "model": model.state_dict(),
                            "opts": [opt.state_dict() for opt in opts]}, args.state)
            write_checkpoint(model, encoder, args.folder)


if __name__ == "__main__":
    main()
