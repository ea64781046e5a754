// The server's side of the page: requests, the events of a stream, and what they make of a message.

const TITLES = { 401: "An API key is needed", 429: "The server is busy", 503: "The server is not ready" };

class ServerError extends Error {
  constructor(title, message, { status = 0, retryAfter = null, requestId = null } = {}) {
    super(message);
    Object.assign(this, { title, status, retryAfter, requestId });
  }
}

async function request(path, { body, signal } = {}) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("No connection", "The server cannot be reached.");
  }
  if (response.ok) return response;
  const error = (await response.json().catch(() => ({}))).error ?? {};
  const title = TITLES[response.status] ?? "The request failed";
  throw new ServerError(title, error.message || `The server answered ${response.status} ${response.statusText}.`, {
    status: response.status,
    retryAfter: Number(response.headers.get("retry-after")) || null,
    requestId: response.headers.get("x-request-id"),
  });
}

// The objects of a stream of server-sent events, up to `[DONE]`.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError("The answer broke off", event.error.message ?? "The server gave no reason.");
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ServerError("The answer broke off", "The connection ended before the answer did.");
}

// Adds a piece of an answer to its message.
function take(message, event, now) {
  if (event.usage) message.usage = event.usage;
  const choice = event.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
  if (content || reasoning || calls?.length) message.first ??= now;
  if (reasoning) {
    message.reasoning = (message.reasoning ?? "") + reasoning;
    message.thoughtFor = now - message.first;
  }
  if (content) message.content += content;
  for (const call of calls ?? []) {
    message.tool_calls ??= [];
    const at = (message.tool_calls[call.index] ??= { id: "", name: "", arguments: "" });
    at.id ||= call.id ?? "";
    at.name ||= call.function?.name ?? "";
    at.arguments += call.function?.arguments ?? "";
  }
  if (choice.finish_reason) message.finish = choice.finish_reason;
  message.last = now;
}
