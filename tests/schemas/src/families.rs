//! The families. Each is a few lines that make many schemas.

use serde_json::{Map, Value, json};

use crate::Case;

/// All schemas, in order.
pub fn all() -> Vec<Case> {
    let families: [(&str, Vec<Value>); 15] = [
        ("type", types()),
        ("number", numbers()),
        ("string", strings()),
        ("pattern", patterns()),
        ("format", formats()),
        ("enum", enums()),
        ("array", arrays()),
        ("object", objects()),
        ("nested", nested()),
        ("ref", refs()),
        ("any_of", any_of()),
        ("one_of", one_of()),
        ("all_of", all_of()),
        ("unicode", unicode()),
        ("record", records()),
    ];
    let number = |(family, schemas): (&str, Vec<Value>)| {
        let family = family.to_owned();
        schemas.into_iter().enumerate().map(move |(at, schema)| Case { name: format!("{family}/{at}"), schema })
    };
    families.into_iter().flat_map(number).collect()
}

const TYPES: [&str; 5] = ["string", "integer", "number", "boolean", "null"];

/// A closed object whose properties are all required.
fn closed(properties: &Value) -> Value {
    let required: Vec<&String> = properties.as_object().map(|map| map.keys().collect()).unwrap_or_default();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn with(mut schema: Value, more: Value) -> Value {
    if let (Value::Object(schema), Value::Object(more)) = (&mut schema, more) {
        schema.extend(more);
    }
    schema
}

fn types() -> Vec<Value> {
    let mut all: Vec<Value> = TYPES.iter().map(|name| json!({"type": name})).collect();
    for (at, first) in TYPES.iter().enumerate() {
        // Every integer is a number.
        let others = TYPES[at + 1..].iter().filter(|second| (*first, **second) != ("integer", "number"));
        all.extend(others.map(|second| json!({"type": [first, second]})));
    }
    all.extend(TYPES.iter().map(|name| {
        json!({"title": "T", "description": "says: \"text\"", "type": name, "examples": [], "deprecated": true,
            "$comment": "none", "readOnly": true})
    }));
    all.push(json!({"type": "boolean", "default": true}));
    all
}

fn numbers() -> Vec<Value> {
    let bounds = [
        json!({"minimum": 0}),
        json!({"maximum": 0}),
        json!({"minimum": 0, "maximum": 9}),
        json!({"minimum": 0, "maximum": 130}),
        json!({"minimum": -20, "maximum": 40}),
        json!({"minimum": 18, "maximum": 18}),
        json!({"minimum": 99, "maximum": 1001}),
        json!({"exclusiveMinimum": 0}),
        json!({"exclusiveMinimum": 0, "exclusiveMaximum": 3}),
        json!({"exclusiveMinimum": -1, "maximum": 1}),
        json!({"minimum": 1_000_000, "maximum": 1_000_999}),
        json!({"minimum": -1_000, "exclusiveMaximum": -10}),
    ];
    let mut all: Vec<Value> = ["integer", "number"]
        .iter()
        .flat_map(|name| bounds.iter().map(move |bound| with(json!({"type": name}), bound.clone())))
        .collect();
    all.extend([
        json!({"type": "number", "minimum": 0.5, "maximum": 1.5}),
        json!({"type": "number", "minimum": -0.25, "maximum": 0.25}),
        json!({"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.2}),
        json!({"type": "integer", "minimum": 0.5, "maximum": 7.5}),
        json!({"type": "integer", "multipleOf": 5}),
        json!({"type": "integer", "multipleOf": 3, "minimum": 1, "maximum": 99}),
        json!({"minimum": 3, "type": ["integer", "null"], "maximum": 12}),
    ]);
    all
}

fn strings() -> Vec<Value> {
    let mut all: Vec<Value> = (0..8).map(|most| json!({"type": "string", "maxLength": most})).collect();
    all.extend((1..5).map(|least| json!({"type": "string", "minLength": least, "maxLength": least * 2})));
    all.extend((1..4).map(|len| json!({"type": "string", "minLength": len, "maxLength": len})));
    all.push(json!({"type": "string", "minLength": 3}));
    all
}

fn patterns() -> Vec<Value> {
    let patterns = [
        "^a+$",
        "^[A-Z]{3}$",
        "^[a-z]+-[0-9]{2,4}$",
        "^(red|green|blue)$",
        "^#[0-9a-fA-F]{6}$",
        "^\\+?[0-9]{7,12}$",
        "^[0-9]{4}-[0-9]{2}$",
        "^v[0-9]+\\.[0-9]+\\.[0-9]+$",
        "^$",
        "^x?y*z+$",
        "^[^\"\\\\]{1,5}$",
        "^\\d{3}-\\d{4}$",
        "^\\w{2,6}$",
        "^(a|b)(c|d)(e|f)?$",
        "^[ab]{0,5}c$",
        "^\\s?[a-f]$",
        "^.{2,4}$",
        "^https?://[a-z]{2,8}\\.example/[a-z0-9]{0,6}$",
        "^[äöü]{1,3}$",
        "^/[a-z]+(/[a-z]+){0,2}$",
    ];
    let mut all: Vec<Value> = patterns.iter().map(|pattern| json!({"type": "string", "pattern": pattern})).collect();
    all.extend(patterns[..8].iter().map(|pattern| closed(&json!({"id": {"type": "string", "pattern": pattern}}))));
    all.push(json!({"type": "string", "pattern": "^[a-z]*$", "minLength": 2, "maxLength": 5}));
    all
}

fn formats() -> Vec<Value> {
    let names = ["date", "time", "date-time", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"];
    let mut all: Vec<Value> = names.iter().map(|name| json!({"type": "string", "format": name})).collect();
    all.extend(
        names.iter().map(|name| closed(&json!({"at": {"type": "string", "format": name}, "kind": {"const": name}}))),
    );
    all
}

fn enums() -> Vec<Value> {
    vec![
        json!({"enum": ["a"]}),
        json!({"enum": ["red", "green", "blue"]}),
        json!({"enum": ["a", "ab", "abc", "b"]}),
        json!({"enum": [1, 2, 3]}),
        json!({"enum": [1.5, -2, 1000]}),
        json!({"enum": [true, null, "x", 7]}),
        json!({"enum": [[1, 2], [], ["a"]]}),
        json!({"enum": [{"a": 1}, {"b": [true]}]}),
        json!({"enum": ["", " ", "\"", "\\", "\n"]}),
        json!({"type": "string", "enum": ["x", "y"]}),
        json!({"type": "integer", "enum": [10, 20]}),
        json!({"enum": (0..200).map(|n| format!("choice {n}")).collect::<Vec<_>>()}),
        json!({"const": "only"}),
        json!({"const": 42}),
        json!({"const": null}),
        json!({"const": {"a": [1, {"b": false}]}}),
        json!({"const": [[], [[]]]}),
        closed(&json!({"kind": {"const": "circle"}, "color": {"enum": ["red", "blue"]}})),
    ]
}

fn arrays() -> Vec<Value> {
    let mut all = Vec::new();
    for name in TYPES {
        for bounds in [json!({"maxItems": 2}), json!({"minItems": 1, "maxItems": 3}), json!({"minItems": 2})] {
            all.push(with(json!({"type": "array", "items": {"type": name}}), bounds));
        }
    }
    all.extend([
        json!({"type": "array", "maxItems": 0}),
        json!({"type": "array", "items": {"enum": ["a", "b"]}}),
        json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": false, "minItems": 2}),
        json!({"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "null"}}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"const": 0}}}}),
        json!({"type": "array", "items": closed(&json!({"x": {"type": "integer"}, "y": {"type": "integer"}}))}),
        json!({"type": "array", "items": false}),
        json!({"type": "array", "items": {"type": ["string", "null"]}, "minItems": 3, "maxItems": 3}),
        json!({"type": "array", "items": {"anyOf": [{"type": "integer"}, {"enum": ["x"]}]}}),
    ]);
    all
}

fn objects() -> Vec<Value> {
    let mut all = Vec::new();
    let properties = json!({"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "boolean"},
        "c": {"enum": ["x", "y"]}});
    for set in 0..8 {
        let names = ["a", "b", "c"].iter().enumerate().filter(|(at, _)| set >> at & 1 == 1);
        let required: Vec<_> = names.map(|(_, name)| name).collect();
        all.push(json!({"type": "object", "properties": properties, "required": required,
            "additionalProperties": false}));
    }
    for name in TYPES {
        all.push(closed(&json!({"value": {"type": name}})));
        all.push(json!({"type": "object", "properties": {"value": {"type": name}}, "additionalProperties": false}));
    }
    all.extend([
        json!({"type": "object", "additionalProperties": false}),
        json!({"type": "object", "properties": {}, "additionalProperties": false}),
        json!({"type": "object", "additionalProperties": {"type": "boolean"}}),
        json!({"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}, "maxProperties": 2}),
        json!({"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"type": "null"}}),
        json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
            "additionalProperties": {"type": "boolean"}}),
        json!({"type": "object", "patternProperties": {"^n_": {"type": "boolean"}}, "additionalProperties": false}),
        json!({"type": "object", "patternProperties": {"^n_": {"const": 1}, "^s_": {"const": "x"}},
            "additionalProperties": false}),
        json!({"type": "object", "required": ["b"], "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": true, "b": false}, "additionalProperties": false}),
        json!({"type": ["object", "null"], "properties": {"a": {"const": true}}, "required": ["a"],
            "additionalProperties": false}),
        closed(&json!({"": {"type": "null"}, " ": {"type": "null"}})),
        closed(&json!({"a\"b": {"const": 1}, "c\\d": {"const": 2}, "e\nf": {"const": 3}})),
    ]);
    // Wide ones.
    for width in [5, 10, 20] {
        let properties: Map<String, Value> =
            (0..width).map(|at| (format!("property_{at}"), json!({"type": TYPES[at % 2 + 1]}))).collect();
        all.push(closed(&Value::Object(properties)));
    }
    all
}

fn nested() -> Vec<Value> {
    let mut all = Vec::new();
    let mut object = json!({"type": "boolean"});
    let mut array = json!({"type": "integer", "minimum": 1, "maximum": 9});
    let mut both = json!({"type": "null"});
    for depth in 0..8 {
        object = closed(&json!({format!("level_{depth}"): object}));
        array = json!({"type": "array", "items": array, "minItems": 1, "maxItems": 2});
        both = closed(&json!({"items": {"type": "array", "items": both, "maxItems": 1}, "n": {"enum": [depth]}}));
        all.extend([object.clone(), array.clone(), both.clone()]);
    }
    all
}

fn refs() -> Vec<Value> {
    let node = |next: Value| closed(&json!({"value": {"type": "integer"}, "next": next}));
    let mut all = vec![
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "boolean"}}}),
        json!({"$ref": "#/definitions/a", "definitions": {"a": {"type": "boolean"}}}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": {"const": 1}}}),
        with(
            closed(&json!({"x": {"$ref": "#/$defs/p"}, "y": {"$ref": "#/$defs/p"}})),
            json!({"$defs": {"p": closed(&json!({"n": {"type": "number"}}))}}),
        ),
        with(json!({"type": "array", "items": {"$ref": "#/$defs/p"}}), json!({"$defs": {"p": {"enum": ["a", "b"]}}})),
        // Lists and trees.
        json!({"$ref": "#/$defs/list", "$defs": {"list": node(json!({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}))}}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": closed(&json!({"name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}))}}),
        json!({"type": "array", "items": {"$ref": "#"}, "maxItems": 2}),
        json!({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]}),
        closed(&json!({"left": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "leaf": {"type": "boolean"}})),
        // Each of two needs the other.
        json!({"$ref": "#/$defs/a", "$defs": {
            "a": closed(&json!({"b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/b"}]}})),
            "b": closed(&json!({"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}))}}),
        closed(&json!({"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}})),
    ];
    for name in TYPES {
        all.push(with(closed(&json!({"one": {"$ref": "#/$defs/t"}})), json!({"$defs": {"t": {"type": name}}})));
    }
    all
}

fn any_of() -> Vec<Value> {
    let mut all = Vec::new();
    for (at, first) in TYPES.iter().enumerate() {
        for second in &TYPES[at + 1..] {
            all.push(json!({"anyOf": [{"type": first}, {"type": second}]}));
        }
    }
    all.extend([
        json!({"anyOf": [{"const": "a"}, {"const": "ab"}, {"pattern": "^ab+$", "type": "string"}]}),
        json!({"anyOf": [closed(&json!({"a": {"type": "integer"}})), closed(&json!({"a": {"type": "boolean"}}))]}),
        json!({"anyOf": [closed(&json!({"a": {"const": 1}, "b": {"const": 2}})), closed(&json!({"a": {"const": 1}}))]}),
        json!({"anyOf": [{"type": "array", "items": {"type": "null"}}, {"type": "null"}]}),
        json!({"type": "string", "anyOf": [{"minLength": 2, "maxLength": 3}, {"pattern": "^x$"}]}),
        json!({"type": "integer", "anyOf": [{"minimum": 90, "maximum": 99}, {"maximum": 5, "minimum": 1}]}),
        closed(&json!({"v": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}})),
        closed(&json!({"a": {"anyOf": [{"enum": [1, 2]}, {"enum": ["x"]}]}, "b": {"anyOf": [{"const": null}]}})),
        json!({"anyOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"anyOf": [{"const": 3}]}]}),
    ]);
    all
}

fn one_of() -> Vec<Value> {
    let shape = |kind: &str, more: Value| closed(&with(json!({"kind": {"const": kind}}), more));
    vec![
        json!({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"oneOf": [{"type": "boolean"}, {"type": "null"}, {"type": "array", "items": {"const": 1}}]}),
        json!({"oneOf": [{"const": "a"}, {"const": "b"}, {"const": 3}]}),
        json!({"oneOf": [shape("circle", json!({"r": {"type": "number"}})), shape("square", json!({"a": {"type": "number"}}))]}),
        json!({"oneOf": [shape("a", json!({})), shape("b", json!({})), shape("c", json!({"more": {"type": "boolean"}}))]}),
        closed(
            &json!({"shape": {"oneOf": [shape("dot", json!({})), shape("line", json!({"len": {"type": "integer"}}))]}}),
        ),
        json!({"type": "array", "items": {"oneOf": [{"type": "null"}, {"enum": ["x", "y"]}]}}),
        json!({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 5}, {"type": "string", "maxLength": 2}]}),
        json!({"oneOf": [{"type": "null"}]}),
        json!({"oneOf": [{"enum": ["a", "b"]}, {"enum": ["c"]}, {"type": "number", "minimum": 0}]}),
    ]
}

fn all_of() -> Vec<Value> {
    vec![
        json!({"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 8}]}),
        json!({"type": "string", "allOf": [{"minLength": 1}, {"maxLength": 4}]}),
        json!({"allOf": [{"type": ["string", "integer"]}, {"type": ["integer", "null"]}]}),
        json!({"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}),
        json!({"type": "object", "allOf": [
            {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
            "properties": {"a": true, "b": true}, "additionalProperties": false}),
        json!({"allOf": [{"$ref": "#/$defs/a"}, {"maximum": 4}], "$defs": {"a": {"type": "integer", "minimum": 1}}}),
        json!({"allOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"type": "integer"}]}),
        json!({"allOf": [{"type": "array", "items": {"type": "boolean"}}, {"maxItems": 2}]}),
        json!({"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "z$"}, {"maxLength": 6}]}),
        closed(&json!({"n": {"allOf": [{"type": "number"}, {"exclusiveMinimum": 0}, {"maximum": 1}]}})),
        json!({"allOf": [true, {"type": "null"}, {}]}),
    ]
}

fn unicode() -> Vec<Value> {
    let words = ["é", "Grüße", "你好", "🙂", "👩‍🚀", "عربى", "\u{7f}", "e\u{301}", "𝒳", "\u{2028}"];
    let mut all: Vec<Value> = words.iter().map(|word| json!({"enum": [word, "x"]})).collect();
    all.extend(words.iter().map(|word| closed(&json!({*word: {"type": "boolean"}}))));
    all.push(json!({"type": "string", "pattern": "^[а-я]{1,4}$"}));
    all.push(json!({"type": "string", "pattern": "^\\p{L}{1,3}$"}));
    all
}

/// Of the kind that programs ask for: every combination of some fields.
fn records() -> Vec<Value> {
    let name = json!({"type": "string", "minLength": 1, "maxLength": 12});
    let fields = [
        ("id", json!({"type": "string", "format": "uuid"})),
        ("name", name.clone()),
        ("age", json!({"type": "integer", "minimum": 0, "maximum": 150})),
        ("email", json!({"type": "string", "format": "email"})),
        ("tags", json!({"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 3})),
        ("address", closed(&json!({"street": name, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}))),
        ("status", json!({"enum": ["open", "closed", "pending"]})),
        ("score", json!({"type": ["number", "null"], "minimum": 0, "maximum": 1})),
        ("due", json!({"type": "string", "format": "date"})),
        (
            "items",
            json!({"type": "array", "items": closed(&json!({"sku": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
            "count": {"type": "integer", "minimum": 1, "maximum": 99}})), "minItems": 1, "maxItems": 2}),
        ),
    ];
    let mut all = Vec::new();
    for (at, first) in fields.iter().enumerate() {
        for second in &fields[at + 1..] {
            let third = &fields[(at * 3 + 7) % fields.len()];
            let chosen: Map<String, Value> =
                [first, second, third].iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
            let required = json!([first.0]);
            all.push(
                json!({"type": "object", "properties": chosen, "required": required, "additionalProperties": false}),
            );
        }
    }
    let whole: Map<String, Value> = fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    all.push(closed(&Value::Object(whole)));
    all
}
