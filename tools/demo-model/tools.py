"""The tools the demo model can call, each with the words that lead to it.

A tool comes under several names, argument names and descriptions, so that the
model has to read the definitions in the system section instead of learning one
fixed call per question.
"""

import json
from dataclasses import dataclass
from typing import Callable

import facts


@dataclass(frozen=True)
class Kind:
    """One thing a tool can do."""

    names: list[str]
    about: list[str]
    # Per argument: possible names, JSON type, description.
    args: list[tuple[list[str], str, str]]
    asks: list[str]
    # Short follow-up questions that change the first argument only.
    again: list[str]
    values: Callable
    # (rng, values) -> (tool response text, full answer, terse answer)
    result: Callable


def _weather(rng, v):
    degrees, sky = rng.randint(-9, 35), rng.choice(facts.SKIES)
    text = rng.choice([
        json.dumps({"temperature": degrees, "condition": sky}),
        json.dumps({"city": v[0], "temperature": degrees, "condition": sky}),
        f"{degrees} degrees, {sky}",
    ])
    return text, f"It is {degrees} degrees and {sky} in {v[0]}.", f"{degrees} degrees, {sky}."


def _time(rng, v):
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    text = rng.choice([json.dumps({"time": clock}), json.dumps({"city": v[0], "time": clock}), clock])
    return text, f"It is {clock} in {v[0]}.", f"{clock}."


def _timer(rng, v):
    text = rng.choice([json.dumps({"status": "ok"}), "ok", json.dumps({"minutes": v[0], "status": "ok"})])
    return text, f"The timer is set for {v[0]} minutes.", "Timer set."


def _light(rng, v):
    text = rng.choice([json.dumps({"status": "ok"}), "ok", json.dumps({"room": v[0], "status": "ok"})])
    return text, f"The light in the {v[0]} is now {v[1]}.", f"Light {v[1]}."


def _music(rng, v):
    text = rng.choice([json.dumps({"status": "playing"}), "ok", json.dumps({"status": "ok"})])
    return text, f"Now playing {v[0]}.", "Playing."


def _price(rng, v):
    price = rng.randint(2, 99)
    text = rng.choice([json.dumps({"price": price}), json.dumps({"product": v[0], "price": price}), f"{price} dollars"])
    return text, f"The {v[0]} costs {price} dollars.", f"{price} dollars."


def _message(rng, v):
    text = rng.choice([json.dumps({"status": "sent"}), "ok", json.dumps({"status": "ok"})])
    return text, f"I have sent your message to {v[0]}.", "Sent."


def _city(rng):
    return facts.invent(rng) if rng.random() < 0.25 else rng.choice(facts.CITIES)


def _name(rng):
    return facts.invent(rng) if rng.random() < 0.25 else rng.choice(facts.NAMES)


MESSAGES = ["hello", "I am late", "dinner is ready", "call me", "good night", "see you soon", "thank you", "happy birthday"]

KINDS = {
    "weather": Kind(
        ["get_weather", "weather", "get_current_weather", "weather_lookup"],
        ["Get the weather of a city.", "Current weather in a city", "Look up the weather for a place."],
        [(["city", "location", "place"], "string", "Name of the city")],
        ["What is the weather in {0}?", "How is the weather in {0}?", "What's the weather like in {0}?",
         "Tell me the weather in {0}.", "Is it raining in {0}?", "How warm is it in {0}?",
         "Do I need an umbrella in {0}?", "Weather in {0}, please."],
        ["And in {0}?", "What about {0}?"],
        lambda rng: [_city(rng)], _weather),
    "time": Kind(
        ["get_time", "get_current_time", "clock", "time_in_city"],
        ["Get the time in a city.", "Current local time of a city", "Look up what time it is."],
        [(["city", "location", "place"], "string", "Name of the city")],
        ["What time is it in {0}?", "What is the time in {0}?", "How late is it in {0}?",
         "Tell me the time in {0}.", "Which time is it now in {0}?", "Time in {0}, please."],
        ["And in {0}?", "What about {0}?"],
        lambda rng: [_city(rng)], _time),
    "timer": Kind(
        ["set_timer", "start_timer", "timer"],
        ["Set a timer.", "Start a kitchen timer", "Count down some minutes."],
        [(["minutes", "duration"], "integer", "Length in minutes")],
        ["Set a timer for {0} minutes.", "Start a timer of {0} minutes.", "Wake me in {0} minutes.",
         "Timer for {0} minutes, please.", "Please count down {0} minutes.", "Remind me in {0} minutes."],
        ["And one for {0} minutes."],
        lambda rng: [rng.randint(2, 99)], _timer),
    "light": Kind(
        ["switch_light", "set_light", "light_control"],
        ["Switch a light on or off.", "Control the light of a room", "Turn lights on or off."],
        [(["room", "where"], "string", "Name of the room"), (["state", "value"], "string", "on or off")],
        ["Turn {1} the light in the {0}.", "Switch {1} the light in the {0}.", "Turn the {0} light {1}.",
         "Please switch the light in the {0} {1}.", "Light {1} in the {0}, please.", "Make the {0} light go {1}."],
        [],
        lambda rng: [rng.choice(facts.ROOMS), rng.choice(["on", "off"])], _light),
    "music": Kind(
        ["play_music", "play", "music_player"],
        ["Play music by an artist.", "Play songs of an artist", "Start the music."],
        [(["artist", "name"], "string", "Name of the artist")],
        ["Play music by {0}.", "Play something by {0}.", "I want to hear {0}.", "Put on some {0}.",
         "Can you play {0}?", "Please play {0} for me."],
        [],
        lambda rng: [rng.choice(facts.ARTISTS) if rng.random() < 0.6 else _name(rng)], _music),
    "price": Kind(
        ["get_price", "price_lookup", "find_price"],
        ["Get the price of a product.", "Look up what a product costs", "Find a price."],
        [(["product", "item"], "string", "Name of the product")],
        ["How much is the {0}?", "What does the {0} cost?", "What is the price of the {0}?",
         "Tell me the price of the {0}.", "How expensive is the {0}?", "How much does the {0} cost?"],
        ["And the {0}?", "What about the {0}?"],
        lambda rng: [(rng.choice(facts.COLOURS) + " " if rng.random() < 0.6 else "") + rng.choice(facts.THINGS)], _price),
    "message": Kind(
        ["send_message", "send_text", "message"],
        ["Send a message to a person.", "Send a text message", "Write to somebody."],
        [(["to", "person", "recipient"], "string", "Who gets it"), (["text", "body"], "string", "The message")],
        ["Send {0} the message: {1}", "Tell {0}: {1}", "Write to {0}: {1}", "Send a message to {0}: {1}",
         "Message {0}: {1}", "Text {0}: {1}"],
        [],
        lambda rng: [_name(rng), rng.choice(MESSAGES)], _message),
}

ERRORS = ["unknown city", "not found", "no connection", "service is down", "timeout", "access denied"]


class Tool:
    """A kind with its names drawn: what the system section shows."""

    def __init__(self, rng, kind):
        self.kind = KINDS[kind]
        self.label = kind
        self.name = rng.choice(self.kind.names)
        self.args = [rng.choice(names) for names, _, _ in self.kind.args]
        properties = {}
        explain = rng.random() < 0.5
        for arg, (_, kind_of, about) in zip(self.args, self.kind.args):
            properties[arg] = {"type": kind_of, "description": about} if explain else {"type": kind_of}
        self.definition = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": rng.choice(self.kind.about),
                "parameters": {"type": "object", "properties": properties, "required": self.args},
            },
        }

    def call(self, values):
        """The call that passes `values`, in the form of a message's tool_calls."""
        arguments = dict(zip(self.args, values))
        return {"type": "function", "function": {"name": self.name, "arguments": arguments}}
