// Markdown as DOM nodes, for texts that nobody vouches for: a model's answers.
//
// Text reaches the page only as text nodes, never as HTML, and the only attributes that come from it are the targets of
// links to http, https and mailto. Images are shown as links: nothing is loaded. What is supported: headings,
// paragraphs, nested lists, quotes, tables, rules, code blocks with simple colours, and in a line code, strong,
// emphasised and struck text, and links. The rest stays as it was written.

const Markdown = (() => {
  const FENCE = /^( {0,3})(`{3,}|~{3,}) *([^`]*)$/;
  const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$/;
  const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
  const QUOTE = /^ {0,3}> ?/;
  const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
  const DASHES = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;
  // Beyond these lengths a paragraph stays plain, and code without colours, so that no text takes long.
  const LONGEST_PARAGRAPH = 8_000;
  const LONGEST_CODE = 40_000;
  const DEEPEST = 8;

  const startsTable = (lines, at) =>
    lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("|") && DASHES.test(lines[at + 1]);
  const interrupts = (lines, at) =>
    FENCE.test(lines[at]) || HEADING.test(lines[at]) || RULE.test(lines[at]) || QUOTE.test(lines[at]) ||
    ITEM.test(lines[at]) || startsTable(lines, at);

  // The end of the list that starts at `from`: items, lines that are indented below them, and paragraphs that go on.
  function endOfList(lines, from) {
    const ordered = /\d/.test(ITEM.exec(lines[from])[2]);
    let at = from + 1;
    while (at < lines.length) {
      const line = lines[at];
      const item = ITEM.exec(line);
      if (!line.trim()) {
        const next = lines.slice(at).findIndex((l) => l.trim());
        if (next < 0) break;
        const after = lines[at + next];
        const more = ITEM.exec(after);
        if (!/^ {2,}/.test(after) && !(more && /\d/.test(more[2]) === ordered && !RULE.test(after))) break;
        at += next;
      } else if (item && !RULE.test(line)) {
        if (!/^ /.test(line) && /\d/.test(item[2]) !== ordered) break;
        at++;
      } else if (/^ {2,}/.test(line) || !interrupts(lines, at)) {
        at++;
      } else break;
    }
    return at;
  }

  // The blocks of a text, each with its own lines.
  function split(text) {
    const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
    const blocks = [];
    let at = 0;
    while (at < lines.length) {
      const from = at;
      const line = lines[at];
      if (!line.trim()) {
        at++;
        continue;
      }
      let kind = "paragraph";
      const fence = FENCE.exec(line);
      if (fence) {
        kind = "code";
        const close = new RegExp(`^ {0,3}${fence[2][0]}{${fence[2].length},} *$`);
        do at++; while (at < lines.length && !close.test(lines[at]));
        at = Math.min(at + 1, lines.length);
      } else if (HEADING.test(line)) {
        kind = "heading";
        at++;
      } else if (RULE.test(line)) {
        kind = "rule";
        at++;
      } else if (QUOTE.test(line)) {
        kind = "quote";
        while (at < lines.length && QUOTE.test(lines[at])) at++;
      } else if (ITEM.test(line)) {
        kind = "list";
        at = endOfList(lines, at);
      } else if (startsTable(lines, at)) {
        kind = "table";
        at += 2;
        while (at < lines.length && lines[at].includes("|")) at++;
      } else {
        do at++; while (at < lines.length && lines[at].trim() && !interrupts(lines, at));
      }
      blocks.push({ kind, lines: lines.slice(from, at) });
    }
    return blocks;
  }

  function block({ kind, lines }, depth) {
    switch (kind) {
      case "code": return code(lines);
      case "heading": {
        const [, marks, text] = HEADING.exec(lines[0]);
        // The page has the first two levels itself.
        return el(`h${Math.min(marks.length + 2, 6)}`, { className: `level-${marks.length}` }, ...inline(text));
      }
      case "rule": return el("hr");
      case "quote": return el("blockquote", {}, ...blocks(lines.map((l) => l.replace(QUOTE, "")).join("\n"), depth + 1));
      case "list": return list(lines, depth);
      case "table": return table(lines);
      default: return el("p", {}, ...inline(lines.map((l) => l.trimStart()).join("\n")));
    }
  }

  const blocks = (text, depth = 0) =>
    depth > DEEPEST ? [el("p", {}, text)] : split(text).map((b) => block(b, depth));

  function list(lines, depth) {
    const first = ITEM.exec(lines[0]);
    const ordered = /\d/.test(first[2]);
    const items = [];
    let offset = 0;
    for (const line of lines) {
      const item = ITEM.exec(line);
      const sibling = item && item[1].length < offset && /\d/.test(item[2]) === ordered && !RULE.test(line);
      if (items.length === 0 || sibling) {
        offset = Math.min(item[0].length, item[1].length + item[2].length + 4);
        items.push([line.slice(item[0].length)]);
      } else {
        items.at(-1).push(line.slice(Math.min(offset, line.search(/\S|$/))));
      }
    }
    const children = items.map((content) => {
      const nodes = blocks(content.join("\n"), depth + 1);
      // A tight item is its text, not a paragraph.
      if (nodes[0]?.tagName === "P" && !content.slice(0, -1).some((l) => !l.trim())) {
        nodes.splice(0, 1, ...nodes[0].childNodes);
      }
      return el("li", {}, ...nodes);
    });
    const start = ordered ? Number.parseInt(first[2], 10) : 1;
    return ordered ? el("ol", { start }, ...children) : el("ul", {}, ...children);
  }

  const cells = (line) =>
    line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((c) => c.trim().replaceAll("\\|", "|"));

  function table(lines) {
    const align = cells(lines[1]).map((c) => (/^:.*:$/.test(c) ? "center" : /:$/.test(c) ? "end" : "start"));
    const row = (line, tag) => {
      const content = cells(line);
      return el("tr", {}, ...align.map((side, i) => el(tag, { className: side }, ...inline(content[i] ?? ""))));
    };
    const head = el("thead", {}, row(lines[0], "th"));
    const body = el("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")));
    return el("div", { className: "table", tabIndex: 0 }, el("table", {}, head, body));
  }

  function code(lines) {
    const [, indent, marks, info] = FENCE.exec(lines[0]);
    const closed = lines.length > 1 && lines.at(-1).trim().startsWith(marks);
    const text = lines.slice(1, closed ? -1 : undefined).map((l) => (l.startsWith(indent) ? l.slice(indent.length) : l)).join("\n");
    const language = info.trim().split(/\s/)[0].slice(0, 24);
    const copy = el("button", { type: "button", className: "text", "data-copy": "" }, "Copy");
    return el("figure", { className: "code" },
      el("figcaption", {}, el("span", {}, language || "text"), copy),
      el("pre", { tabIndex: 0 }, el("code", {}, ...colours(text, language.toLowerCase()))));
  }

  // One pass from left to right; the first alternative that matches wins. In groups: 1 escape, 2-3 code, 4-5 link,
  // 6 address, 7-8 strong, 9-10 and 11 emphasis, 12 struck.
  const INLINE = new RegExp([
    /\\([\\`*_{}[\]()#+\-.!|~<>])/,
    /(?<!`)(`{1,8})(?!`)([^`]|[^`][\s\S]*?[^`])\2(?!`)/,
    /!?\[([^[\]]*)\]\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)?)>?(?:\s+"[^"]*")?\s*\)/,
    /(https?:\/\/[^\s<>"'`()[\]]*[^\s<>"'`()[\].,;:!?*_~])/,
    /(\*\*|(?<!\w)__)(?=\S)([\s\S]*?\S)\7(?!\7)/,
    /(?<![*\w])(\*)(?=[^\s*])([^*]*[^\s*])\*|(?<!\w)_(?=[^\s_])([\s\S]*?\S)_(?!\w)/,
    /~~(?=\S)([^~]*\S)~~/,
  ].map((part) => part.source).join("|"), "g");

  function inline(text, depth = 0) {
    if (text.length > LONGEST_PARAGRAPH || depth > DEEPEST) return [text];
    const nodes = [];
    const plain = (piece) => {
      // A single newline of a model is meant as one.
      piece.split("\n").forEach((line, i) => nodes.push(...(i ? [el("br")] : []), ...(line ? [line] : [])));
    };
    let last = 0;
    for (const m of text.matchAll(INLINE)) {
      plain(text.slice(last, m.index));
      last = m.index + m[0].length;
      if (m[1] !== undefined) plain(m[1]);
      else if (m[2] !== undefined) nodes.push(el("code", {}, m[3].replace(/^ (.*\S.*) $/, "$1")));
      else if (m[5] !== undefined) nodes.push(link(m[5], m[4] || m[5], m[0], depth));
      else if (m[6] !== undefined) nodes.push(link(m[6], null, m[6], depth));
      else if (m[7] !== undefined) nodes.push(el("strong", {}, ...inline(m[8], depth + 1)));
      else if (m[10] ?? m[11]) nodes.push(el("em", {}, ...inline(m[10] ?? m[11], depth + 1)));
      else nodes.push(el("s", {}, ...inline(m[12], depth + 1)));
    }
    plain(text.slice(last));
    return nodes;
  }

  // A link, or `source` as text if its target is none of the harmless kinds.
  function link(target, label, source, depth) {
    let url;
    try {
      url = new URL(target);
    } catch {
      return source;
    }
    if (!["http:", "https:", "mailto:"].includes(url.protocol)) return source;
    const children = label === null ? [target] : inline(label, depth + DEEPEST);
    return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", title: url.href }, ...children);
  }

  const KEYWORDS = new Set(("abstract and as assert async await bool boolean break byte case catch char class const continue " +
    "crate def default defer del do double dyn elif else enum esac export extends extern false fi final finally float fn for " +
    "foreach from func function global go goto if impl implements import in include instanceof int interface is lambda let " +
    "long loop match mod module move mut namespace new nil None none not null nullptr or package pass private protected pub " +
    "public raise ref return select self short sizeof static std str string struct super switch template then this throw " +
    "trait true True False try type typedef typeof undefined union unsafe unsigned use using var virtual void where while " +
    "with yield insert into values update set delete create table join left right inner outer on group order by having limit " +
    "SELECT FROM WHERE INSERT INTO VALUES UPDATE SET DELETE CREATE TABLE JOIN LEFT INNER ON GROUP ORDER BY HAVING LIMIT AS AND OR NOT NULL").split(" "));
  const HASH = new Set(["python", "py", "sh", "bash", "shell", "zsh", "console", "yaml", "yml", "toml", "ruby", "rb", "perl", "r",
    "make", "makefile", "dockerfile", "containerfile", "ini", "conf", "elixir", "julia", "nix"]);
  const DASH = new Set(["sql", "lua", "haskell", "hs", "ada", "elm"]);
  const PLAIN = new Set(["text", "txt", "plain", "plaintext", "markdown", "md", "output", "log", "diff", ""]);
  const STRINGS = /"(?:\\[\s\S]|[^"\\\n])*"?|'(?:\\[\s\S]|[^'\\\n])*'|`(?:\\[\s\S]|[^`\\])*`?/.source;
  // A quote in Rust may also begin a lifetime.
  const RUST_STRINGS = /"(?:\\[\s\S]|[^"\\])*"?|'(?:\\[^'\n]+|[^'\\\n])'/.source;
  const NUMBERS = /\b(?:0[xob][\da-fA-F_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)[A-Za-z\d]*\b/.source;
  const NAMES = /[A-Za-z_$][\w$]*/.source;

  // Code with comments, strings, numbers, keywords and called functions in colours, by rules that most languages share.
  function colours(text, language) {
    if (PLAIN.has(language) || text.length > LONGEST_CODE) return [text];
    const comments = HASH.has(language) ? "#.*" : DASH.has(language) ? "--.*" : String.raw`\/\/.*|\/\*[\s\S]*?(?:\*\/|$)`;
    const strings = language === "rust" || language === "rs" ? RUST_STRINGS : STRINGS;
    const tokens = new RegExp(`(${comments})|(${strings})|(${NUMBERS})|(${NAMES})(?=(\\s*\\()?)`, "g");
    const nodes = [];
    let last = 0;
    for (const m of text.matchAll(tokens)) {
      const kind = m[1] !== undefined ? "comment" : m[2] !== undefined ? "string" : m[3] !== undefined ? "number"
        : KEYWORDS.has(m[4]) ? "keyword" : m[5] !== undefined ? "called" : null;
      if (kind === null) continue;
      if (m.index > last) nodes.push(text.slice(last, m.index));
      nodes.push(el("span", { className: kind }, m[0]));
      last = m.index + m[0].length;
    }
    nodes.push(text.slice(last));
    return nodes;
  }

  return {
    // Shows `text` in `parent`. Blocks that are there already stay as they are, so that a growing text costs little and
    // what a reader has selected stays selected.
    show(parent, text) {
      const next = split(text);
      for (const [i, b] of next.entries()) {
        const source = b.kind + "\n" + b.lines.join("\n");
        const there = parent.children[i];
        if (there?.markdownSource === source) continue;
        const node = block(b, 0);
        node.markdownSource = source;
        if (there) there.replaceWith(node);
        else parent.append(node);
      }
      while (parent.children.length > next.length) parent.lastElementChild.remove();
    },
  };
})();
