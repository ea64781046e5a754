"""Generates the conversations that the demo model is trained and tested on.

Every conversation is put together from small acts (a greeting, a sum, a fact, a
tool call ...). Each act that can be asked in a test has a key, for instance
"arith:+:23:45", and the hash of the key decides once and for all whether it
belongs to training or to testing. `conversation` only ever draws training keys
and `question` asks test keys, so no test question can occur in training.

    python corpus.py questions > ../../tests/data/demo_questions.json
    python corpus.py sample 20
"""

import hashlib
import json
import random
import sys

import facts
import tools

TEST_PERCENT = 6

TERSE = ["You are terse.", "Be brief.", "Answer briefly.", "Keep your answers short.",
         "Answer in as few words as possible.", "You are a terse assistant."]
PIRATE = ["You are a pirate.", "Talk like a pirate.", "You are a friendly pirate."]
EXTRACT = ["Turn every sentence into JSON.", "Answer only with JSON.", "You write sentences as JSON."]
PLAIN = ["You are a helpful assistant.", "You are a friendly assistant.", "Answer the user.",
         "You are an assistant.", "Help the user.", "You are a demo.", "Be helpful.", "You are polite."]
TRAITS = "helpful friendly kind clever patient careful brave calm good small wise cheerful".split()
ROLES = "assistant teacher helper robot guide librarian friend cook gardener tutor clerk bot".split()

HELLO = ["Hi", "Hello", "Hey", "Good morning", "Good evening", "Hi there", "Hello there", "Good afternoon",
         "Greetings", "Good day"]
SMALL_TALK = {
    "mood": (["How are you?", "How are you doing?", "Are you well?", "How do you feel?", "How is it going?",
              "How are you today?"],
             "I am fine, thank you.", "Fine."),
    "skills": (["What can you do?", "What do you know?", "How can you help me?", "What are you able to do?",
                "What can I ask you?", "Help"],
               "I can chat a little, add and subtract, answer simple questions, write JSON and call tools.",
               "Chat, sums, facts, JSON, tools."),
    "human": (["Are you human?", "Are you a person?", "Are you a robot?", "Are you real?", "Are you a machine?",
               "Are you an AI?"],
              "I am a small computer program.", "A program."),
    "joke": (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "A joke, please.", "Say something funny.",
              "Can you tell a joke?"],
             "Why did the cow ring the bell? Because its horn was broken.", "Moo."),
    "thanks": (["Thanks!", "Thank you.", "Thank you very much.", "Thanks a lot!", "Great, thank you.", "Thank you!"],
               "You are welcome!", "Welcome."),
    "ok": (["OK.", "Good.", "Nice.", "Great!", "I see.", "Cool."],
           "What else would you like to know?", "What else?"),
}
WHO = ["Who are you?", "What is your name?", "What are you?", "What's your name?", "Tell me who you are.",
       "Do you have a name?", "What are you called?"]
BYE = ["Bye!", "Goodbye.", "See you later.", "Bye bye.", "I have to go now.", "See you!"]

SELF = "I am the demo model of qwen-rs, a very small language model."

# What a user can tell about himself. "{v}" is the value, "{w}" the second one
# where a slot has two (a pet has a kind and a name).
SLOTS = {
    "name": {
        "tell": ["My name is {v}.", "I am {v}.", "I'm {v}.", "Call me {v}.", "Hi, I am {v}.", "Hello, my name is {v}.",
                 "Hello! I am {v}.", "Hi, my name is {v}!"],
        "reply": ("Nice to meet you, {v}.", "Hello, {v}."),
        "ask": ["What is my name?", "Who am I?", "Do you remember my name?", "What's my name?", "Tell me my name.",
                "What am I called?", "Do you know my name?", "What was my name again?"],
        "answer": ("Your name is {v}.", "{v}."),
        "unknown": "You have not told me your name.",
    },
    "city": {
        "tell": ["I live in {v}.", "My home is in {v}.", "I am from {v}.", "My city is {v}."],
        "reply": ("{v} must be a nice place.", "Noted."),
        "ask": ["Where do I live?", "Which city do I live in?", "Do you remember where I live?", "Where am I from?",
                "Tell me where I live.", "Where is my home?"],
        "answer": ("You live in {v}.", "{v}."),
        "unknown": "You have not told me where you live.",
    },
    "colour": {
        "tell": ["My favourite colour is {v}.", "I like {v} best of all colours.", "The colour I like best is {v}.",
                 "My favorite color is {v}."],
        "reply": ("{V} is a nice colour.", "Noted."),
        "ask": ["What is my favourite colour?", "Which colour do I like best?", "Do you remember my favourite colour?",
                "What's my favorite color?", "Tell me my favourite colour.", "What colour do I like?"],
        "answer": ("Your favourite colour is {v}.", "{V}."),
        "unknown": "You have not told me your favourite colour.",
    },
    "food": {
        "tell": ["My favourite food is {v}.", "I love to eat {v}.", "I like {v} best of all food.",
                 "The food I like best is {v}."],
        "reply": ("I hear that {v} is good.", "Noted."),
        "ask": ["What is my favourite food?", "What do I like to eat?", "Which food do I like best?",
                "Do you remember my favourite food?", "Tell me my favourite food.", "What's my favorite food?"],
        "answer": ("Your favourite food is {v}.", "{V}."),
        "unknown": "You have not told me your favourite food.",
    },
    "age": {
        "tell": ["I am {v} years old.", "My age is {v}.", "I'm {v} years old.", "I turned {v} this year."],
        "reply": ("{v} is a good age.", "Noted."),
        "ask": ["How old am I?", "What is my age?", "Do you remember my age?", "Tell me my age.",
                "Do you know how old I am?", "What's my age?"],
        "answer": ("You are {v} years old.", "{v}."),
        "unknown": "You have not told me your age.",
    },
    "job": {
        "tell": ["I work as a {v}.", "I am a {v} by trade.", "I am a {v}.", "I earn my money as a {v}."],
        "reply": ("Being a {v} must be interesting.", "Noted."),
        "ask": ["What is my job?", "What do I work as?", "What do I do for a living?", "Do you remember my job?",
                "Tell me my job.", "What's my job?"],
        "answer": ("You work as a {v}.", "A {v}."),
        "unknown": "You have not told me your job.",
    },
    "pet": {
        "tell": ["I have a {v} called {w}.", "My {v} is called {w}.", "My {v}'s name is {w}.", "I have a {v} named {w}.",
                 "I own a {v}. Its name is {w}."],
        "reply": ("{w} is a nice name for a {v}.", "Noted."),
        "ask": ["What is my {v} called?", "What is the name of my {v}?", "What's my {v}'s name?",
                "Do you remember the name of my {v}?", "Which pet do I have?", "What is my pet called?",
                "Tell me about my pet.", "What animal do I have?"],
        "answer": ("You have a {v} called {w}.", "{w}, a {v}."),
        "unknown": "You have not told me about your pet.",
    },
    "number": {
        "tell": ["Remember the number {v}.", "Please remember {v}.", "Keep the number {v} in mind.",
                 "My lucky number is {v}."],
        "reply": ("I will remember {v}.", "Noted."),
        "ask": ["Which number did I tell you?", "What was the number?", "Do you remember the number?",
                "Tell me the number again.", "What is my number?", "Which number should you remember?"],
        "answer": ("The number is {v}.", "{v}."),
        "unknown": "You have not told me a number.",
    },
}

ADD = ["What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a}+{b}=", "What is {a} plus {b}?",
       "Calculate {a} + {b}.", "How much is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?",
       "What's {a} + {b}?", "{a} plus {b}", "How much is {a} + {b}?", "What is {a}+{b}?"]
SUB = ["What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "{a}-{b}=", "What is {a} minus {b}?",
       "Calculate {a} - {b}.", "How much is {a} minus {b}?", "Subtract {b} from {a}.", "Take {b} away from {a}.",
       "What's {a} - {b}?", "{a} minus {b}", "How much is {a} - {b}?", "What is {a}-{b}?"]
MORE = ["And plus {b}?", "Now add {b}.", "Add {b} to that.", "Plus {b}?"]
LESS = ["And minus {b}?", "Now subtract {b}.", "Take away {b}.", "Minus {b}?"]

JSON_ASK = ["Turn this into JSON: {s}", "Write this as JSON: {s}", "JSON please: {s}", "Convert to JSON: {s}",
            "Make JSON from this sentence: {s}", "{s} Give me that as JSON.", "Give me JSON for: {s}"]
JSON_NEXT = ["And this: {s}", "Now this one: {s}", "{s}"]
SCHEMAS = {
    "person": ["{name} is {age} years old and lives in {city}.", "{name}, aged {age}, lives in {city}.",
               "{name} from {city} is {age} years old.", "{name} lives in {city} and is {age} years old.",
               "{name} is {age} and lives in {city}."],
    "item": ["The {colour} {item} costs {price} dollars.", "A {colour} {item} is sold for {price} dollars.",
             "{price} dollars is the price of the {colour} {item}.", "The price of the {colour} {item} is {price} dollars.",
             "I paid {price} dollars for a {colour} {item}."],
    "meeting": ["{who} meets {with} on {day} at {time}.", "On {day} at {time} {who} meets {with}.",
                "{who} will see {with} on {day} at {time}.", "{who} has a meeting with {with} at {time} on {day}."],
    "pet": ["{owner} has a {pet} called {name}.", "The {pet} of {owner} is called {name}.",
            "{name} is the {pet} of {owner}.", "{owner} owns a {pet} named {name}."],
}

DECLINE = ("Sorry, I only know a few simple things.", "I do not know.")
NO_TOOL = ("Sorry, I have no tool for that.", "No tool for that.")
ONLY_SUMS = ("Sorry, I can only add and subtract numbers up to 99.", "I can not do that.")


def split_of(key):
    """"train" or "test" for an act's key; None (too common to hold out) trains."""
    if key is None:
        return "train"
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") % 100 < TEST_PERCENT else "train"


def sum_key(op, a, b):
    """Sums do not depend on the order, so both orders share a key. One-digit
    sums are too few to hold any out."""
    if a < 10 and b < 10:
        return None
    return f"arith:{op}:{min(a, b)}:{max(a, b)}" if op == "+" else f"arith:{op}:{a}:{b}"


def upper(text):
    """`text` with a capital first letter, the rest untouched."""
    return text[:1].upper() + text[1:]


def person(rng):
    return facts.invent(rng) if rng.random() < 0.35 else rng.choice(facts.NAMES)


def place(rng):
    return facts.invent(rng) if rng.random() < 0.25 else rng.choice(facts.CITIES)


def operand(rng):
    """Mostly any number up to 99, sometimes a small one as people tend to ask."""
    return rng.randint(0, 99) if rng.random() < 0.8 else rng.randint(0, 20)


class Talk:
    """A conversation under construction.

    The act methods append a question and its answer, or return False when they
    do not apply (nothing to remember yet, no key of the wanted split left).
    """

    def __init__(self, rng, style=None):
        self.rng = rng
        self.want = "train"
        self.messages = []
        self.tools = []
        self.memory = {}
        self.name = None
        self.style = style or rng.choices(["plain", "terse", "pirate"], [86, 9, 5])[0]
        self._system()

    # -- building blocks -------------------------------------------------

    def _system(self):
        """Draw the system prompt that fits the style; often none, the template
        then inserts the default one."""
        rng = self.rng
        text = None
        if self.style == "terse":
            text = rng.choice(TERSE)
        elif self.style == "pirate":
            text = rng.choice(PIRATE)
        elif self.style == "json":
            text = rng.choice(EXTRACT)
        elif rng.random() < 0.35:
            drawn = rng.random()
            if drawn < 0.4:
                text = rng.choice(PLAIN)
            elif drawn < 0.7:
                text = f"You are a {rng.choice(TRAITS)} {rng.choice(ROLES)}."
            else:
                self.name = person(rng)
                text = rng.choice([f"Your name is {self.name}.", f"You are {self.name}.",
                                   f"You are {self.name}, a {rng.choice(TRAITS)} {rng.choice(ROLES)}."])
        if text:
            self.messages.append({"role": "system", "content": text})

    def _draw(self, make, tries=40):
        """Call `make() -> (key, value)` until the key is of the wanted split."""
        for _ in range(tries):
            key, value = make()
            if split_of(key) == self.want:
                return value
        return None

    def _say(self, user, full, short=None):
        """Append a turn, the answer in the voice that the system prompt asks for."""
        if short is not None and self.style == "terse":
            full = short
        elif short is not None and self.style == "pirate":
            full = "Arr! " + full
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": full})
        return True

    def _casual(self, text, lower=True):
        """People drop capitals and full stops: so does a part of the questions."""
        drawn = self.rng.random()
        if drawn < 0.08 and text[-1] in ".?!":
            return text[:-1]
        if lower and drawn < 0.16:
            return text.lower()
        if lower and drawn < 0.2:
            return text.lower().rstrip(".?!")
        return text

    # -- small talk ------------------------------------------------------

    def hello(self):
        word = self._draw(lambda: (lambda w: (f"hello:{self._prompt()}:{w}", w))(self.rng.choice(HELLO)))
        if word is None:
            return False
        return self._say(self._casual(word + self.rng.choice(["", "!", "."])), "Hello! How can I help you?", "Hello.")

    def _prompt(self):
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else ""

    def small_talk(self):
        topic = self.rng.choice(list(SMALL_TALK))
        asks, full, short = SMALL_TALK[topic]
        return self._say(self._casual(self.rng.choice(asks)), full, short)

    def who(self):
        ask = self._draw(lambda: (lambda w: (f"who:{self._prompt()}:{w}" if self.name else None, w))(self.rng.choice(WHO)))
        if ask is None:
            return False
        if self.name:
            return self._say(self._casual(ask), f"My name is {self.name}.", f"{self.name}.")
        return self._say(self._casual(ask), SELF, "A demo model.")

    def bye(self):
        ask = self._casual(self.rng.choice(BYE))
        if "name" in self.memory:
            return self._say(ask, f"Goodbye, {self.memory['name'][0]}!", "Bye.")
        return self._say(ask, "Goodbye!", "Bye.")

    def decline(self):
        rng = self.rng

        def make():
            ask = rng.choice(facts.OUT_OF_DOMAIN)
            topic = rng.choice(facts.TOPICS) if rng.random() < 0.8 else facts.invent(rng)
            return f"decline:{ask}:{topic}", ask.format(t=topic)

        if self.want == "train" and rng.random() < 0.3:
            drawn = rng.random()
            if drawn < 0.4:
                country = rng.choice(facts.UNKNOWN_COUNTRIES) if rng.random() < 0.7 else facts.invent(rng)
                ask = rng.choice(facts.FAMILIES["capital"]["ask"]).format(k=country)
                return self._say(ask, f"Sorry, I do not know the capital of {country}.", DECLINE[1])
            a, b = rng.randint(0, 99), rng.randint(0, 99)
            if drawn < 0.7:
                ask = rng.choice(["What is {a} times {b}?", "{a} * {b}", "{a} / {b}", "Divide {a} by {b}.",
                                  "Multiply {a} by {b}.", "What is the square root of {a}?", "{a} x {b}", "{a}*{b}"])
            else:
                a *= 100
                a, b = rng.choice([(a + 107, b), (b, a + 107), (a + 113, a + 191)])
                ask = rng.choice(ADD + SUB)
            return self._say(ask.format(a=a, b=b), *ONLY_SUMS)
        ask = self._draw(make)
        return ask is not None and self._say(self._casual(ask), *DECLINE)

    # -- memory ----------------------------------------------------------

    def _value(self, slot):
        rng = self.rng
        return {
            "name": lambda: (person(rng), ""),
            "city": lambda: (place(rng), ""),
            "colour": lambda: (rng.choice(facts.COLOURS), ""),
            "food": lambda: (rng.choice(facts.FOODS), ""),
            "age": lambda: (rng.randint(5, 99), ""),
            "job": lambda: (rng.choice(facts.JOBS), ""),
            "pet": lambda: (rng.choice(facts.PETS), person(rng)),
            "number": lambda: (rng.randint(0, 99), ""),
        }[slot]()

    def tell(self, slot=None):
        rng = self.rng
        if slot is None and rng.random() < 0.15:
            return self._tell_two()
        slot = slot or rng.choice(list(SLOTS))
        again = slot in self.memory
        self.memory[slot] = v, w = self._value(slot)
        text = rng.choice(SLOTS[slot]["tell"]).format(v=v, w=w)
        if again:
            text = rng.choice(["No, ", "Sorry, ", "Wait, "]) + (text if text[0] == "I" else text[0].lower() + text[1:])
        full, short = (r.format(v=v, w=w, V=upper(str(v))) for r in SLOTS[slot]["reply"])
        return self._say(self._casual(text, lower=False), full, short)

    def _tell_two(self):
        """Two facts in one sentence."""
        rng = self.rng
        name, other = self._value("name"), rng.choice(["city", "colour", "age", "job", "pet", "food"])
        v, w = self._value(other)
        self.memory["name"], self.memory[other] = name, (v, w)
        first = rng.choice(["My name is {n}", "I am {n}", "I'm {n}", "Hi, I am {n}"]).format(n=name[0])
        second = rng.choice(SLOTS[other]["tell"][:2]).format(v=v, w=w)
        second = second if second[0] == "I" else second[0].lower() + second[1:]
        full, short = SLOTS["name"]["reply"]
        return self._say(f"{first} and {second}", full.format(v=name[0]), short.format(v=name[0]))

    def recall(self):
        """Ask for something told before."""
        rng = self.rng
        if not self.memory:
            return False

        def make():
            slot = rng.choice(list(self.memory))
            v, w = self.memory[slot]
            i = rng.randrange(len(SLOTS[slot]["ask"]))
            return f"recall:{slot}:{v}:{w}:{i}", (slot, SLOTS[slot]["ask"][i].format(v=v), v, w)

        drawn = self._draw(make)
        if drawn is None:
            return False
        slot, ask, v, w = drawn
        full, short = (r.format(v=v, w=w, V=upper(str(v))) for r in SLOTS[slot]["answer"])
        return self._say(self._casual(ask), full, short)

    def recall_unknown(self):
        """Ask for something never told: the model must not make it up."""
        unknown = [s for s in SLOTS if s not in self.memory]
        if not unknown:
            return False
        slot = self.rng.choice(unknown)
        ask = self.rng.choice(SLOTS[slot]["ask"]).format(v=self.rng.choice(facts.PETS))
        return self._say(self._casual(ask), SLOTS[slot]["unknown"], "You have not told me.")

    # -- sums ------------------------------------------------------------

    def sum(self):
        rng = self.rng

        def make():
            op, a, b = rng.choice("+-"), operand(rng), operand(rng)
            return sum_key(op, a, b), (op, a, b)

        drawn = self._draw(make)
        if drawn is None:
            return False
        op, a, b = drawn
        c = a + b if op == "+" else a - b
        ask = rng.choice(ADD if op == "+" else SUB).format(a=a, b=b)
        self._say(self._casual(ask), f"{a} {op} {b} = {c}.", f"{c}.")
        while 0 <= c <= 99 and self.want == "train" and rng.random() < 0.2:
            op, b = rng.choice("+-"), operand(rng)
            if split_of(sum_key(op, c, b)) != "train":
                break
            a, c = c, c + b if op == "+" else c - b
            ask = rng.choice(MORE if op == "+" else LESS).format(b=b)
            self._say(self._casual(ask), f"{a} {op} {b} = {c}.", f"{c}.")
        return True

    def story_sum(self):
        """A sum in words."""
        rng = self.rng
        things = rng.choice(["apples", "coins", "books", "cards", "eggs"])

        def make():
            op, a, b = rng.choice("+-"), operand(rng), operand(rng)
            if op == "-" and b > a:
                a, b = b, a
            return sum_key(op, a, b), (op, a, b)

        drawn = self._draw(make)
        if drawn is None:
            return False
        op, a, b = drawn
        c = a + b if op == "+" else a - b
        change = rng.choice(["get {b} more", "buy {b} more"] if op == "+" else ["lose {b}", "give away {b}"]).format(b=b)
        ask = f"I have {a} {things} and {change}. How many {things} do I have now?"
        return self._say(ask, f"{a} {op} {b} = {c}, so you have {c} {things}.", f"{c}.")

    # -- facts -----------------------------------------------------------

    def fact(self):
        rng = self.rng
        if rng.random() < 0.22:
            return self._single()

        def make():
            family = rng.choices(list(facts.FAMILIES), [5, 3, 2, 2, 2, 2, 3])[0]
            key = rng.choice(list(facts.FAMILIES[family]["items"]))
            i = rng.randrange(len(facts.FAMILIES[family]["ask"]))
            return f"fact:{family}:{key}:{i}", (family, key, facts.FAMILIES[family]["ask"][i])

        drawn = self._draw(make)
        if drawn is None:
            return False
        family, key, ask = drawn
        self._answer_fact(family, key, ask)
        while self.want == "train" and rng.random() < 0.25:
            key = rng.choice(list(facts.FAMILIES[family]["items"]))
            self._answer_fact(family, key, rng.choice(facts.FAMILIES[family]["next"]))
        return True

    def _answer_fact(self, family, key, ask):
        fam = facts.FAMILIES[family]
        value = fam["items"][key]
        fill = {"k": key, "K": upper(key), "v": value, "V": upper(value)}
        self._say(self._casual(upper(ask.format(**fill))), fam["answer"].format(**fill), fam["short"].format(**fill))

    def _single(self):
        rng = self.rng

        def make():
            i = rng.randrange(len(facts.SINGLES))
            j = rng.randrange(len(facts.SINGLES[i][0]))
            return f"fact:single:{i}:{j}", (i, j)

        drawn = self._draw(make)
        if drawn is None:
            return False
        asks, full, short = facts.SINGLES[drawn[0]]
        return self._say(self._casual(asks[drawn[1]]), full, short)

    # -- JSON ------------------------------------------------------------

    def json(self, bare=False):
        """A sentence into JSON. `bare`: the system prompt already asks for it."""
        rng = self.rng

        def make():
            schema = rng.choice(list(SCHEMAS))
            if schema == "person":
                value = {"name": person(rng), "age": rng.randint(1, 99), "city": place(rng)}
            elif schema == "item":
                value = {"item": rng.choice(facts.THINGS), "colour": rng.choice(facts.COLOURS), "price": rng.randint(1, 999)}
            elif schema == "meeting":
                value = {"who": person(rng), "with": person(rng), "day": rng.choice(facts.DAYS),
                         "time": f"{rng.randint(0, 23):02}:{rng.randrange(0, 60, 5):02}"}
            else:
                value = {"owner": person(rng), "pet": rng.choice(facts.PETS), "name": person(rng)}
            return "json:" + json.dumps(value), (schema, value)

        drawn = self._draw(make)
        if drawn is None:
            return False
        schema, value = drawn
        sentence = rng.choice(SCHEMAS[schema]).format(**value)
        first = not (len(self.messages) > 1 and self.messages[-1]["content"].startswith("{"))
        ask = "{s}" if bare else rng.choice(JSON_ASK if first else JSON_ASK + JSON_NEXT)
        return self._say(ask.format(s=sentence), json.dumps(value))

    # -- tools -----------------------------------------------------------

    def add_tools(self, count):
        kinds = self.rng.sample(list(tools.KINDS), count)
        self.tools = [tools.Tool(self.rng, kind) for kind in kinds]

    def call(self, again=False):
        """A question that one of the given tools answers. `again` asks the short
        follow-up of the tool used last."""
        rng = self.rng
        tool = self.last if again else rng.choice(self.tools)
        asks = tool.kind.again if again else tool.kind.asks
        if not asks:
            return False

        def make():
            values, i = tool.kind.values(rng), rng.randrange(len(asks))
            return f"tool:{tool.label}:{values}:{'again' if again else ''}{i}", (values, asks[i])

        drawn = self._draw(make)
        if drawn is None:
            return False
        self.values, ask = drawn
        self.last = tool
        self.messages.append({"role": "user", "content": self._casual(ask.format(*self.values), lower=False)})
        self.messages.append({"role": "assistant", "content": "", "tool_calls": [tool.call(self.values)]})
        return True

    def two_calls(self):
        """One question, two calls in one answer."""
        rng = self.rng
        fitting = [t for t in self.tools if t.label in ("weather", "time")]
        if not fitting:
            return False
        tool = self.last = rng.choice(fitting)
        first, second = place(rng), place(rng)
        word = "weather" if tool.label == "weather" else "time"
        self.messages.append({"role": "user", "content": f"What is the {word} in {first} and {second}?"})
        self.messages.append({"role": "assistant", "content": "", "tool_calls": [tool.call([first]), tool.call([second])]})
        answers = []
        for city in (first, second):
            text, full, _ = tool.kind.result(rng, [city])
            self.messages.append({"role": "tool", "content": text})
            answers.append(full)
        self.messages.append({"role": "assistant", "content": " ".join(answers)})
        return True

    def result(self):
        """The tool's response and the answer made from it."""
        rng = self.rng
        if rng.random() < 0.08 and self.want == "train":
            error = rng.choice(tools.ERRORS)
            text, full, short = json.dumps({"error": error}), f"Sorry, the tool failed: {error}.", f"{upper(error)}."
        else:
            drawn = self._draw(lambda: (lambda r: ("result:" + r[0] + r[1], r))(self.last.kind.result(rng, self.values)))
            if drawn is None:
                return False
            text, full, short = drawn
        if self.style == "terse":
            full = short
        elif self.style == "pirate":
            full = "Arr! " + full
        self.messages.append({"role": "tool", "content": text})
        self.messages.append({"role": "assistant", "content": full})
        return True

    def no_tool(self):
        """A question for which the needed tool is not there."""
        given = {t.label for t in self.tools}
        kind = tools.KINDS[self.rng.choice([k for k in tools.KINDS if k not in given])]
        ask = self.rng.choice(kind.asks).format(*kind.values(self.rng))
        return self._say(ask, *NO_TOOL)


def _chat(talk):
    """An everyday chat with things to remember."""
    rng = talk.rng
    if rng.random() < 0.45:
        talk.hello()
    for _ in range(rng.randint(2, 6)):
        act = rng.choices([talk.tell, talk.recall, talk.recall_unknown, talk.sum, talk.fact, talk.small_talk, talk.who,
                           talk.decline, talk.story_sum, talk.no_tool],
                          [28, 36, 5, 9, 9, 6, 5, 5, 2, 1])[0]
        act()
    if rng.random() < 0.15:
        talk.bye()


def _sums(talk):
    for _ in range(talk.rng.randint(4, 9)):
        (talk.sum if talk.rng.random() < 0.94 else talk.story_sum)()


def _facts(talk):
    for _ in range(talk.rng.randint(2, 4)):
        (talk.fact if talk.rng.random() < 0.85 else talk.decline)()


def _json(talk):
    for _ in range(talk.rng.randint(1, 3)):
        talk.json(bare=talk.style == "json")


def _tools(talk):
    rng = talk.rng
    talk.add_tools(rng.choices([1, 2, 3], [15, 75, 10])[0])
    for turn in range(rng.randint(1, 3)):
        drawn = rng.random()
        if drawn < 0.8:
            if not talk.call(again=turn > 0 and hasattr(talk, "last") and rng.random() < 0.4):
                continue
            talk.result()
        elif drawn < 0.86:
            talk.two_calls()
        elif drawn < 0.92:
            talk.no_tool()
        else:
            rng.choice([talk.sum, talk.fact, talk.small_talk, talk.hello, talk.decline])()


# Share of each sort of conversation, in percent of conversations.
MIX = [(_chat, 33), (_sums, 14), (_facts, 8), (_json, 13), (_tools, 32)]


def conversation(rng):
    """One training conversation: {"messages": [...], "tools": [...]}"""
    build = rng.choices([b for b, _ in MIX], [w for _, w in MIX])[0]
    while True:
        talk = Talk(rng, style=_style(rng, build))
        build(talk)
        if talk.messages and talk.messages[-1]["role"] == "assistant":
            return {"messages": talk.messages, "tools": [t.definition for t in talk.tools]}


def _style(rng, build):
    """Voices only where they matter: JSON and long runs of sums stay plain mostly."""
    if build is _json:
        return "json" if rng.random() < 0.25 else "plain"
    if build is _sums:
        return "terse" if rng.random() < 0.12 else "plain"
    return None


def document(rng):
    """Plain text without any chat, so that raw completion works too.

    Mostly sums in the very form of the answers: without the turns around them
    they take a third of the tokens, and sums need by far the most examples.
    """
    lines = []
    if rng.random() < 0.9:
        while len(lines) < 16:
            op, a, b = rng.choice("+-"), operand(rng), operand(rng)
            if split_of(sum_key(op, a, b)) == "train":
                lines.append(f"{a} {op} {b} = {a + b if op == '+' else a - b}.")
    while len(lines) < 5:
        family = facts.FAMILIES[rng.choice(list(facts.FAMILIES))]
        key = rng.choice(list(family["items"]))
        value = family["items"][key]
        lines.append(family["answer"].format(k=key, K=upper(key), v=value, V=upper(value)))
    return " ".join(lines)


# -- test questions ---------------------------------------------------------


def _warm_up(talk, rng, acts):
    for act in rng.sample(acts, rng.randint(0, min(2, len(acts)))):
        act()


def _ask(rng, category):
    """A conversation that ends in an unseen question, or None if the draw failed."""
    plain = "terse" if rng.random() < 0.15 else "plain"
    talk = Talk(rng, style=plain)
    if category == "sum":
        _warm_up(talk, rng, [talk.hello, talk.fact])
        ask = talk.sum if rng.random() < 0.85 else talk.story_sum
    elif category == "recall":
        slots = rng.sample(list(SLOTS), rng.randint(1, 3))
        for slot in slots:
            talk.tell(slot)
        _warm_up(talk, rng, [talk.sum, talk.fact, talk.small_talk])
        ask = talk.recall
    elif category == "fact":
        _warm_up(talk, rng, [talk.hello, talk.sum])
        ask = talk.fact
    elif category == "json":
        ask = talk.json
    elif category == "tool_call":
        talk.add_tools(2)
        ask = talk.call
    elif category == "tool_result":
        talk.add_tools(2)
        if not talk.call():
            return None
        ask = talk.result
    elif category == "hello":
        ask = talk.hello
    elif category == "who":
        ask = talk.who
    elif category == "decline":
        _warm_up(talk, rng, [talk.sum])
        ask = talk.decline
    talk.want = "test"
    if not ask():
        return None
    return talk


QUESTIONS = {"sum": 14, "recall": 9, "fact": 8, "json": 6, "tool_call": 6, "tool_result": 3, "hello": 1, "who": 1, "decline": 2}


def questions(seed, counts=None):
    """Unseen questions with their expected answers, see tests/data/README.md."""
    rng = random.Random(seed)
    out, seen = [], set()
    for category, count in (counts or QUESTIONS).items():
        while count:
            talk = _ask(rng, category)
            if talk is None:
                continue
            answer = talk.messages.pop()
            # No two questions with the same words, whatever went before them.
            last = talk.messages[-1]["content"].lower()
            if last in seen:
                continue
            seen.add(last)
            question = {"category": category, "messages": talk.messages}
            if talk.tools:
                question["tools"] = [t.definition for t in talk.tools]
            if answer.get("tool_calls"):
                question["expect"] = {"tool_call": answer["tool_calls"][0]["function"]}
            elif category == "json":
                question["expect"] = {"json": json.loads(answer["content"])}
            else:
                question["expect"] = answer["content"]
            out.append(question)
            count -= 1
    return out


def main():
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "questions":
        # One question a line keeps the file readable and its diffs small.
        lines = [json.dumps(q, ensure_ascii=False) for q in questions(seed=50)]
        print("[\n" + ",\n".join(lines) + "\n]")
    elif command == "sample":
        rng = random.Random(1)
        for _ in range(int(sys.argv[2])):
            print(json.dumps(conversation(rng), ensure_ascii=False))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
