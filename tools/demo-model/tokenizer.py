"""Trains the byte-level BPE of the demo model and writes its tokenizer files.

The structure is that of Qwen2.5: NFC, the same split pattern (digits stand
alone), byte-level BPE, control tokens after the learned vocabulary.

    python tokenizer.py ../../examples/demo-model
"""

import json
import pathlib
import random
import sys

import jinja2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import corpus

SEED = 1
CONVERSATIONS = 30_000
BPE_SIZE = 1520

# Qwen2.5's published split pattern.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# content -> special, in id order. As upstream, the tool tags are ordinary
# (visible) tokens and the other three are special.
CONTROL = {"<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<tool_call>": False, "</tool_call>": False}

TEMPLATE = pathlib.Path(__file__).with_name("chat_template.jinja").read_text().rstrip("\n")


def renderer():
    """A function that renders a conversation through the chat template."""
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    # Jinja's own tojson escapes for HTML; models are shown plain JSON.
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = env.from_string(TEMPLATE)
    return lambda talk, **extra: template.render(messages=talk["messages"], tools=talk.get("tools"), **extra)


def _texts(rng):
    """Training text for the BPE, cut at the control tokens: they never merge."""
    render = renderer()
    for _ in range(CONVERSATIONS):
        text = render(corpus.conversation(rng))
        for control in CONTROL:
            text = text.replace(control, "\0")
        yield from text.split("\0")
        yield corpus.document(rng)


def train():
    """The tokenizer.json content."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False)
    tok.train_from_iterator(_texts(random.Random(SEED)), trainer)

    data = json.loads(tok.to_str())
    model = data["model"]
    # Upstream's file predates newer fields: keep its form, so that old readers
    # load this one too.
    model.pop("ignore_merges", None)
    model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    model["continuing_subword_prefix"] = model["end_of_word_suffix"] = ""
    data["added_tokens"] = [
        {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        for id, text, special in _control_ids(len(model["vocab"]))
    ]
    return data


def _control_ids(first):
    return [(first + i, text, special) for i, (text, special) in enumerate(CONTROL.items())]


def tokenizer_config(first):
    """The tokenizer_config.json content, `first` being the first control id."""
    decoder = {
        str(id): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special}
        for id, text, special in _control_ids(first)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    data = train()
    config = tokenizer_config(len(data["model"]["vocab"]))
    (out / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")
    print(len(data["model"]["vocab"]), "learned tokens and", len(CONTROL), "control tokens")


if __name__ == "__main__":
    main()
