"""Templates that `check-jinja.py` compares, written by hand: small ones of one construct each, and whole chats.

Each template of CASES and LAYOUT is rendered with VARIABLES; those of CHATS with each conversation of CONVERSATIONS.
"""

VARIABLES = {
    "n": 7, "z": 0, "neg": -3, "f": 2.5, "yes": True, "no": False, "nil": None,
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
{{ 123456789012345678901234567890 }}{{ [123456789012345678901234567890] }}{{ 123456789012345678901234567890 | tojson }}{{ 1e16 }}{{ 1e15 }}{{ 0.0001 }}{{ 1.5e-7 }}{{ 100.0 }}{{ 1_000 }}{{ 0x1F }}{{ 0b11 }}
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
{% set x = 1 %}{% block a %}[{{ x }}{{ n }}]{% set x = 2 %}{{ x }}{% endblock %}{{ x }}{% block b -%} y {%- endblock b %}
{% for i in l %}{% block a %}{{ i is defined }}{{ loop is defined }}{{ n }}{% endblock %}{% block b scoped %}{{ i }}{{ loop.index }}{% endblock %}{% endfor %}
{% macro m(x) %}<{{ x }}{% block c %}{{ x is defined }}{{ n }}{% endblock %}>{% endmacro %}{% block a %}{{ m(1) }}{% block b %}{{ m(2) }}{% endblock %}{% endblock %}
{% with x = 1 %}{% block a %}{{ x is defined }}{% endblock %}{% endwith %}{% if yes %}{% set x = 3 %}{% block b %}{{ x }}{% endblock %}{% endif %}
{% block a %}{% macro m() %}m{% endmacro %}{{ m() }}{% endblock %}{{ m is defined }}{% set ns = namespace(a=1) %}{% block b %}{% set ns.a = 5 %}{% endblock %}{{ ns.a }}
{% block a %}1{% endblock %}{% block a %}2{% endblock %}
{% block a %}1{% endblock b %}
{% block a required %}{% endblock %}
{% for i in l %}{% block a %}{% break %}{% endblock %}{% endfor %}
{% set x = 1 %}{% autoescape false %}{{ '<&>' }}{% set x = 2 %}{{ x }}{% for i in l %}{{ i }}{% endfor %}{% endautoescape %}{{ x }}{% for i in l %}{% autoescape false %}{% break %}{% endautoescape %}{% endfor %}
{% print 1, s %}|{% print 'a' if yes else 'b' %}|{% print missing %}|{% print %}
{% set ns = namespace(a=1, _b=2) %}{% for x in l %}{{ ns.a }}{% set ns = namespace(a=x) %}{{ ns.a }}{% endfor %}{{ ns.a }}{{ ns._b }}{{ ns['_b'] }}
{% set ns = namespace(a=1) %}{% for x in l %}{% set ns.a = x %}{% set ns = 5 %}{{ ns }}{% endfor %}{{ ns.a }}{% set a, ns.b = 8, 9 %}{{ a }}{{ ns.b }}
{% set ns = namespace(a=1) %}{% for x in l %}{% set ns = 5 %}{% set ns.a = x %}{% endfor %}
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
{{ 'ab'.isidentifier() }}{{ '1a'.isidentifier() }}{{ 'A Bc'.istitle() }}{{ 'a\n'.isprintable() }}{{ '²½五٣'.isdigit() }}{{ '²'.isdigit() }}{{ '½五'.isnumeric() }}{{ '٣'.isdecimal() }}{{ 'ा'.isalpha() }}
{{ 'Straße ﬁ İ'.casefold() }}{{ 'ǆ ßx ﬁ ა'.title() }}{{ 'ΑΣ'.lower() }}{{ 'ßa'.capitalize() }}{{ 'abc'.translate({97: 'X', 98: none}) }}{{ 'abc'.translate('x'.maketrans('ab', 'yz', 'c')) }}
{{ 'a,b,c'.split(sep=',', maxsplit=1) }}{{ 'a\nb'.splitlines(keepends=true) }}{{ 'a\tb'.expandtabs(tabsize=2) }}{{ '{a[b]}{c.k}'.format(a={'b': 1}, c={'k': 2}) }}{{ '{x}'.format_map({'x': 3}) }}{{ {}.fromkeys(['a', 'b'], 0) }}
{{ 'abc'.strip(chars='a') }}
{{ '{:{}}|{:>{w}}'.format('a', 4, 'b', w=3) }}{{ '{:+.2e}|{:g}|{:.3}|{:_x}|{:010,}|{:#b}|{:%}'.format(1234.5, 1e-5, 1234.5, 70000, 1234567, 5, 0.25) }}{{ '%*d|%-*d|%+.1e|%g|%#x|%ld|%a' % (5, 42, 4, 7, 12345.678, 0.00001, 255, 3, 'é') }}
{{ d.keys() }}{{ d.values() }}{{ d.items() }}{{ range(3) }}{{ range(1, 9, 2)[1:] }}{{ range(3)[1] }}{{ d.keys() == ['b'] }}{{ range(3) is sequence }}{{ d.keys() is sequence }}{{ d.items() | length }}{{ d.keys()[0] is undefined }}
{% set g = rows | selectattr('v', 'gt', 99) %}{% if g %}true though empty{% endif %}{% set h = l | map('string') %}{{ h | list }}{{ h | list }}{{ h is iterable }}{{ h is sequence }}{% for x in l | select %}{{ loop.length }}{% endfor %}
{% set h = l | map('string') %}{% for x in h %}{{ x }}{% break %}{% endfor %}|{{ h | first }}|{{ h | join('+') }}|{{ '2' in h }}
{{ (l | map('string')) | length }}
{{ (l | select) | last }}
{{ l | map('list') is defined }}
{{ l | map('list') | list }}
{{ 1536 | filesizeformat }}{{ 1536 | filesizeformat(true) }}{{ 1 | filesizeformat }}{{ 'a b/ü' | urlencode }}{{ {'a b': 1, 'c': '&'} | urlencode }}{{ 'aa bb ccccccc-ddd eeee' | wordwrap(6) }}{{ 'aaaaaaa bb' | wordwrap(4, false, '/') }}
{{ namespace(a=1) }}{% for x in l %}{{ loop }}{% endfor %}{{ 5 .bit_length() }}{{ 2.0.is_integer() }}{{ strftime_now('%Y-%m-%d %H:%M %A %j %e') }}
{{ missing | int }}
{{ missing | float }}
{% filter length %}abc{% endfilter %}
{% if x.y is defined %}{{ x.y }}{% endif %}
{% if n is string if yes %}{% endif %}
{{ {'items': 1, 'get': 2, 'x': 3}.get('x') }}{{ {'items': 1}['items'] }}{% for k, v in {'items': 1, 'keys': 2}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'values': 5}.values() | list }}
{{ "\U0001F600\x41\101\u00e9\
z" }}{{ 'a\r\nb' }}{{ '\q\'' }}{{ "tab\there" }}
{{ 7 // 2.0 }}{{ -7 // 2 }}{{ -7.5 % 2 }}{{ 1e22 }}{{ 0.1 + 0.2 }}{{ 10 / 5 }}{{ 2 ** 0.5 }}{{ 2 ** 64 }}{{ 5 % -3 }}{{ 1e300 * 1e10 }}{{ 3.0 }}{{ 1_0.5 }}
""".strip("\n").split("\n")

LAYOUT = [
    "a\n  {% if yes %}\n  b\n  {% endif %}\nc\n", "a {%- if yes -%} b {%- endif -%} c", "\n{% if yes %}\n\nx\n{% endif %}\n\n",
    "  {{ n }}  \n  {{- n -}}  \n  {{ n }}\n", "{% for x in l %}\n  {{ x }}\n{% endfor %}\n", "a\r\nb\r{% if yes %}\r\nc{% endif %}\r\n",
    "  {%+ if yes %} x {%+ endif +%}\n y", "{# a #}\n{# b #}  \n  {# c #}x", "{%- set x = 1 -%}\n\n {{ x }}\n\n", "{% raw %}\n {{ a }}\n{% endraw %}\n b",
    "x{% if yes %}\n", "\n\n", "", "{{ '\n' }}", "a\n\n{%- if yes %}\n\n  b{% endif %}", "{{ n -}}\n  b\n  {{- n }}", "  {#- x #}\n  y",
    "{% if yes -%}\n   a\n   {%- else -%} b {%- endif %}", "\t{% if yes %}\t\n\t{% endif %}\tx", "{{n}}{%if yes%}a{%endif%}",
]

# Whole chats with the constructs of published templates, each written anew.

# Tools in the system's turn, answers of tools gathered in a user's turn.
TOOLS_IN_SYSTEM = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'Be of use.' }}
    {%- endif %}
    {{- "\\n\\n# Functions\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\n{\\"name\\": <name>, \\"arguments\\": <object>}<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nBe of use.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Thinking cut from earlier answers; the last question found from the end; a switch for thinking.
THINKING = """
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- set call = call.function or call %}
            {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role != 'tool' %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

# State in a namespace, the system's words first, calls with a fence around their arguments, all on few lines.
STATES = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is none or message.tool_calls %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}{{'<|Assistant|><|calls|><|call|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments']|tojson + '\\n' + '```' + '<|end|>'}}{%- set ns.is_first = true -%}{%- else %}{{'\\n' + '<|call|>' + tool['function']['name']}}{%- endif %}{%- endfor %}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}{{'<|outputs_end|>' + message['content'] + '<|eos|>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + '<|eos|>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<|outputs|><|output|>' + message['content'] + '<|output_end|>'}}{%- set ns.is_output_first = false %}{%- else %}{{'\\n<|output|>' + message['content'] + '<|output_end|>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<|outputs_end|>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}"""

# A macro that writes a JSON schema as types, calling itself; a roles' check that refuses.
MACROS = """
{%- macro json_type(spec) %}
    {%- set basic = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
    {%- if basic[spec.type] is defined %}
        {{- basic[spec.type] }}
    {%- elif spec.type == "array" %}
        {{- "list[" + json_type(spec['items']) + "]" }}
    {%- elif spec.type == "object" %}
        {%- if spec.additionalProperties is defined %}{{- "dict[str, " ~ json_type(spec.additionalProperties) ~ ']' }}{%- else %}{{- "dict" }}{%- endif %}
    {%- elif spec.type is iterable and spec.type is not string %}
        {{- "Union[" }}
        {%- for t in spec.type %}
            {{- json_type({"type": t}) }}
            {%- if not loop.last %}{{- "," }}{%- endif %}
        {%- endfor %}
        {{- "]" }}
    {%- else %}
        {{- "Any" }}
    {%- endif %}
{%- endmacro %}
{%- macro block(role) %}{{ '<|' ~ role ~ '|>' }}{{ caller() }}<|end|>
{% endmacro %}
{{- bos_token }}
{%- for tool in tools or [] %}
    {%- if tool.function is defined %}{%- set tool = tool.function %}{%- endif %}
    {{- '{"name": "' + tool.name + '", "description": "' + tool.name + '(' }}
    {%- for name, spec in tool.parameters.properties.items() %}
        {{- name + ": " + json_type(spec) }}
        {%- if not loop.last %}{{- ", " }}{%- endif %}
    {%- endfor %}
    {{- ")" }}
    {%- for name, spec in tool.parameters.properties|dictsort(reverse=true) %}
        {{- "\\n    " + name + ('*' if name in (tool.parameters.required or []) else '') + ': ' + (spec.description | default('?') | trim) }}
    {%- endfor %}
    {{- '"}\\n' }}
{%- endfor %}
{%- for message in messages if message.role != 'tool' %}
    {%- if loop.index > 1 and message.role == loop.previtem.role %}
        {{- raise_exception('Roles must alternate: ' ~ message.role ~ ' at ' ~ loop.index) }}
    {%- endif %}
    {%- call block(message.role) %}{% generation %}{{ message.content or '' }}{% endgeneration %}{% endcall %}
{%- endfor %}
"""

# Headers, a date, tools in the first user's turn, contents as parts, names and slices.
HEADERS = """
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and tools is not none and tools %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("There is no user message to put tools into.") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if message.content is string %}{{- message['content'] | trim }}{%- else %}
        {%- for part in message.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}{%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("Only one call at a time.") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

# Parameters of tools as tags, for code: keys beside methods of the same name, other keys rendered by a macro.
CODE_TOOLS = """
{% macro render_extra_keys(json_dict, handled_keys) %}
    {%- if json_dict is mapping %}
        {%- for json_key in json_dict if json_key not in handled_keys %}
            {%- if json_dict[json_key] is mapping or (json_dict[json_key] is sequence and json_dict[json_key] is not string) %}
                {{- '\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | tojson | safe) ~ '</' ~ json_key ~ '>' }}
            {%- else %}
                {{-'\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | string) ~ '</' ~ json_key ~ '>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{%- if tools is iterable and tools | length > 0 %}
    {{- "<tools>" }}
    {%- for tool in tools %}
        {%- if tool.function is defined %}{%- set tool = tool.function %}{%- endif %}
        {{- "\\n<function>\\n<name>" ~ tool.name ~ "</name>" }}
        {%- if tool.description is defined %}{{- '\\n<description>' ~ (tool.description | trim) ~ '</description>' }}{%- endif %}
        {%- if tool.parameters is defined and tool.parameters is mapping and tool.parameters.properties is defined %}
            {%- for param_name, param_fields in tool.parameters.properties|items %}
                {{- '\\n<parameter>\\n<name>' ~ param_name ~ '</name>' }}
                {{- render_extra_keys(param_fields, ['name', 'type', 'description']) }}
                {{- '\\n</parameter>' }}
            {%- endfor %}
        {%- endif %}
        {{- render_extra_keys(tool.parameters, ['type', 'properties']) }}
    {%- endfor %}
    {{- "\\n</tools>" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined and message.tool_calls is iterable and message.tool_calls | length > 0 %}
        {%- for tool_call in message.tool_calls %}
            {{- '\\n<tool_call>\\n<function=' + tool_call.function.name + '>\\n' }}
            {%- for args_name, args_value in tool_call.function.arguments|items %}
                {{- '<parameter=' + args_name + '>\\n' }}
                {%- set args_value = args_value | tojson | safe if args_value is mapping or (args_value is sequence and args_value is not string) else args_value | string %}
                {{- args_value }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>' }}
        {%- endfor %}
    {%- else %}
        {{- '\\n[' + message.role + ']\\n' + (message.content or '') }}
    {%- endif %}
{%- endfor %}
"""

CHATS = [TOOLS_IN_SYSTEM, THINKING, STATES, MACROS, HEADERS, CODE_TOOLS, TOOLS_IN_SYSTEM.replace("\n", "\r\n")]

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": " The weather <now> & \"here\". ",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "né 天"}, "days": {"type": ["integer", "null"], "default": 1.0},
        "items": {"type": "array", "items": {"type": "string"}, "minItems": 1}, "map": {
            "type": "object", "additionalProperties": {"type": "number"}}}}}}
CALL = {"id": "c1", "type": "function", "function": {
    "name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "items": ["a", None, True], "map": {"x": 1e-7}}}}

CONVERSATIONS = [
    {"bos_token": "<s>", "add_generation_prompt": True, "tools": tools, **others, "messages": messages}
    for tools, others, messages in [
        (None, {}, [{"role": "user", "content": " Hi "}]),
        (None, {"enable_thinking": False}, [
            {"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "1"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nOne."}, {"role": "user", "content": "2"}]),
        ([WEATHER], {"add_generation_prompt": False}, [
            {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "{\"t\": 21.5}"}, {"role": "tool", "content": "ok"},
            {"role": "assistant", "content": "<think>x</think>21.5"}]),
        ([WEATHER, WEATHER["function"]], {"date_string": "1 Jan"}, [
            {"role": "system", "content": "S"}, {"role": "user", "content": "Both?"},
            {"role": "assistant", "content": "Two.", "tool_calls": [CALL, CALL]}, {"role": "tool", "content": "1"}]),
        (None, {}, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        ([], {}, [{"role": "user", "content": [{"type": "text", "text": "p"}, {"type": "image"}]}]),
    ]
]
