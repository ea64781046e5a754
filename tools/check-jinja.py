"""Compares this project's template engine with Python's Jinja, set up as transformers sets it up.

    python -m venv target/jinja && target/jinja/bin/pip install jinja2==3.1.6
    cargo build --release -p qwen-tokenizer --example jinja
    target/jinja/bin/python tools/check-jinja.py                          the cases written by hand
    target/jinja/bin/python tools/check-jinja.py --random 5000 --seed 1   plus 5000 random ones
    target/jinja/bin/python tools/check-jinja.py --write                  qwen-tokenizer/tests/data/jinja.json

A case agrees if both give the same text, or both an error. An error that Jinja only raises when a template takes a
branch, and this engine at load (a filter that does not exist, say), agrees too. --program names another renderer, --all
shows every difference. The random templates are typed, so most of them render; one in sixteen operands is of any type.
"""

import argparse
import copy
import json
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

import jinja_cases

warnings.simplefilter("ignore")
ROOT = Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "qwen-tokenizer/tests/data/jinja.json"
NOW = 1_700_000_000


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("support"), [], [], body).set_lineno(line)

    def support(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def strftime_now(format):
    return time.strftime(format, time.gmtime(NOW))


environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = strftime_now


def expected(case):
    """Jinja's text and no problem, or no text and what it said."""
    try:
        return environment.from_string(case["template"]).render(**copy.deepcopy(case["variables"])), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


class Templates:
    """Random templates over the variables of jinja_cases."""

    ATOMS = {
        "str": ["s", "t", "u", "e", "q", "lines", "'a'", "'l'", "', '", "''", "'%s-%s'", "'{}'", '"x\\ny"', "w[0]",
                "messages[0].content", "m.role", "'ǅ ß İ'", "'a_b c'", "'Q'", "'12'", "' 3.5 '", "'0x1f'", "'-7'"],
        "int": ["n", "z", "neg", "1", "0", "-2", "10", "true", "l[0]", "3", "d.b", "loop.index", "loop.length"],
        "float": ["f", "3.5", "0.1", "1e3", "-2.25", "1e16", "2.0", "1e-5"],
        "bool": ["yes", "no", "true", "false", "loop.first", "loop.last"],
        "list": ["l", "w", "el", "mix", "[1, 2]", "(1, 'b')", "['x', 'Y', 'z']", "rows", "messages", "d.a", "[[1, 2], [3]]",
                 "range(4)", "d.items()", "d.keys()", "d.values()", "(l | map('string'))", "(rows | selectattr('v'))"],
        "dict": ["d", "ed", "rows[0]", "{'a': 1, 'b': 2}", "messages[0]", "messages[-1]", "dict(x=1, y='z')", "{1: 2}"],
        "any": ["missing", "nil", "none", "d.zz", "l[99]", "ns", "ns.x", "loop", "x", "range"],
    }
    # From a type: what is put after an operand, and the type of the result.
    AFTER = {
        "str": [
            ("str", "upper lower title capitalize trim string e escape center(9) truncate(4) indent(2) safe reverse"
                    " replace('l','LL') replace('l','x',1) indent(width=3,first=true) trim('d') wordwrap(4)"
                    " truncate(3,true) urlencode default('x') forceescape join('-') tojson first last"
                    " indent('>',blank=true) format(1,2) center(width=7) wordwrap(5,false)", "|"),
            ("str", "strip() lstrip() rstrip() upper() lower() title() capitalize() swapcase() casefold() zfill(5)"
                    " center(8) ljust(6,'.') rjust(6) expandtabs() replace('l','x') replace('o','',1) strip('dH')"
                    " removeprefix('He') removesuffix('ld') join(['x','y']) format(1) format(a=1) expandtabs(tabsize=3)"
                    " lstrip(' e') rstrip('\\n') strip(none) center(7,'*') join(w) format_map({'a':1})", "."),
            ("list", "split() split('l') rsplit('o',1) split(maxsplit=1) splitlines() partition(' ') rpartition('l')"
                     " split(sep='l',maxsplit=2) splitlines(keepends=true) splitlines(true) rsplit(none,1)", "."),
            ("list", "list batch(2) slice(2) unique sort map('upper') select reject('eq','l')", "|"),
            ("int", "length count wordcount int int(5) int(base=16) int(default=2)", "|"),
            ("float", "float float(1.5)", "|"),
            ("int", "find('o') rfind('l') index('l') count('l') rindex('e') find('l',3) count('l',1,4) find('')"
                    " find('l',-4,-1) count('')", "."),
            ("bool", "startswith('H') endswith('d') isdigit() isalpha() isalnum() isspace() isupper() islower() isascii()"
                     " istitle() isdecimal() isnumeric() isidentifier() isprintable() startswith(('a','H'))"
                     " startswith('e',1) endswith('o',0,5)", "."),
            ("str", "[0] [-1] [1:] [:2] [::-1] [::2] [-3:-1] [5:1:-1] [99]", ""),
        ],
        "int": [("int", "abs int round string|int round(-1)", "|"), ("str", "string tojson filesizeformat", "|"),
                ("float", "float round(1,'floor')", "|"), ("int", "bit_length()", ".")],
        "float": [("float", "round round(1) abs round(2,'ceil') float round(method='floor')", "|"), ("int", "int", "|"),
                  ("str", "string tojson filesizeformat", "|"), ("bool", "is_integer()", ".")],
        "bool": [("str", "string tojson", "|"), ("int", "int abs", "|")],
        "list": [
            ("list", "list sort reverse unique batch(2) batch(2,'-') slice(2) slice(3,0) select reject map('string')"
                     " map('upper') select('string') reject('number') select('gt',1) map(attribute='k') sort(reverse=true)"
                     " map(attribute='v',default='?') selectattr('v') selectattr('k','eq','x') rejectattr('v','defined')"
                     " sort(attribute='k') sort(attribute='v,k') groupby('k') map('int') unique(attribute='k') map('list')"
                     " map('length') map('default','q') selectattr('role','in',['user','system']) sort(case_sensitive=true)"
                     " unique(true) map('replace','a','b') map('first') select('defined') groupby('v',default=0)", "|"),
            ("str", "join join(', ') tojson string join(attribute='k') join('|',attribute='role') tojson(indent=2)"
                    " tojson(separators=(',',':'))", "|"),
            ("int", "length count sum sum(attribute='v',start=10) sum(start=1)", "|"),
            ("any", "first last min max first|default('x') max(attribute='v') min(attribute='k')", "|"),
            ("list", "[1:] [:2] [::-1] [-2:] [::2]", ""), ("any", "[0] [-1] .0 [7]", ""),
            ("int", "count(1) index(1)", "."), ("list", "copy()", "."),
        ],
        "dict": [
            ("list", "dictsort items list dictsort(by='value') dictsort(true) dictsort(reverse=true) items|list", "|"),
            ("list", "items() keys() values() items()|list", "."), ("dict", "copy()", "."),
            ("any", "get('b') get('zz') get('a',1) a b k zz items content role tool_calls pop", "."),
            ("any", "['b'] ['zz'] ['items'] [1]", ""), ("int", "length count", "|"),
            ("str", "tojson string tojson(indent=1) tojson(sort_keys=true) tojson(ensure_ascii=true) join(',')", "|"),
        ],
        "any": [("str", "string tojson default('D') default('D',true) d('e')", "|"), ("bool", "", "")],
    }
    TESTS = ("defined undefined none string number mapping iterable sequence true false boolean integer float callable"
             " lower upper odd even eq(1) gt(2) ==(1) in(l) sameas(none) divisibleby(2) escaped ne('a') lessthan(3) filter"
             " test le(1) ge(1) equalto('a') greaterthan(1)").split()
    TYPES = ["str", "str", "int", "float", "bool", "list", "dict", "any"]

    def __init__(self, rng):
        self.rng = rng
        self.one = rng.choice
        self.names = 0

    def chance(self, p):
        return self.rng.random() < p

    def expr(self, kind, depth):
        """An expression of this type, mostly."""
        if self.chance(0.06):
            kind = self.one(self.TYPES)
        if depth <= 0 or self.chance(0.2):
            return self.one(self.ATOMS[kind])
        if self.chance(0.55):
            ways = [(source, *way) for source, all in self.AFTER.items() for way in all if way[0] == kind and way[1]]
            if ways:
                source, _, names, mark = self.one(ways)
                space = self.one(["", " "]) if mark == "|" else ""
                return f"({self.operand(source, depth)}{space}{mark}{space}{self.one(names.split())})"
        return self.operation(kind, depth)

    def operand(self, kind, depth):
        inner = self.expr(kind, depth - 1)
        return inner if self.chance(0.25) else f"({inner})"

    def operation(self, kind, depth):
        a = lambda kind: self.operand(kind, depth)
        number = lambda: a(self.one(["int", "int", "float"]))
        any_type = lambda: a(self.one(self.TYPES))
        condition = lambda kind: f"{a(kind)} if {a('bool')} else {a(kind)}"
        ways = {
            "str": [lambda: f"{a('str')} + {a('str')}", lambda: f"{any_type()} ~ {any_type()}", lambda: f"{a('str')} * {a('int')}",
                    lambda: f"'{self.percent()}' % {any_type()}", lambda: f"'{self.percent()} {self.percent()}' % ({number()}, {a('str')})",
                    lambda: f"'{{{self.spec()}}}'.format({any_type()})", lambda: f"'%(a)s' % {a('dict')}", lambda: condition("str"),
                    lambda: f"'{{0}}{{a}}{{1!r}}'.format({a('int')}, {a('list')}, a={a('str')})"],
            "int": [lambda: f"{a('int')} {self.one(['+', '-', '*', '//', '%', '**'])} {a('int')}", lambda: f"-{a('int')}",
                    lambda: condition("int")],
            "float": [lambda: f"{number()} {self.one(['+', '-', '*', '/', '//', '%', '**'])} {number()}", lambda: f"-{a('float')}"],
            "bool": [lambda: f"{any_type()} is {self.one(['', '', 'not '])}{self.one(self.TESTS)}",
                     lambda: f"{number()} {self.one(['<', '<=', '>', '>=', '==', '!='])} {number()}",
                     lambda: f"{number()} < {number()} {self.one(['<', '<=', '==', '!='])} {number()}",
                     lambda: f"{any_type()} {self.one(['==', '!=', 'in', 'not in'])} {any_type()}", lambda: f"not {any_type()}",
                     lambda: f"{a('str')} {self.one(['<', 'in', 'not in', '=='])} {a('str')}",
                     lambda: f"{any_type()} {self.one(['and', 'or'])} {any_type()}"],
            "list": [lambda: f"[{any_type()}, {any_type()}]", lambda: f"{a('list')} + {a('list')}", lambda: f"({a('str')},)",
                     lambda: f"{a('list')} * {a('int')}", lambda: condition("list"), lambda: f"range({a('int')}, {a('int')})"],
            "dict": [lambda: f"{{'b': {any_type()}, 'k': {any_type()}}}", lambda: f"dict({a('dict')}, z={any_type()})"],
            "any": [lambda: f"{any_type()} if {any_type()}", lambda: condition("any"), lambda: f"{any_type()} or {any_type()}"],
        }
        return self.one(ways[kind])()

    def percent(self):
        return "%" + self.one(["", "", "-", "+", "0", "#", " ", "-0"]) + self.one(["", "", "3", "7", "12"]) \
            + self.one(["", "", ".2", ".0", ".5"]) + self.one("ssdifgGeExXorc%")

    def spec(self):
        return self.one(["", "0", "", "!r", "!s"]) + self.one(["", ":" + self.one(["", "<", ">", "^", "*^", "=", "0=", "_<"])
            + self.one(["", "", "+", " ", "-"]) + self.one(["", "", "0", "#"]) + self.one(["", "5", "12"])
            + self.one(["", "", ",", "_"]) + self.one(["", "", ".2", ".0", ".4"]) + self.one(["", "", *"dfgGeExXobs%nc"])])

    def tag(self, text):
        return "{%" + self.one(["", "", "", "-", "+"]) + f" {text} " + self.one(["", "", "", "-", "+"]) + "%}"

    def space(self):
        return self.one(["", "", "", " ", "\n", "\n  ", "  \n", "\n\n", "\r\n", "\t"])

    def body(self, depth):
        return "".join(self.space() + self.statement(depth) for _ in range(self.rng.randrange(1, 4))) + self.space()

    def output(self):
        return "{{" + self.one(["", "", "-"]) + f" {self.expr(self.one(self.TYPES), 3)} " + self.one(["", "", "-"]) + "}}"

    def statement(self, depth):
        kind = self.rng.randrange(20 if depth > 0 else 7)
        tag, expr, body = self.tag, lambda kind: self.expr(kind, 2), lambda: self.body(depth - 1)
        if kind <= 4:
            return self.output()
        if kind == 5:
            return self.one(["x", "a b", "{# c #}", "{#- c -#}", "\n", " ", "{% raw %} {{ x }} {% endraw %}", "é"])
        if kind == 6:
            return tag(f"set {self.one(['n', 's', 'l', 'x', 'ns.x', 'ns.y'])} = {self.expr(self.one(self.TYPES), 2)}")
        if kind <= 9:
            middle = tag(f"elif {expr('any')}") + body() if self.chance(0.4) else ""
            end = tag("else") + body() if self.chance(0.6) else ""
            return tag(f"if {expr('bool')}") + body() + middle + end + tag("endif")
        if kind <= 12:
            target = self.one(["n", "x", "m", "s", "a, b", "loop_x"])
            items = "d.items()" if target == "a, b" else self.operand(self.one(["list", "list", "dict", "str"]), 2)
            of_loop = self.one(["loop.index0", "loop.revindex", "loop.previtem", "loop.nextitem", "loop.cycle('a', n, 'c')",
                                "loop.changed(x)", "loop.depth", "loop.first", "loop.last", "loop.length", "loop.revindex0"])
            control = self.one(["", "", "", tag("if loop.index > 2") + tag(self.one(["break", "continue"])) + tag("endif")])
            end = tag("else") + body() if self.chance(0.3) else ""
            keep = f" if {expr('bool')}" if self.chance(0.2) else ""
            return tag(f"for {target} in {items}{keep}") + control + body() + "{{ " + of_loop + " }}" + end + tag("endfor")
        if kind == 13:
            filters = self.one(["", "", " | upper", " | trim | length", " | indent(2)", " | replace('a', 'b')"])
            return tag(f"set x{filters}") + body() + tag("endset") + "[{{ x }}]"
        if kind == 14:
            call = self.one([f"m({expr('str')})", f"m({expr('any')}, {expr('int')})", f"m(b={expr('str')}, a=1)", "m()", "m(1, 2, 3)",
                             "m(1, c=2)", "m(*[1, 2])", "m(**{'a': 1})"])
            rest = self.one(["", "", "{{ varargs }}", "{{ kwargs }}", "{{ n }}"])
            return tag("macro m(a, b=n, c='z')") + body() + "{{ a }}-{{ b }}-{{ c }}" + rest + tag("endmacro") + "{{ " + call + " }}"
        if kind == 15:
            return tag("macro w(y)") + "<{{ caller(y) }}>" + tag("endmacro") + tag(f"call(x) w({expr('any')})") + body() \
                + "{{ x }}" + tag("endcall")
        if kind == 16:
            name = self.one(["upper", "trim", "indent(2, true)", "replace('a', 'b')", "e", "title", "length"])
            return tag(f"filter {name}") + body() + tag("endfilter")
        if kind == 17:
            return tag(f"with x = {expr('any')}, y = {expr('str')}") + body() + "{{ y }}" + tag("endwith")
        if kind == 18:
            return tag("generation") + body() + tag("endgeneration")
        return tag("for x in [[1, [2, 'a']], [3]] recursive") + "({{ loop(x) if x is iterable and x is not string else x }}" \
            "{{ loop.depth }})" + tag("endfor")

    def template(self):
        if self.chance(0.6):
            return self.output()
        start = self.one(["", "{% set ns = namespace(x=1, y='a') %}", "{% set m = messages[1] %}"])
        return start + self.body(2)


def cases_by_hand():
    variables = jinja_cases.VARIABLES
    for template in jinja_cases.CASES + jinja_cases.LAYOUT:
        yield {"template": template, "variables": variables}
    for template in jinja_cases.CHATS:
        for conversation in jinja_cases.CONVERSATIONS:
            yield {"template": template, "variables": conversation}


def random_cases(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        yield {"template": Templates(rng).template(), "variables": jinja_cases.VARIABLES}


def render(program, cases):
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([program], input=lines, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) < len(cases):
        sys.exit(f"{program} stopped at {cases[len(answers)]['template']!r}:\n{done.stderr}")
    return answers


def write_fixture():
    """The cases by hand, without Python: 300 or so. Variables that are those of all cases are written once."""
    written, shared = [], jinja_cases.VARIABLES
    extra = [case for case in random_cases(29, 600) if len(case["template"]) < 400 and " at 0x" not in (expected(case)[0] or " at 0x")]
    extra = extra[:110]
    for case in [*cases_by_hand(), *extra]:
        variables = {} if case["variables"] is shared else {"variables": case["variables"]}
        written.append({"template": case["template"], "text": expected(case)[0], **variables})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in written)
    FIXTURE.write_text(f'{{"variables": {json.dumps(shared, ensure_ascii=False)},\n"cases": [\n{lines}\n]}}\n', newline="\n")
    print(f"{len(written)} cases in {FIXTURE.relative_to(ROOT)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", default=ROOT / "target/release/examples/jinja")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write:
        return write_fixture()
    cases = [*cases_by_hand(), *random_cases(options.seed, options.random)]
    differing = rendered = unlike = 0
    for case, answer in zip(cases, render(options.program, cases)):
        text, problem = expected(case)
        rendered += text is not None
        if text == answer.get("text"):
            continue
        if text is not None and " at 0x" in text.lower():
            # An object's address, which is another in each run.
            unlike += 1
            continue
        differing += 1
        if options.all or differing <= 20:
            print(f"{case['template']!r}\n  is      {answer}\n  must be {text if text is None else [text]} {problem or ''}")
    print(f"{len(cases)} cases, {rendered} of them render, {differing} differ, {unlike} write an address")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
