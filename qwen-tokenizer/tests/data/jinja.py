"""Writes jinja.json: what Jinja itself, set up as transformers does, makes of templates.

    pip install jinja2==3.1.6
    python jinja.py > jinja.json          the cases below
    python jinja.py SEED COUNT > more.json    random ones, for QWEN_JINJA_CASES

Each case is a template and its text; the text is null where Jinja fails.
"""

import copy
import json
import random
import sys
import warnings

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

warnings.simplefilter("ignore")


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


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception

VARIABLES = {
    "n": 7, "z": 0, "neg": -3, "f": 2.5, "big": 123456789012345678901234567890, "yes": True, "no": False, "nil": None,
    "s": "Hello, World", "t": "  two words \n", "u": "né 天😀", "e": "", "q": "it's \"q\"\\", "lines": "a\nb\r\n\nc\n",
    "l": [3, 1, 2], "w": ["b", "A", "c", "a"], "el": [], "mix": [1, "a", None, True, 2.0, [1]],
    "d": {"b": 1, "a": [1, 2], "items": 5, "C": None}, "ed": {},
    "rows": [{"k": "x", "v": 2}, {"k": "y", "v": 1}, {"k": "x", "v": 3}, {"k": "Z"}],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <|im_end|>"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": [True, None, 1.5]}}}]},
    ],
}

CASES = r"""
{{ 1 + 2 * 3 - 4 / 2 }}|{{ 7 // 2 }}|{{ -7 // 2 }}|{{ -7 % 3 }}|{{ 7.5 % -2 }}|{{ 2 ** 10 }}|{{ 2 ** -1 }}|{{ -2 ** 2 }}
{{ 1 if yes else 2 }}{{ 1 if no }}{{ (1 if no) is undefined }}{{ 'a' if no else 'b' if no else 'c' }}
{{ 1 < 2 < 3 }}{{ 3 > 2 >= 2 != 1 }}{{ 1 == 1.0 }}{{ true == 1 }}{{ 'a' < 'b' }}{{ [1, 2] < [1, 3] }}{{ none == false }}
{{ not yes or no and yes }}{{ not not 1 }}{{ yes and 'x' }}{{ e or 'y' }}{{ not 'a' in s }}{{ 'a' not in s }}
{{ 'H' in s }}{{ 1 in l }}{{ 'b' in d }}{{ 4 not in l }}{{ 'x' in missing }}{{ '' in '' }}
{{ 'a' ~ 1 ~ none ~ [1.0, 'b'] ~ missing }}{{ 'a' 'b' "c" }}
{{ l }}{{ w }}{{ d }}{{ mix }}{{ (1,) }}{{ (1, 'a') }}{{ () }}{{ [] }}{{ {} }}{{ {'a': (1, 2)} }}{{ 1, 2 }}
{{ q }}{{ [q] }}{{ [u] }}{{ ["\n\t\x00\x7f\u00e9"] }}{{ ['a\'b"c'] }}
{{ big }}{{ [big] }}{{ big | tojson }}{{ 1e16 }}{{ 1e15 }}{{ 0.0001 }}{{ 1.5e-7 }}{{ 100.0 }}{{ 1_000 }}{{ 0x1F }}{{ 0b11 }}
{{ s[0] }}{{ s[-1] }}{{ s[99] is undefined }}{{ l[0] }}{{ l[-1] }}{{ l[9] is undefined }}{{ d['b'] }}{{ d.b }}{{ d.zz is undefined }}
{{ s[1:4] }}{{ s[::-1] }}{{ s[-3:] }}{{ s[:-3] }}{{ s[::2] }}{{ u[2:] }}{{ l[1:] }}{{ l[::-1] }}{{ l[5:] }}{{ l[-100:100:2] }}{{ s[3:1] }}{{ l[1:0:-1] }}
{{ d['items'] }}{{ d.items() | list }}{{ d.keys() | list }}{{ d.values() | list }}{{ d.get('b') }}{{ d.get('q', 9) }}{{ d.get('q') }}
{{ d.pop is undefined }}{{ l.append is undefined }}{{ d.items is callable }}{{ d.update is defined }}
{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in u %}[{{ c }}]{% endfor %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }}{{ loop.cycle('a', 'b') }};{% endfor %}
{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}none{% endfor %}{% for x in el %}{{ x }}{% else %}empty{% endfor %}
{% for x in missing %}x{% else %}none{% endfor %}{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% set x = 1 %}{% for i in l %}{% set x = i %}{{ x }}{% endfor %}{{ x }}{% if yes %}{% set x = 5 %}{% endif %}{{ x }}
{% set ns = namespace(a=1, b='x') %}{% for i in l %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c is undefined }}
{% set x %}a{{ n }}{% endset %}[{{ x }}]{% set x | upper %}ab{% endset %}[{{ x }}]{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t2 = 1, %}{{ t2 }}
{% macro m(a, b=2, c='z') %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, c=3) }}|{{ m(b=1, a=0) }}|{{ m() }}
{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(5) }}{{ m(2) | length }}{{ m.name }}
{% macro m() %}<{{ caller(3) }}>{% endmacro %}{% call(x) m() %}{{ x }}{{ n }}{% endcall %}
{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}
{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, a=3) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% filter upper %}abc {{ s }}{% endfilter %}{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a is undefined }}
{% for x in [[1, [2]], [3]] recursive %}({% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{{ loop.depth }}{% endif %}){% endfor %}
{% generation %}{% set g = 1 %}{{ n }}{% endgeneration %}{{ g is undefined }}
{% raw %}{{ x }} {% if %} {% endraw %}|{%- raw -%}  a  {%- endraw -%}  |
{#- c -#}  a  {#+ c +#} b{# c #}
{{ t | trim }}|{{ s | upper }}|{{ s | lower }}|{{ 'abC dEF' | title }}|{{ 'abC dEF' | capitalize }}|{{ 'a-b (c) [d] <e' | title }}
{{ s | replace('l', 'L') }}|{{ s | replace('l', 'L', 1) }}|{{ 'abc' | replace('', '-') }}|{{ 123 | replace('2', 'x') }}
{{ l | join }}{{ l | join(', ') }}{{ w | join('|') }}{{ rows | join(',', attribute='k') }}{{ 'abc' | join('-') }}
{{ l | length }}{{ s | length }}{{ u | count }}{{ d | length }}{{ missing | length }}
{{ missing | default('x') }}{{ e | default('x') }}{{ e | default('x', true) }}{{ nil | d('x') }}{{ nil | default('y', boolean=true) }}
{{ l | first }}{{ l | last }}{{ el | first is undefined }}{{ l | sum }}{{ l | min }}{{ l | max }}{{ w | min }}{{ w | max }}{{ rows | sum(attribute='v') }}
{{ l | sort }}{{ l | sort(reverse=true) }}{{ w | sort }}{{ w | sort(case_sensitive=true) }}{{ rows[:3] | sort(attribute='v') | map(attribute='k') | list }}{{ rows[:3] | sort(attribute='k,v') | map(attribute='v') | list }}
{{ l | reverse | list }}{{ s | reverse }}{{ w | unique | list }}{{ ['a', 'A', 'b'] | unique | list }}{{ s | list }}
{{ d | dictsort }}{{ {'b': 2, 'a': 3} | dictsort(by='value') }}{{ {'b': 2, 'a': 3} | dictsort(reverse=true) }}{{ {'b': 2} | items | list }}
{{ rows | selectattr('v') | map(attribute='k') | list }}{{ rows | selectattr('k', 'equalto', 'x') | list }}{{ rows | rejectattr('v', 'defined') | list }}
{{ l | select('odd') | list }}{{ l | reject('gt', 1) | list }}{{ mix | select('string') | list }}{{ l | map('string') | join('+') }}{{ rows | map(attribute='v', default=0) | list }}{{ w | map('upper') | list }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }}{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3, 4, 5] | slice(2) | list }}{{ [1, 2, 3] | slice(2, 'x') | list }}
{% for g in rows | groupby('k') %}{{ g.grouper }}:{{ g.list | length }} {% endfor %}{% for k, g in rows | groupby('v', default=0) %}{{ k }}{{ g }}{% endfor %}
{{ 2.5 | round }}{{ 3.5 | round }}{{ 2.345 | round(2) }}{{ 2.1 | round(0, 'ceil') }}{{ 2.19 | round(1, 'floor') }}{{ 7 | round }}{{ 1234 | round(-2) }}
{{ '12' | int }}{{ 'x' | int }}{{ 'x' | int(5) }}{{ '1.9' | int }}{{ 3.9 | int }}{{ 'ff' | int(0, 16) }}{{ '2.5' | float }}{{ 'x' | float }}{{ nil | int(4) }}{{ -5 | abs }}{{ neg | abs }}
{{ '%s and %d and %.2f and %5s|%-5s|%05d|%x' | format('a', 3, 2.5, 'b', 'c', 42, 255) }}{{ '%s' % 5 }}{{ '%s %s' % (1, 'b') }}{{ '%(a)s' % {'a': 1} }}{{ '100%%' | format }}
{{ '{} {} {0}'.format is callable }}{{ '{} {}'.format(1, 'b') }}{{ '{1}{0}{x}'.format('a', 'b', x=3) }}{{ '{:>5}|{:<5}|{:^5}|{:05.1f}|{:,}'.format('a', 'b', 'c', 2.25, 1234567) }}{{ '{{}}'.format() }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb\n' | indent(1, blank=true) }}|{{ '' | indent(2, true) }}|{{ lines | indent('> ') }}
{{ s | truncate(5) }}|{{ s | truncate(5, true, '..', 0) }}|{{ s | truncate(8, false, '!', 0) }}|{{ s | center(20) }}|{{ t | wordcount }}
{{ '<a href="x">&\'' | e }}{{ s | safe }}{{ 5 | string }}{{ nil | string }}{{ d | string }}
{{ d | tojson }}{{ mix | tojson(indent=2) }}{{ d | tojson(sort_keys=true) }}{{ u | tojson(ensure_ascii=true) }}{{ messages[2] | tojson }}{{ el | tojson(indent=4) }}{{ [1.0, 1e100, true] | tojson(separators=(',', ':')) }}
{{ missing | tojson }}
{{ s.strip('Hd') }}|{{ t.strip() }}|{{ t.lstrip() }}|{{ t.rstrip() }}|{{ 'xxaxx'.strip('x') }}
{{ s.split() }}{{ s.split(', ') }}{{ 'a,b,,c'.split(',') }}{{ 'a b  c '.split(' ') }}{{ ' a b  c '.split(none, 1) }}{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a b  c '.rsplit(none, 1) }}{{ ''.split() }}{{ ''.split(',') }}
{{ lines.splitlines() }}{{ lines.splitlines(true) }}{{ 'a.b.c'.partition('.') }}{{ 'a.b.c'.rpartition('.') }}{{ 'abc'.partition('.') }}{{ 'abc'.rpartition('.') }}
{{ s.startswith('He') }}{{ s.endswith(('x', 'ld')) }}{{ s.startswith('e', 1) }}{{ s.find('o') }}{{ s.rfind('o') }}{{ s.find('q') }}{{ s.count('l') }}{{ u.find('天') }}{{ s.index('W') }}{{ s.find('o', 5) }}{{ 'aaa'.count('') }}
{{ s.upper() }}{{ s.lower() }}{{ s.title() }}{{ "they're bill's".title() }}{{ s.swapcase() }}{{ 'aBC'.capitalize() }}{{ s.replace('o', '0') }}{{ s.replace('l', '', 2) }}{{ 'ß'.upper() }}
{{ '-'.join(['a', 'b']) }}{{ '5'.zfill(3) }}{{ '-5'.zfill(4) }}{{ 'a'.center(4, '*') }}{{ 'ab'.center(5) }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}{{ 'a\tb'.expandtabs(4) }}
{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.py'.removesuffix('.py') }}{{ '12'.isdigit() }}{{ 'a1'.isalnum() }}{{ 'ab'.isalpha() }}{{ ' '.isspace() }}{{ 'AB'.isupper() }}{{ 'ab'.islower() }}{{ ''.isdigit() }}{{ 'é'.isascii() }}
{{ l.count(1) }}{{ l.index(2) }}{{ (1, 2).count(1) }}{{ l.copy() }}{{ d.copy() == d }}
{{ n is number }}{{ s is string }}{{ d is mapping }}{{ l is sequence }}{{ l is iterable }}{{ n is iterable }}{{ nil is none }}{{ yes is boolean }}{{ yes is true }}{{ no is false }}{{ n is integer }}{{ f is float }}{{ yes is integer }}{{ n is odd }}{{ n is even }}{{ n is divisibleby 7 }}{{ n is divisibleby(2) }}
{{ 'a' is lower }}{{ 'A' is upper }}{{ n is sameas n }}{{ 1 is in l }}{{ 1 is eq 1 }}{{ n is gt(3) }}{{ n is not none }}{{ missing is not defined }}{{ s is not mapping }}{{ 'upper' is filter }}{{ 'odd' is test }}{{ range is callable }}
{{ range(5) | list }}{{ range(1, 4) | list }}{{ range(5, 0, -2) | list }}{% for i in range(0) %}x{% else %}-{% endfor %}{{ dict(a=1, b=2) }}{{ dict([('x', 1)]) }}
{{ 'abc' * 2 }}{{ 2 * 'ab' }}{{ [1] * 3 }}{{ [1] + [2] }}{{ (1,) + (2,) }}{{ 'a' * -1 }}{{ ['a'] + ['b'] }}
{{ messages[0].content }}{{ messages[0]['role'] }}{{ messages[-1].tool_calls[0].function.arguments | tojson }}{{ messages.0.role }}
{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{% for m in messages[1:] %}{%- if loop.first and m['role'] != 'user' %}x{% elif m.content is string and '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{%- else %}{{ m.content }}{% endif -%} {% endfor %}
{{ missing.x }}
{{ missing() }}
{{ 1 + 'a' }}
{{ 'a' + none }}
{{ [1] + (2,) }}
{{ none < 1 }}
{{ 1 / 0 }}
{{ l.nope() }}
{{ s | nope }}
{{ s is nope }}
{{ none | length }}
{{ [3, 'a'] | sort }}
{{ raise_exception('x') }}
{{ range(200000) }}
{{ {[1]: 2} }}
{% for x in 5 %}{% endfor %}
{% set n.a = 1 %}
{{ missing + 1 }}{{ 'x' }}
{{ -s }}
{{ 'x'.index('y') }}
{{ }}
{{ 1 + }}
{% if %}x{% endif %}
{% for in l %}{% endfor %}
{% endif %}
{% if yes %}
{% frobnicate %}
{{ 'a }}
{{ (1 }}
{{ [1, 2,] }}{{ {'a': 1,} }}{{ m is defined }}{{ true }}{{ True }}{{ none }}{{ None }}{{ none is none }}
{{ s | upper | lower | replace('l', 'x') | length + 1 }}{{ -5 | abs }}{{ not s | length }}{{ s | length > 3 and true }}{{ l | length == 3 }}
{{ -n }}{{ +n }}{{ - -n }}{{ -f }}{{ (-3) ** 2 }}
{{ 'a' if s is string and s | length else 'b' }}{{ [x for x in l] }}
{{ s[0:2] ~ s[2:] == s }}{{ s.upper().lower()[0] }}{{ (l + [9])[-1] }}{{ {'a': {'b': [5]}}.a.b[0] }}{{ {'a': 1}['a'] }}
{% if l %}a{% endif %}{% if el %}b{% endif %}{% if d and not ed %}c{% endif %}{% if z or f %}d{% endif %}{% if nil is none or missing %}e{% endif %}
""".strip("\n").split("\n")

LAYOUT = [
    "a\n  {% if yes %}\n  b\n  {% endif %}\nc\n", "a {%- if yes -%} b {%- endif -%} c", "\n{% if yes %}\n\nx\n{% endif %}\n\n",
    "  {{ n }}  \n  {{- n -}}  \n  {{ n }}\n", "{% for x in l %}\n  {{ x }}\n{% endfor %}\n", "a\r\nb\r{% if yes %}\r\nc{% endif %}\r\n",
    "  {%+ if yes %} x {%+ endif +%}\n y", "{# a #}\n{# b #}  \n  {# c #}x", "{%- set x = 1 -%}\n\n {{ x }}\n\n", "{% raw %}\n {{ a }}\n{% endraw %}\n b",
    "x{% if yes %}\n", "\n\n", "", "{{ '\n' }}", "a\n\n{%- if yes %}\n\n  b{% endif %}", "{{ n -}}\n  b\n  {{- n }}", "  {#- x #}\n  y",
    "{% if yes -%}\n   a\n   {%- else -%} b {%- endif %}", "\t{% if yes %}\t\n\t{% endif %}\tx", "{{n}}{%if yes%}a{%endif%}",
]


def case(source):
    try:
        text = environment.from_string(source).render(**copy.deepcopy(VARIABLES))
    except Exception:
        text = None
    return {"template": source, "text": text}


def random_source(rng):
    atoms = ["n", "z", "neg", "f", "yes", "no", "nil", "s", "t", "u", "e", "q", "l", "w", "el", "mix", "d", "ed", "rows",
             "messages", "missing", "1", "0", "-2", "3.5", "'a'", "'l'", "', '", "''", "[1, 2]", "(1, 'b')", "{'a': 1}",
             "true", "none", "lines", "rows[0]", "messages[0].content", "d.a", "'%s-%s'", "'{}'"]
    filters = ["upper", "lower", "trim", "length", "list", "join", "join('-')", "first", "last", "sort", "reverse | list",
               "unique | list", "string", "tojson", "int", "float", "abs", "round", "default('x')", "default('x', true)",
               "replace('l', 'LL')", "title", "capitalize", "sum", "min", "max", "batch(2) | list", "slice(2) | list",
               "select | list", "reject | list", "map('string') | list", "map('upper') | list", "indent(2)", "wordcount",
               "dictsort", "items | list", "center(9)", "truncate(4)", "e", "tojson(indent=2)", "format(1, 2)",
               "map(attribute='k') | list", "selectattr('v') | list", "sort(attribute='k') | list", "count",
               "selectattr('v', 'gt', 1) | list", "groupby('k') | list | length", "round(1)", "attr('b')"]
    methods = ["strip()", "split()", "split('l')", "upper()", "lower()", "title()", "startswith('H')", "endswith('d')",
               "replace('l', 'x')", "find('o')", "splitlines()", "items()", "get('b')", "get('zz', 3)", "keys() | list",
               "values() | list", "rsplit('o', 1)", "partition(' ')", "count('l')", "lstrip()", "rstrip('d')", "isdigit()",
               "join(['x', 'y'])", "zfill(5)", "center(8)", "format(1)", "swapcase()", "index(1)", "capitalize()"]
    tests = ["defined", "undefined", "none", "string", "number", "mapping", "iterable", "sequence", "odd", "even",
             "true", "false", "boolean", "integer", "float", "lower", "upper", "in l", "eq 1", "gt 2", "divisibleby 2",
             "not none", "not string", "callable", "sameas none"]
    operators = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "**"]
    indices = ["[0]", "[-1]", "[1:]", "[:2]", "[::-1]", "[::2]", "['b']", ".a", ".k", "['zz']", "[-2:]", ".0"]

    def expr(depth):
        kind = rng.randrange(13 if depth > 0 else 1)
        if kind <= 2:
            return rng.choice(atoms)
        if kind <= 4:
            return f"{operand(depth)} {rng.choice(operators)} {operand(depth)}"
        if kind <= 6:
            return f"{operand(depth)} | {rng.choice(filters)}"
        if kind == 7:
            return f"{operand(depth)} is {rng.choice(tests)}"
        if kind <= 9:
            return f"{operand(depth)}.{rng.choice(methods)}"
        if kind == 10:
            return f"{operand(depth)}{rng.choice(indices)}"
        if kind == 11:
            return f"{expr(depth - 1)} if {expr(depth - 1)} else {expr(depth - 1)}"
        return rng.choice(["not ", "-"]) + operand(depth)

    def operand(depth):
        inner = expr(depth - 1)
        return inner if rng.random() < 0.3 else f"({inner})"

    def space():
        return rng.choice(["", "", "", " ", "\n", "\n  ", "  \n", "\n\n"])

    def sign():
        return rng.choice(["", "", "", "-", "+"])

    def end():
        return rng.choice(["", "", "", "-"])

    def body(depth):
        out = ""
        for _ in range(rng.randrange(1, 4)):
            out += space() + statement(depth) + space()
        return out

    def statement(depth):
        kind = rng.randrange(9 if depth > 0 else 4)
        if kind <= 2:
            return "{{" + sign() + " " + expr(2) + " " + end() + "}}"
        if kind == 3:
            return rng.choice(["x", "a b", "{# c #}", "{#- c -#}", "\n", " "])
        if kind == 4:
            return (f"{{%{sign()} if {expr(2)} {end()}%}}{body(depth - 1)}{{%{sign()} elif {expr(1)} {end()}%}}"
                    f"{body(depth - 1)}{{%{sign()} else {end()}%}}{body(depth - 1)}{{%{sign()} endif {end()}%}}")
        if kind == 5:
            name = rng.choice(["n", "s", "x"])
            return (f"{{%{sign()} for {name} in {operand(2)} {end()}%}}{body(depth - 1)}{{{{ loop.index }}}}"
                    f"{{%{sign()} endfor {end()}%}}")
        if kind == 6:
            return f"{{%{sign()} set {rng.choice(['n', 's', 'l', 'x'])} = {expr(2)} {end()}%}}"
        if kind == 7:
            return f"{{%{sign()} set x {end()}%}}{body(depth - 1)}{{%{sign()} endset {end()}%}}{{{{ x }}}}"
        return (f"{{%{sign()} macro m(a, b=1) {end()}%}}{body(depth - 1)}{{{{ a }}}}{{%{sign()} endmacro {end()}%}}"
                f"{{{{ m({expr(1)}) }}}}")

    return body(2)


def main():
    if len(sys.argv) == 3:
        rng = random.Random(int(sys.argv[1]))
        sources = [random_source(rng) for _ in range(int(sys.argv[2]))]
    else:
        sources = CASES + LAYOUT
    print(json.dumps({"variables": VARIABLES, "cases": [case(source) for source in sources]}, ensure_ascii=False, indent=0))


main()
