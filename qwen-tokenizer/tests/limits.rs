//! Hostile templates, files and texts: none ends the process, takes memory beyond its limit, or takes long.
//!
//! Stacks are small here (512 KB), since a host's threads may be, and the allocator counts. A stack that overflows ends
//! this process, which fails the test.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use qwen_tokenizer::{ChatInput, ChatTemplate, Error, Message, Tokenizer};
use serde_json::{Value, json};

/// The system's allocator, with the bytes in use and their peak.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    PEAK.fetch_max(IN_USE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is passed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist while the bytes are copied.
        grow(size);
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The peak is the process's, so the tests of this file take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

/// Runs `f` on a small stack and returns its result with the most bytes that it had in use.
fn measured<T: Send>(f: impl FnOnce() -> T + Send) -> (T, usize) {
    let before = IN_USE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        thread.spawn_scoped(scope, f).unwrap().join().unwrap()
    });
    (result, PEAK.load(Relaxed).saturating_sub(before))
}

const MB: usize = 1 << 20;

/// Parses, renders and drops a template.
fn render(source: &str) -> (Result<String, Error>, usize) {
    measured(|| {
        let messages = [Message::user("Hello")];
        ChatTemplate::new(source)?.render(&ChatInput::new(&messages))
    })
}

const TOKENIZER_JSON: &[u8] = include_bytes!("data/tokenizer.json");
const CONFIG_JSON: &[u8] = include_bytes!("data/tokenizer_config.json");

#[test]
fn chains_and_nests_of_any_length_end_in_a_text_or_a_typed_error() {
    let _turn = turn();
    let chain = |n: usize, first: &str, link: &str| format!("{{{{ {first}{} }}}}", link.repeat(n));
    let nest = |n: usize, open: &str, inner: &str, close: &str| format!("{}{inner}{}", open.repeat(n), close.repeat(n));
    for n in [5_000, 100_000] {
        // What has an answer whatever its length.
        for (source, text) in [
            (chain(n, "1", "+1"), Some((n + 1).to_string())),
            (chain(n, "1", "*1"), Some("1".into())),
            (chain(n, "1", "**1"), Some("1".into())),
            (chain(n, "''", "~''"), Some(String::new())),
            (chain(n, "''", "+''"), Some(String::new())),
            (chain(n, "1", " and 1"), Some("1".into())),
            (chain(n, "0", " or 0"), Some("0".into())),
            (chain(n, "1", "==1"), Some("True".into())),
            (chain(n, "1", " in [1]"), None),
            (chain(n, "'a'", "|upper"), Some("A".into())),
            (chain(n, "'a'", " is string"), None),
            (chain(n, "1", " if 1 else 1"), Some("1".into())),
            (chain(n, "1", " if 1"), None),
            (chain(n, "missing", ".a"), None),
            (chain(n, "messages", "[0]"), None),
            (chain(n, "'a'", "[0]"), Some("a".into())),
            (chain(n, "'a'", ".upper()"), Some("A".into())),
            (chain(n, "messages", "()"), None),
            (chain(n, "", "'a' "), Some("a".repeat(n))),
            (chain(n, "[1", ",1"), None),
            (format!("{{{{ [{}] | length }}}}", "1,".repeat(n)), Some(n.to_string())),
            (format!("{{{{ {} 1 }}}}", "not ".repeat(n)), Some(if n % 2 == 0 { "True" } else { "False" }.into())),
            (format!("{{% if 0 %}}{}{{% else %}}x{{% endif %}}", "{% elif 0 %}a".repeat(n)), Some("x".into())),
            ("{% set x = 1 %}".repeat(n / 2) + "{{ x }}", Some("1".into())),
            ("{% set x = [x] %}".repeat(n / 2) + "{{ x }}", None),
            ("{% set x = {'a': x} %}".repeat(n / 4), None),
            ("{% if 1 %}a{% endif %}".repeat(n / 3), Some("a".repeat(n / 3))),
            ("{#".repeat(n), None),
            ("{{".repeat(n), None),
            ("{%".repeat(n), None),
            ("{% raw %}".to_owned() + &"{%".repeat(n), None),
            ("{{ '".to_owned() + &"\\'".repeat(n), None),
            (" ".repeat(n) + &"{{ 1 }}".repeat(10), Some(" ".repeat(n) + &"1".repeat(10))),
            ("\n {%- if 1 -%} ".repeat(n / 4), None),
        ] {
            if source.len() > MB {
                continue;
            }
            let shown: String = source.chars().take(40).collect();
            let (found, peak) = render(&source);
            if let Some(text) = text {
                assert_eq!(found.as_ref().map(|found| found == &text), Ok(true), "{shown} {n}");
            }
            assert!(peak < 300 * MB, "{shown} {n}: {peak} bytes");
        }
        // What nests is refused, by name and with figures.
        for source in [
            format!("{{{{ {} }}}}", nest(n, "(", "1", ")")),
            format!("{{{{ {} }}}}", nest(n, "[", "1", "]")),
            format!("{{{{ {} }}}}", nest(n, "{'a':", "1", "}")),
            format!("{{{{ {} }}}}", nest(n, "x[", "1", "]")),
            format!("{{{{ {} }}}}", nest(n, "f(", "1", ")")),
            format!("{{{{ {} }}}}", nest(n, "1|default(", "1", ")")),
            format!("{{{{ {} }}}}", nest(n, "1 is eq(", "1", ")")),
            format!("{{{{ {}1 }}}}", "- ".repeat(n)),
            format!("{{{{ {}1 }}}}", "+ ".repeat(n)),
            format!("{{{{ {} }}}}", nest(n, "not (", "1", ")")),
            format!("{{% set {} = 1 %}}", nest(n, "(", "x", ",)")),
            format!("{{% for {} in x %}}{{% endfor %}}", nest(n, "(", "x", ",)")),
            nest(n, "{% if 1 %}", "", "{% endif %}"),
            nest(n, "{% for x in y %}", "", "{% endfor %}"),
            nest(n, "{% set x %}", "", "{% endset %}"),
            nest(n, "{% macro f() %}", "", "{% endmacro %}"),
            nest(n, "{% filter upper %}", "", "{% endfilter %}"),
            nest(n, "{% with %}", "", "{% endwith %}"),
            nest(n, "{% call f() %}", "", "{% endcall %}"),
            nest(n, "{% generation %}", "", "{% endgeneration %}"),
            nest(n, "{% if 0 %}{% else %}", "", "{% endif %}"),
        ] {
            let shown: String = source.chars().take(40).collect();
            let (found, peak) = render(&source);
            let Err(Error::TemplateLimit { name, what, found, limit, .. }) = found else {
                panic!("{shown}: {found:?}")
            };
            let is_source = what == "bytes of source" && limit == MB as u64;
            assert!(
                name == "default" && found > limit && (is_source || what == "levels of nesting"),
                "{shown}: {what}"
            );
            assert!(peak < 100 * MB, "{shown}: {peak} bytes");
        }
    }
}

#[test]
fn what_a_loop_makes_is_bounded() {
    let _turn = turn();
    let repeated = |body: &str, end: &str| {
        format!(
            "{{% set ns = namespace(x='ab', y=[1]) %}}{{% for i in range(100000) %}}{{% for j in range(9) %}}{body}{{% endfor %}}{{% endfor %}}{end}"
        )
    };
    let nests = "{% set ns.x = [ns.x] %}";
    let shares = "{% set ns.x = [ns.x, ns.x] %}";
    for source in [
        repeated(nests, ""),
        repeated("{% set ns.x = {'a': ns.x} %}", ""),
        repeated("{% set ns.x = (ns.x,) %}", ""),
        repeated("{% set ns.x = dict(a=ns.x) %}", ""),
        repeated("{% set ns.x = [ns.x] | batch(1) | list %}", ""),
        repeated("{% set ns.x = [ns.x.copy] %}", ""),
        repeated("{% set ns.x = namespace(a=ns.x) %}", ""),
        repeated("{% set ns.x = ns %}", "{{ ns.x }}"),
        repeated("{% set ns.x = [loop] %}", ""),
        repeated("{% set ns.x = ns.x ~ ns.x %}", ""),
        repeated("{% set ns.x = ns.x + ns.x %}", ""),
        repeated("{% set ns.y = ns.y + ns.y %}", ""),
        repeated("{% set ns.y = ns.y * 2 %}", ""),
        repeated("{% set ns.x = ns.x * 2 %}", ""),
        repeated("{% set ns.x = ns.x | replace('a', 'aa') %}", ""),
        repeated("{% set ns.x = ns.x.replace('', 'aa') %}", ""),
        repeated("{% set ns.x = ns.x | indent(1000, true) %}", ""),
        repeated("{% set ns.x = ns.x | tojson %}", ""),
        repeated("{% set ns.x = [ns.x] | string %}", ""),
        repeated("{% set ns.x = ns.x | e | upper | title %}", ""),
        repeated("{% set ns.x = ns.x.join(ns.x) %}", ""),
        repeated("{% set ns.y = ns.y | list + ns.x | list %}", ""),
        repeated("{% set ns.x = '%s%s' % (ns.x, ns.x) %}", ""),
        repeated("{% set ns.x = '{0}{0}'.format(ns.x) %}", ""),
        repeated("{{ 'x' * 1000 }}", ""),
        repeated("{% set x %}{{ 'x' * 1000 }}{% endset %}", ""),
        "{% for i in range(100000) %}{% for j in range(100000) %}{% for k in range(100000) %}{% endfor %}{% endfor %}{% endfor %}".into(),
        "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}".into(),
        "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}".into(),
        "{% for x in [[[1]]] recursive %}{{ loop([[1]]) }}{% endfor %}".into(),
        "{{ 'x' * 10 ** 9 }}".into(),
        "{{ 10 ** 9 * 'x' }}".into(),
        "{{ [1] * 10 ** 9 }}".into(),
        "{{ (1,) * 10 ** 30 }}".into(),
        "{{ range(10 ** 9) }}".into(),
        "{{ 'x'.center(10 ** 9) }}".into(),
        "{{ 'x'.ljust(10 ** 30) }}".into(),
        "{{ 'x'.rjust(10 ** 9) }}".into(),
        "{{ 'x'.zfill(10 ** 9) }}".into(),
        "{{ 'x' | center(10 ** 9) }}".into(),
        "{{ '\t'.expandtabs(10 ** 9) }}".into(),
        "{{ 'a\nb' | indent(10 ** 9) }}".into(),
        "{{ '%1000000000d' % 1 }}".into(),
        "{{ '{:1000000000}'.format(1) }}".into(),
        "{{ [1] | batch(10 ** 9, 0) | list }}".into(),
        "{{ [1] | slice(10 ** 9) | list }}".into(),
        "{{ range(100000) | join('x' * 100000) }}".into(),
        "{{ ('a' * 10000).replace('a', 'b' * 100000) }}".into(),
        "{{ ('a' * 10000000) | list }}".into(),
        "{{ ('a ' * 8000000).split() }}".into(),
        "{{ ('a\n' * 8000000).splitlines() }}".into(),
        "{{ [[1]] | tojson(indent='x' * 10000000) }}".into(),
        "{{ range(100000) | list | tojson(indent='x' * 10000) }}".into(),
        "{{ (range(100000) | list) | map('string') | map('center', 10000) | list }}".into(),
    ] {
        let (found, peak) = render(&source);
        let shown = source.get(76..).filter(|_| source.starts_with("{% set ns")).unwrap_or(&source);
        match &found {
            Err(Error::TemplateLimit { found, limit, .. }) => assert!(found > limit, "{shown}"),
            Err(Error::Render { problem, .. }) => {
                assert!(problem.contains("inside another value") || problem.contains("a format has widths"), "{shown}: {problem}");
            }
            other => panic!("{shown}: {}", format!("{other:?}").chars().take(200).collect::<String>()),
        }
        assert!(peak < 420 * MB, "{shown}: {} MB", peak / MB);
    }
    // Lists that share their parts are small, and as trees beyond all bounds.
    for end in [
        "{{ ns.x }}",
        "{{ ns.x ~ '' }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x | string | length }}",
        "{{ ns.x == ns.y }}",
        "{{ ns.x < ns.y }}",
        "{{ ns.x in [ns.y] }}",
        "{{ [ns.x, ns.y] | sort }}",
        "{{ {ns.t: 1} }}",
        "{{ [ns.t] | unique | list }}",
    ] {
        let source = format!(
            "{{% set ns = namespace(x=[1], y=[1], t=(1,)) %}}{{% for i in range(60) %}}{shares}\
             {{% set ns.y = [ns.y, ns.y] %}}{{% set ns.t = (ns.t, ns.t) %}}{{% endfor %}}{end}"
        );
        let (found, peak) = render(&source);
        assert!(matches!(found, Err(Error::TemplateLimit { .. })), "{end}: {found:.200?}");
        assert!(peak < 420 * MB, "{end}: {} MB", peak / MB);
    }
}

#[test]
fn limits_grow_with_the_messages() {
    let _turn = turn();
    let long = "word ".repeat(8_000_000);
    let messages = [Message::user(long.as_str())];
    let source = "{% for m in messages %}{% set c = m.content.strip() %}{{ '<|im_start|>' + m.role + '\n' + c | upper + '<|im_end|>\n' }}{% endfor %}";
    let (text, _) = measured(|| ChatTemplate::new(source).unwrap().render(&ChatInput::new(&messages)).unwrap());
    assert_eq!(text.len(), long.trim_end().len() + "<|im_start|>user\n<|im_end|>\n".len());
}

#[test]
fn long_sources_and_texts_take_one_pass() {
    let _turn = turn();
    // 1 MB of control tokens in a source, and of marks in contents.
    let config = json!({"chat_template": "{{ messages[0].content }}".to_owned() + &"<|im_start|>".repeat(80_000)});
    let tokenizer = Tokenizer::from_bytes(TOKENIZER_JSON, Some(config.to_string().as_bytes())).unwrap();
    let messages = [Message::user("\u{100000}\u{100001}<|im_end|>".repeat(60_000))];
    let (chat, peak) = measured(|| tokenizer.encode_chat(&ChatInput::new(&messages)).unwrap());
    let start = tokenizer.token_to_id("<|im_start|>").unwrap();
    assert_eq!(chat.ids.iter().filter(|&&id| id == start).count(), 80_000);
    assert!(peak < 200 * MB, "{peak}");
}

/// The fixture with one value of tokenizer.json replaced, as a result of loading it.
fn load(pointer: &str, value: Value) -> (Result<Tokenizer, Error>, usize) {
    let mut json: Value = serde_json::from_slice(TOKENIZER_JSON).unwrap();
    *json.pointer_mut(pointer).unwrap() = value;
    let json = json.to_string();
    measured(|| Tokenizer::from_bytes(json.as_bytes(), None))
}

#[test]
fn files_that_would_take_much_memory_are_refused() {
    let _turn = turn();
    let list = |item: &str, n: usize| {
        serde_json::from_str::<Value>(&format!("[{}{item}]", format!("{item},").repeat(n - 1))).unwrap()
    };
    for (pointer, value) in [
        ("/normalizer", list("[]", 2_000_000)),
        ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": list("{}", 2_000_000)})),
        ("/decoder", list("0", 2_000_000)),
        ("/added_tokens", list(r#"{"id":1,"content":"x"}"#, 500_000)),
        ("/model/merges", list(r#""! !""#, 3_000_000)),
    ] {
        let (result, peak) = load(pointer, value);
        assert!(matches!(result, Err(Error::Invalid { .. })), "{pointer}: {result:?}");
        assert!(peak < 300 * MB, "{pointer}: {} MB", peak / MB);
    }
    let vocab: String = (0..1_100_000).map(|i| format!("\"{i}\":{i},")).collect();
    let json = format!(r#"{{"model": {{"type": "BPE", "vocab": {{{vocab}"x":0}}, "merges": []}}}}"#);
    let (result, peak) = measured(|| Tokenizer::from_bytes(json.as_bytes(), None));
    assert!(result.unwrap_err().to_string().contains("more than 1048576 entries"));
    assert!(peak < 300 * MB, "{} MB", peak / MB);

    // What stands under keys that are not read makes nothing.
    let config = format!(r#"{{"chat_template": "x", "other": [{}0]}}"#, "[],".repeat(4_000_000));
    let (result, peak) = measured(|| Tokenizer::from_bytes(TOKENIZER_JSON, Some(config.as_bytes())));
    assert!(result.is_ok() && peak < 30 * MB, "{} MB", peak / MB);
    for key in ["chat_template", "eos_token"] {
        let config = format!(r#"{{"{key}": [{}0]}}"#, "[],".repeat(4_000_000));
        let (result, peak) = measured(|| Tokenizer::from_bytes(TOKENIZER_JSON, Some(config.as_bytes())));
        assert!(matches!(result, Err(Error::Invalid { .. })) && peak < 30 * MB, "{key}: {} MB", peak / MB);
    }
    let (result, _) = measured(|| Tokenizer::from_bytes(&vec![b' '; (64 << 20) + 1], None));
    assert!(matches!(result, Err(Error::TooLarge { limit, .. }) if limit == 64 << 20));
}

#[test]
fn what_is_no_file_is_not_opened() {
    let _turn = turn();
    let folder = std::env::temp_dir().join(format!("qwen-tokenizer-limits-{}", std::process::id()));
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"] {
        std::fs::create_dir_all(&folder).unwrap();
        if name != "tokenizer.json" {
            std::fs::write(folder.join("tokenizer.json"), TOKENIZER_JSON).unwrap();
        }
        let path = folder.join(name);
        std::fs::create_dir(&path).unwrap();
        let refused = || {
            let error = Tokenizer::from_dir(&folder).unwrap_err();
            assert!(matches!(&error, Error::Read { path, .. } if path.ends_with(name)), "{error}");
            assert!(error.to_string().contains("a folder, a pipe or a device"), "{error}");
        };
        refused();
        std::fs::remove_dir(&path).unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            refused();
            std::fs::remove_file(&path).unwrap();
            // A pipe that nobody writes to: to open it would wait for ever.
            if std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success()) {
                refused();
            } else {
                eprintln!("SKIPPED: there is no mkfifo here, so a pipe was not tried");
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn a_text_beyond_the_context_is_refused_at_little_cost() {
    let _turn = turn();
    let tokenizer = Tokenizer::from_bytes(TOKENIZER_JSON, Some(CONFIG_JSON)).unwrap();
    for unit in ["word ", "天地", "a", " ", "<|im_end|>", "e\u{301}"] {
        let text = unit.repeat(60_000_000 / unit.len());
        let (result, peak) = measured(|| tokenizer.encode_within(&text, true, 1023));
        assert!(matches!(result, Err(Error::TooManyTokens { limit: 1023, .. })), "{unit:?}: {result:.200?}");
        assert!(peak < MB, "{unit:?}: {peak} bytes");

        let messages = [Message::user(text)];
        let (result, peak) = measured(|| tokenizer.encode_chat_within(&ChatInput::new(&messages), 1023));
        assert!(matches!(result, Err(Error::TooManyTokens { limit: 1023, .. })), "{unit:?}: {result:.200?}");
        assert!(peak < 250 * MB, "{unit:?}: {} MB", peak / MB);
    }
    // Where the bytes leave it open, encoding stops.
    let text = "word ".repeat(10_000);
    let (result, peak) = measured(|| tokenizer.encode_within(&text, true, 1023));
    assert!(matches!(result, Err(Error::TooManyTokens { limit: 1023, .. })), "{result:.200?}");
    assert!(peak < MB, "{peak} bytes");
    // Without a limit a text takes its ids and not much more.
    let text = "It's a truth. ".repeat(500_000);
    let (ids, peak) = measured(|| tokenizer.encode(&text, true).unwrap().len());
    assert!(peak < 3 * (4 * ids) + 2 * text.len(), "{ids} ids: {} MB", peak / MB);
}
