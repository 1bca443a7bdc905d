// What the page says to the server, and hears from it. Errors are sentences that can be shown.
export const LOST = "The server cannot be reached. Is it still running?";
const BROKEN = "The connection broke before the answer was there. Is the server still running?";
const PIECE = 8 << 20;
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}
export async function call(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(LOST);
  }
  if (reply.ok || reply.status === 308) return reply;
  const told = await reply.json().catch(() => null);
  throw new Refused(told?.error?.message ?? `The server answered ${reply.status}.`, reply.status);
}
export const json = async (path, options) => (await call(path, options)).json();
export const post = (path, value, more = {}) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value), ...more });

// The server-sent events of a reply, as objects.
export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error(BROKEN);
    }
    if (piece.done) throw new Error(BROKEN);
    held += piece.value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      if (block === "data: [DONE]") return;
      if (!block.startsWith("data: ")) continue;
      const event = JSON.parse(block.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Send a file in pieces, so that a broken connection goes on where it was; return the memory that is made of it.
export async function upload(file, progress) {
  if (!file.size) throw new Error("the file is empty.");
  const begun = await (await post("/v1/uploads", { filename: file.name, bytes: file.size })).json();
  const put = (headers, body) => call(`/v1/files/${begun.id}/content`, { method: "PUT", headers, body });
  let at = 0, failures = 0;
  while (at < file.size) {
    const end = Math.min(at + PIECE, file.size);
    try {
      await put({ "Content-Range": `bytes ${at}-${end - 1}/${file.size}` }, file.slice(at, end));
      at = end;
      failures = 0;
    } catch (error) {
      const final = error instanceof Refused && error.status < 500 && ![408, 409].includes(error.status);
      if (final || ++failures > 5) throw error;
      await pause(500 * failures);
      const asked = await put({ "Content-Range": `bytes */${file.size}` }).catch(() => null);
      const range = asked?.headers.get("Range");  // of what is here; none where nothing is
      if (asked) at = asked.status === 308 ? (range ? Number(range.split("-")[1]) + 1 : 0) : file.size;
    }
    progress(at);
  }
  return (await post("/v1/memories", { file_id: begun.id })).json();
}

// Let the browser save what the server makes.
export async function download(path, value, name) {
  const reply = await post(path, value);
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await reply.blob()), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
