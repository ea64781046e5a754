// Messages on the page: each is an item of the list, built once and updated while its answer grows.

function append(message) {
  const view = build(message);
  $("messages").append(view.root);
  update(view, message);
  showWelcome();
  return view;
}

function build(message) {
  const names = { user: "You", assistant: "Answer", tool: "Result of a tool" };
  const root = el("li", { className: `message ${message.role}` });
  const parts = { root, body: el("div", { className: "body" }), actions: el("div", { className: "actions" }) };
  root.append(el("h2", { className: "hidden" }, names[message.role]));
  if (message.role === "assistant") {
    parts.thinking = el("details", { className: "thinking", hidden: true },
      el("summary", {}, icon("thought"), el("span", {}, "Thinking"), icon("chevron")), el("div", { className: "thoughts" }));
    parts.calls = el("div", { className: "calls" });
    parts.problem = el("div", { className: "failure", hidden: true });
    parts.figures = el("span", { className: "figures" });
    parts.wait = el("div", { className: "wait", "aria-hidden": "true" }, el("i"), el("i"), el("i"));
    root.append(parts.thinking, parts.body, parts.calls, parts.wait, parts.problem, parts.actions);
    parts.actions.append(
      iconButton("copy", "Copy the answer", (e) => copy(e.currentTarget, message.content)),
      iconButton("again", "Answer again", () => regenerate(message)), parts.figures);
  } else if (message.role === "user") {
    root.append(parts.body, parts.actions);
    parts.actions.append(
      iconButton("copy", "Copy the message", (e) => copy(e.currentTarget, message.content)),
      iconButton("pencil", "Edit the message", () => edit(parts, message)));
  } else {
    root.append(el("details", { className: "call" },
      el("summary", {}, icon("check"), el("span", {}, `Result of ${message.name}`), icon("chevron")), el("pre", { tabIndex: 0 }, message.content)));
  }
  return parts;
}

function update(view, message) {
  if (message.role === "user") view.body.textContent = message.content;
  if (message.role !== "assistant") return;
  const active = running !== null && messages.at(-1) === message;
  view.root.setAttribute("aria-busy", active);
  view.wait.hidden = !active || Boolean(message.content || message.reasoning || message.tool_calls?.length);
  view.actions.hidden = active;
  view.actions.firstElementChild.hidden = !message.content;

  if (message.reasoning) {
    const thinks = active && !message.content && !message.tool_calls?.length;
    view.thinking.hidden = false;
    view.thinking.classList.toggle("active", thinks);
    view.thinking.querySelector("summary span").textContent = thinks ? "Thinking" : `Thought for ${seconds(message.thoughtFor)}`;
    Markdown.show(view.thinking.querySelector(".thoughts"), message.reasoning);
  }
  view.body.classList.toggle("growing", active && Boolean(message.content));
  Markdown.show(view.body, message.content);
  showCalls(view, message, active);

  view.problem.hidden = !message.error;
  if (message.error && !view.problem.childElementCount) showProblem(view, message);
  view.figures.textContent = active ? "" : figures(message);
}

const seconds = (ms) => (ms < 950 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(ms < 9_950 ? 1 : 0)} s`);

function figures(message) {
  const parts = [];
  const { usage } = message;
  if (message.finish === "stopped") parts.push("stopped");
  if (message.finish === "length") parts.push("cut off: no room for more tokens");
  if (message.finish === "content_filter") parts.push("withheld");
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    parts.push(`${usage.prompt_tokens} tokens in${cached ? ` (${cached} cached)` : ""}, ${usage.completion_tokens} out`);
    const time = message.last - message.first;
    // The first token is there when the time begins. Short times say more about the network than about the model.
    if (usage.completion_tokens > 1 && time > 100) parts.push(`${((usage.completion_tokens - 1) / time * 1000).toFixed(1)} tokens/s`);
  }
  if (message.first) parts.push(`first after ${seconds(message.first - message.sent)}`);
  return parts.join(" · ");
}

function pretty(args) {
  try {
    return JSON.stringify(JSON.parse(args), null, 2);
  } catch {
    return args;
  }
}

// The calls of an answer; the last one's wait for results that the user types.
function showCalls(view, message, active) {
  const calls = message.tool_calls ?? [];
  calls.forEach((call, i) => {
    let box = view.calls.children[i];
    if (!box) {
      box = el("details", { className: "call", open: true },
        el("summary", {}, icon("wrench"), el("span"), icon("chevron")), el("pre", { tabIndex: 0 }, el("code")));
      view.calls.append(box);
    }
    box.querySelector("span").replaceChildren("Calls ", el("code", {}, call.name || "…"));
    box.querySelector("pre code").textContent = active ? call.arguments : pretty(call.arguments);
  });
  const waits = !active && !message.error && calls.length > 0 && messages.at(-1) === message;
  let form = view.root.querySelector(".results");
  if (!waits) form?.remove();
  if (!waits || form) return;
  const fields = calls.map((call, i) => el("label", { className: "field" },
    el("span", {}, calls.length > 1 ? `Result of ${call.name} (${i + 1} of ${calls.length})` : `Result of ${call.name}`),
    el("textarea", { rows: 2, className: "code", required: true, spellcheck: false, placeholder: '{"…": "…"}' })));
  form = el("form", { className: "results" }, ...fields, el("button", { className: "primary", type: "submit" }, calls.length > 1 ? "Send the results" : "Send the result"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    const texts = [...form.querySelectorAll("textarea")].map((field) => field.value);
    form.remove();
    calls.forEach((call, i) => {
      messages.push({ role: "tool", tool_call_id: call.id, name: call.name, content: texts[i] });
      append(messages.at(-1));
    });
    save();
    answer();
  });
  view.calls.after(form);
}

function showProblem(view, message) {
  const { text, title, retryAfter, requestId } = message.error;
  const again = el("button", { className: "primary", type: "button", onclick: () => regenerate(message) }, "Try again");
  view.problem.append(icon("warning"),
    el("div", {}, el("strong", {}, title), el("p", {}, text),
      requestId ? el("p", { className: "note" }, `Request ${requestId}`) : null, again));
  // The server says when it will have room.
  let left = retryAfter ?? 0;
  const count = () => {
    again.disabled = left > 0;
    again.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left-- > 0) setTimeout(count, 1_000);
  };
  count();
}

function edit(view, message) {
  if (running || view.root.querySelector("form")) return;
  const field = el("textarea", { value: message.content, rows: 1, "aria-label": "Edit the message" });
  const close = () => {
    form.remove();
    view.body.hidden = view.actions.hidden = false;
    view.actions.querySelector("button:last-of-type").focus();
  };
  const form = el("form", { className: "edit" }, field, el("div", {},
    el("button", { type: "button", className: "text", onclick: close }, "Cancel"),
    el("button", { type: "submit", className: "primary" }, "Send")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim() || running) return;
    const text = field.value.trim();
    cut(messages.indexOf(message));
    ask(text);
    focusPrompt();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (sends(event)) form.requestSubmit();
  });
  field.addEventListener("input", () => grow(field));
  view.body.hidden = view.actions.hidden = true;
  view.root.append(form);
  grow(field);
  field.focus();
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure connection there is no clipboard interface, but this old command.
    const field = document.body.appendChild(el("textarea", { value: text, className: "hidden" }));
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  const had = button.querySelector("svg");
  if (had) had.replaceWith(icon("check"));
  else button.textContent = "Copied";
  say("Copied");
  setTimeout(() => {
    if (had) button.querySelector("svg").replaceWith(had);
    else button.textContent = "Copy";
  }, 1_500);
}
