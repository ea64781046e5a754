// The chat page: a conversation with the server that the page came from, over /v1/chat/completions.
//
// The conversation is a list of messages as the API has them, each with what the page shows beside it; it is kept in
// sessionStorage, so that it survives a reload and ends with the tab. So is the key. Settings are in localStorage.

// ---- state

const SUGGESTIONS = [
  ["Recall a fact", "What is the capital of Peru?"],
  ["Calculate", "What is 47 + 38?"],
  ["Extract", "Turn this into JSON: Anna is 31 years old and lives in Oslo."],
  ["Get to know each other", "What can you do?"],
];
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "max_completion_tokens", "seed"];
const FIELDS = ["system", "stop", "tools", "extra", ...NUMBERS];
const EXAMPLE_TOOL = [{
  type: "function",
  function: {
    name: "get_time",
    description: "Current local time of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];

let messages = stored("sessionStorage", "messages", []);
let settings = stored("localStorage", "settings", {});
let key = stored("sessionStorage", "key", "");
// The request that runs: { controller, stopped }.
let running = null;

const save = () => store("sessionStorage", "messages", messages);
const say = (text) => { $("status").textContent = text; };

// ---- the server

async function loadModels() {
  const models = (await (await request("/v1/models")).json()).data;
  const wanted = settings.model;
  $("model").replaceChildren(...models.map(({ id }) => el("option", { value: id, textContent: id.split("/").at(-1), title: id })));
  if (models.some(({ id }) => id === wanted)) $("model").value = wanted;
  $("model").disabled = models.length < 2;
  showModel();
}

function showModel() {
  $("welcome-model").textContent = $("model").value ? `${$("model").value}, on ${location.host}` : "";
  document.title = $("model").value ? `${$("model").selectedOptions[0].textContent} · chat` : "Chat";
}

function showHealth(state, label) {
  const light = $("health");
  if (light.dataset.state === state) return;
  light.dataset.state = state;
  light.title = label;
  light.setAttribute("aria-label", label);
}

// Looks for the server until it is ready, then now and then while the page is seen.
async function watch() {
  let pause = 15_000;
  if (!document.hidden && !running) {
    try {
      await request("/health");
      if ($("model").value === "…") await loadModels();
      showHealth("ready", "The server is ready");
    } catch (error) {
      const states = { 401: ["key", "The server asks for an API key"], 503: ["loading", "The model is loading"] };
      if (error.status === 401 && $("health").dataset.state !== "key") askForKey();
      showHealth(...(states[error.status] ?? ["gone", "The server cannot be reached"]));
      pause = 2_000;
    }
  }
  setTimeout(watch, pause);
}

// ---- a request

// Where the list of tools is wrong, or nothing.
function toolsProblem(text) {
  if (!text?.trim()) return null;
  try {
    const list = JSON.parse(text);
    if (!Array.isArray(list)) return "This is not an array.";
    const wrong = list.findIndex((tool) => tool?.type !== "function" || typeof tool.function?.name !== "string");
    return wrong < 0 ? null : `Tool ${wrong + 1} has no {"type": "function", "function": {"name": …}}.`;
  } catch (error) {
    return error.message;
  }
}

function extraProblem(text) {
  if (!text?.trim()) return null;
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" && !Array.isArray(value) ? null : "This is not an object.";
  } catch (error) {
    return error.message;
  }
}

function requestBody() {
  const history = [];
  messages.forEach((m, i) => {
    const sent = { role: m.role, content: m.content };
    if (m.role === "tool") sent.tool_call_id = m.tool_call_id;
    // Calls that nobody answered are left out, and so are answers that failed before they began.
    const calls = messages[i + 1]?.role === "tool" ? m.tool_calls : null;
    if (calls) sent.tool_calls = calls.map(({ id, name, arguments: args }) => ({ id, type: "function", function: { name, arguments: args } }));
    if (m.role !== "assistant" || m.content || calls) history.push(sent);
  });
  if (settings.system?.trim()) history.unshift({ role: "system", content: settings.system });
  const body = { model: $("model").value, messages: history, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) {
    if (settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  }
  const stop = (settings.stop ?? "").split("\n").filter((line) => line);
  if (stop.length) body.stop = stop;
  if (settings.tools?.trim() && !toolsProblem(settings.tools)) body.tools = JSON.parse(settings.tools);
  if (settings.extra?.trim() && !extraProblem(settings.extra)) Object.assign(body, JSON.parse(settings.extra));
  return body;
}

// Asks for the next message of the conversation, and shows it as it comes.
async function answer() {
  if (running) return;
  const run = { controller: new AbortController(), stopped: false };
  const body = requestBody();
  const message = { role: "assistant", content: "", sent: performance.now() };
  messages.push(message);
  running = run;
  const view = append(message);
  showRunning();
  follow(true);
  say("Answering");

  let frame = 0;
  const draw = () => {
    frame = 0;
    update(view, message);
    follow();
  };
  try {
    const response = await request("/v1/chat/completions", { body, signal: run.controller.signal });
    for await (const event of events(response)) {
      take(message, event, performance.now());
      frame ||= requestAnimationFrame(draw);
    }
  } catch (error) {
    if (run.stopped) message.finish = "stopped";
    else message.error = { text: error.message, title: error.title, status: error.status, retryAfter: error.retryAfter, requestId: error.requestId };
  }
  cancelAnimationFrame(frame);
  // A new chat may have begun meanwhile.
  if (running !== run) return;
  running = null;
  save();
  draw();
  showRunning();
  say(message.error ? `Error: ${message.error.text}` : message.finish === "stopped" ? "Stopped" : `Answer: ${message.content.slice(0, 1000)}`);
  if (message.error?.status === 401) askForKey();
}

function stop() {
  if (!running) return;
  running.stopped = true;
  running.controller.abort();
}

function ask(text) {
  document.querySelector(".results")?.remove();
  messages.push({ role: "user", content: text });
  append(messages.at(-1));
  save();
  answer();
}

// Forgets the messages from `index` on, which may have been answers to one that changes.
function cut(index) {
  messages.length = index;
  [...$("messages").children].slice(index).forEach((node) => node.remove());
  // The button that did it may be gone.
  if (document.activeElement === document.body) focusPrompt();
  save();
  showWelcome();
  showLatest();
}

function regenerate(message) {
  if (running) return;
  cut(messages.indexOf(message));
  answer();
}

// ---- the rest of the page

function showWelcome() {
  $("welcome").hidden = messages.length > 0;
}

function showRunning() {
  const button = $("send");
  const now = running !== null;
  setIcon(button, now ? "stop" : "up");
  button.setAttribute("aria-label", now ? "Stop" : "Send");
  button.classList.toggle("stops", now);
  button.disabled = !now && !$("prompt").value.trim();
}

// Keeps the end in sight unless the reader has scrolled away from it.
let follows = true;
function follow(always = false) {
  const scroll = $("scroll");
  if (always) follows = true;
  if (follows) scroll.scrollTop = scroll.scrollHeight;
  showLatest();
}

function showLatest() {
  const { scrollTop, scrollHeight, clientHeight } = $("scroll");
  follows = scrollHeight - scrollTop - clientHeight < 40;
  $("latest").hidden = follows;
}

function grow(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch();

const isTouch = () => matchMedia("(pointer: coarse)").matches;

// For the keyboard to go on from; a touch screen's own keyboard stays away.
function focusPrompt() {
  if (!isTouch()) $("prompt").focus({ preventScroll: true });
}

function askForKey() {
  openSettings();
  $("settings-form").elements.key.focus();
}

function openSettings() {
  const fields = $("settings-form").elements;
  for (const name of FIELDS) fields[name].value = settings[name] ?? "";
  fields.key.value = key;
  showProblems();
  if (!$("settings").open) $("settings").showModal();
}

function readSettings() {
  const fields = $("settings-form").elements;
  const next = { ...settings };
  for (const name of FIELDS) next[name] = fields[name].value;
  settings = next;
  store("localStorage", "settings", settings);
  showProblems();
  showUsed();
}

function showProblems() {
  $("tools-error").textContent = toolsProblem(settings.tools) ?? "";
  $("extra-error").textContent = extraProblem(settings.extra) ?? "";
}

// A dot on the button while a setting differs from what the server does by itself.
function showUsed() {
  $("open-settings").classList.toggle("used", FIELDS.some((name) => settings[name]));
}

function newChat() {
  stop();
  running = null;
  showRunning();
  cut(0);
  focusPrompt();
  say("New chat");
}

const systemTheme = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
const dark = () => (document.documentElement.dataset.theme ?? systemTheme()) === "dark";

function showTheme() {
  setIcon($("theme"), dark() ? "sun" : "moon");
  const label = dark() ? "Change to light colours" : "Change to dark colours";
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
}

function start() {
  const theme = stored("localStorage", "theme", null);
  if (theme) document.documentElement.dataset.theme = theme;
  document.querySelectorAll("[data-icon]").forEach((button) => setIcon(button, button.dataset.icon));
  showTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  $("theme").addEventListener("click", () => {
    const wanted = dark() ? "light" : "dark";
    // What the system has, too, needs no choice, and follows it from then on.
    if (wanted === systemTheme()) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = wanted;
    store("localStorage", "theme", document.documentElement.dataset.theme ?? null);
    showTheme();
  });

  $("suggestions").append(...SUGGESTIONS.map(([title, text]) => el("li", {},
    el("button", { type: "button", onclick: () => { ask(text); focusPrompt(); } }, el("strong", {}, title), el("span", {}, text)))));
  messages.forEach(append);
  showWelcome();
  follow(true);

  const prompt = $("prompt");
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return stop();
    const text = prompt.value.trim();
    if (!text) return;
    prompt.value = "";
    grow(prompt);
    ask(text);
  });
  prompt.addEventListener("input", () => {
    grow(prompt);
    showRunning();
  });
  prompt.addEventListener("keydown", (event) => {
    if (!sends(event)) return;
    event.preventDefault();
    if (!running) $("composer").requestSubmit();
  });
  showRunning();

  $("scroll").addEventListener("scroll", showLatest, { passive: true });
  $("latest").addEventListener("click", () => follow(true));
  $("messages").addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button, button.closest("figure").querySelector("code").textContent);
  });

  $("new").addEventListener("click", newChat);
  $("model").addEventListener("change", () => {
    settings.model = $("model").value;
    store("localStorage", "settings", settings);
    showModel();
  });
  $("open-settings").addEventListener("click", openSettings);
  $("settings-form").addEventListener("input", (event) => {
    if (event.target.name !== "key") return readSettings();
    key = event.target.value.trim();
    store("sessionStorage", "key", key);
  });
  $("settings").addEventListener("close", () => {
    if ($("model").value === "…") loadModels().then(() => showHealth("ready", "The server is ready"), () => {});
  });
  // A click beside the sheet closes it.
  $("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());
  $("example-tool").addEventListener("click", () => {
    $("settings-form").elements.tools.value = JSON.stringify(EXAMPLE_TOOL, null, 2);
    readSettings();
  });
  $("reset").addEventListener("click", () => {
    settings = { model: settings.model };
    store("localStorage", "settings", settings);
    openSettings();
    readSettings();
  });
  showUsed();

  document.addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey;
    if (event.key === "Escape" && running && !$("settings").open) stop();
    else if (command && event.shiftKey && event.key.toLowerCase() === "o") newChat();
    else if (command && event.key === ",") openSettings();
    else return;
    event.preventDefault();
  });
  prompt.focus();
  watch();
}

start();
