"""Asks a checkpoint the unseen questions and counts the right answers.

    python evaluate.py ../../examples/demo-model ../../tests/data/demo_questions.json

The weights are used as stored (bf16) with greedy decoding and the chat template
of the folder; --float32 computes in f32 from the same weights.
"""

import argparse
import collections
import json
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CALL = re.compile(r"<tool_call>\n(.*)\n</tool_call>", re.DOTALL)


def judge(expect, answer):
    """Whether `answer` is what tests/data/README.md calls right."""
    if isinstance(expect, str):
        return answer == expect
    try:
        if "json" in expect:
            return json.loads(answer) == expect["json"]
        found = CALL.fullmatch(answer)
        return bool(found) and json.loads(found[1]) == expect["tool_call"]
    except json.JSONDecodeError:
        return False


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folder")
    args.add_argument("questions")
    args.add_argument("--float32", action="store_true")
    args.add_argument("--threads", type=int, default=1)
    args = args.parse_args()

    torch.set_num_threads(args.threads)
    tok = AutoTokenizer.from_pretrained(args.folder)
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32 if args.float32 else torch.bfloat16)
    end = tok.convert_tokens_to_ids("<|im_end|>")
    with open(args.questions) as file:
        questions = json.load(file)

    right, seen = collections.Counter(), collections.Counter()
    for number, question in enumerate(questions):
        prompt = tok.apply_chat_template(
            question["messages"], tools=question.get("tools"), add_generation_prompt=True, tokenize=False)
        inputs = tok(prompt, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=96, do_sample=False)[0, inputs.input_ids.shape[1] :].tolist()
        # An answer that does not stop by itself is wrong whatever it says.
        stopped = out[-1] == end
        answer = tok.decode(out[:-1] if stopped else out)
        ok = stopped and judge(question["expect"], answer)
        category = question["category"]
        right[category] += ok
        seen[category] += 1
        if not ok:
            print(f"{number}: {question['messages'][-1]['content']!r}\n  expected {question['expect']!r}\n  answered {answer!r}")
    for category in seen:
        print(f"{category}: {right[category]} of {seen[category]}")
    print(f"{sum(right.values())} of {len(questions)} right")


if __name__ == "__main__":
    main()
