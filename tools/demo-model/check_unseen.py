"""Proves on the real data that no test question occurs in training.

    python check_unseen.py ../../examples/demo-model ../../tests/data/demo_questions.json

Generates the training stream of `train.py` again and looks in it for every
question's conversation (with any tools), and for the answers of sums and JSON
questions, which must not occur anywhere either. `corpus.py` keeps both apart by
construction; this catches a mistake there.
"""

import argparse
import json
import pathlib
import random
import sys

import train


class Watcher(train.Encoder):
    """An encoder that looks for the test questions in what it encodes."""

    def __init__(self, folder, questions):
        super().__init__(folder)
        self.talks = {json.dumps(q["messages"]): i for i, q in enumerate(questions)}
        self.answers = {}
        for i, q in enumerate(questions):
            if q["category"] == "sum" and "=" in q["expect"]:
                self.answers[q["expect"]] = i
            elif q["category"] == "json":
                self.answers[json.dumps(q["expect"]["json"])] = i
        self.seen, self.hits = 0, set()

    def conversation(self, talk):
        self.seen += 1
        messages = talk["messages"]
        for i, message in enumerate(messages):
            if message["role"] in ("user", "tool"):
                self.hits.add(self.talks.get(json.dumps(messages[: i + 1])))
            else:
                self.hits.add(self.answers.get(message["content"]))
        return super().conversation(talk)

    def document(self, text):
        for sentence in text.split(". "):
            self.hits.add(self.answers.get(sentence.rstrip(".") + "."))
        return super().document(text)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folder", type=pathlib.Path)
    args.add_argument("questions")
    args.add_argument("--steps", type=int, default=2000)
    args.add_argument("--step-tokens", type=int, default=4000)
    args.add_argument("--seed", type=int, default=1)
    args = args.parse_args()

    with open(args.questions) as file:
        watcher = Watcher(args.folder, json.load(file))
    for step in range(args.steps):
        for _ in train.micro_batches(watcher, random.Random(f"{args.seed}:{step}"), args.step_tokens):
            pass
    watcher.hits.discard(None)
    print(f"{watcher.seen} training conversations, {len(watcher.hits)} test questions among them", sorted(watcher.hits))
    sys.exit(bool(watcher.hits))


if __name__ == "__main__":
    main()
