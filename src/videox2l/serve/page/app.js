// The page of `x2l serve`: library, player with time line, and dialogue. Plain modules, no build.
const $ = (id) => document.getElementById(id);
const state = { model: "", memories: [], id: null, chunks: [], holes: [], selected: null, pinned: new Set(), excluded: new Set(), turns: [], last: null, reloaded: new Map(), busy: false };

const clock = (seconds) => {
  const s = Math.max(0, Math.floor(seconds)), h = Math.floor(s / 3600);
  const rest = [Math.floor(s / 60) % 60, s % 60].map((n) => String(n).padStart(2, "0")).join(":");
  return h ? `${h}:${rest}` : rest;
};
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}
async function call(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (reply.ok || reply.status === 308) return reply;
  if (reply.status === 401) $("login").hidden = false;
  const told = await reply.json().catch(() => null);
  throw new Error(told?.error?.message ?? `The server answered ${reply.status}.`);
}
const json = async (path, options) => (await call(path, options)).json();
const post = (path, value, more = {}) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value), ...more });

// Library
async function refresh() {
  const { data } = await json("/v1/memories");
  state.memories = data;
  $("empty").hidden = data.length > 0;
  const items = data.map((memory) => {
    const picture = memory.chunks
      ? make("img", { src: `/v1/memories/${memory.id}/thumbnails/0.jpg`, alt: "" })
      : make("span", { className: "blank" });
    const { frames, expected_frames: all, seconds_left: left } = memory.progress;
    const active = ["queued", "ingesting"].includes(memory.state);
    const words = {
      queued: "waiting", ingesting: `reading ${frames} of ${all ?? "?"} frames${left ? `, ${clock(left)} left` : ""}`,
      failed: memory.error ?? "failed", cancelled: "stopped", complete: memory.duration ? clock(memory.duration) : "ready",
    };
    const text = make("span", {}, make("b", { textContent: memory.name, title: memory.name }), make("small", { textContent: words[memory.state] }));
    if (active) text.append(make("progress", { max: all ?? 1, value: all ? frames : 0, ariaLabel: "progress of the ingest" }));
    const button = make("button", { type: "button", onclick: () => open(memory.id) }, picture, text);
    if (memory.id === state.id) button.setAttribute("aria-current", "true");
    return make("li", {}, button);
  });
  const focused = [...$("library").querySelectorAll("button")].indexOf(document.activeElement);
  $("library").replaceChildren(...items);
  if (focused >= 0) $("library").querySelectorAll("button")[focused]?.focus();
  const open_ = data.find((memory) => memory.id === state.id);
  if (open_ && open_.chunks !== state.chunks.length) await timeline();
  return data.some((memory) => ["queued", "ingesting"].includes(memory.state));
}
let watching = false;
async function watch() {
  if (watching) return;
  watching = true;
  try {
    while (await refresh()) await new Promise((done) => setTimeout(done, 700));
  } catch (error) {
    problem(error.message);
  }
  watching = false;
}

// Uploads: in pieces, so that a broken connection goes on where it was
const PIECE = 8 << 20;
let uploads = 0;
async function upload(file) {
  problem("");
  uploads += 1;
  const row = make("li", {}, make("small", { textContent: `sending ${file.name}` }), make("progress", { max: file.size, value: 0 }));
  $("library").prepend(row);
  $("empty").hidden = true;
  try {
    if (!file.size) throw new Error(`${file.name} is empty.`);
    const begun = await (await post("/v1/uploads", { filename: file.name, bytes: file.size })).json();
    let at = 0, failures = 0;
    while (at < file.size) {
      const end = Math.min(at + PIECE, file.size);
      try {
        await call(`/v1/files/${begun.id}/content`, {
          method: "PUT", body: file.slice(at, end), headers: { "Content-Range": `bytes ${at}-${end - 1}/${file.size}` },
        });
        at = end;
        failures = 0;
      } catch (error) {
        if (++failures > 5) throw error;
        await new Promise((done) => setTimeout(done, 500 * failures));
        const asked = await call(`/v1/files/${begun.id}/content`, { method: "PUT", headers: { "Content-Range": `bytes */${file.size}` } });
        at = asked.status === 308 ? Number((asked.headers.get("Range") ?? "bytes=0--1").split("-").pop()) + 1 : file.size;
      }
      row.lastChild.value = at;
    }
    const memory = await (await post("/v1/memories", { file_id: begun.id })).json();
    await open(memory.id);
  } catch (error) {
    problem(`${file.name}: ${error.message}`);
  }
  uploads -= 1;
  row.remove();
  watch();
}
const take = async (files) => {
  for (const file of files) await upload(file);
};
$("file").onchange = (event) => take([...event.target.files]).then(() => (event.target.value = ""));
$("drop").onkeydown = (event) => ["Enter", " "].includes(event.key) && $("file").click();
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take([...event.dataTransfer.files]);
  });

// One video
async function open(id, at = null) {
  problem("");
  if (state.id !== id) {
    Object.assign(state, { id, chunks: [], turns: [], last: null, selected: null, reloaded: new Map() });
    state.pinned.clear();
    state.excluded.clear();
    $("dialogue").replaceChildren();
    $("moment").hidden = $("again").hidden = true;
    let memory;
    try {
      memory = await json(`/v1/memories/${id}`);
    } catch (error) {
      if (state.id !== id) return;
      state.id = null;
      return problem(error.message);
    }
    if (state.id !== id) return;  // another video was opened in the meantime
    $("player").hidden = !memory.has_video;
    $("novideo").hidden = memory.has_video;
    if (memory.has_video) $("player").src = `/v1/memories/${id}/video`;
    else $("player").removeAttribute("src");
    $("stage").hidden = false;
    restore();
  }
  if (at !== null) seek(at);
  else location.hash = `m=${id}`;
  await timeline();
  watch();
}
async function timeline() {
  const id = state.id;
  let told;
  try {
    told = await json(`/v1/memories/${id}/timeline`);
  } catch {
    told = { chunks: [] };  // nothing is ingested yet
  }
  if (state.id !== id) return;
  state.chunks = told.chunks;
  state.holes = told.holes ?? [];
  draw();
}
function draw() {
  const scores = [...state.reloaded.values()].map((moment) => moment.score ?? 0);
  const top = Math.max(1e-9, ...scores);
  const parts = [];
  state.chunks.forEach((chunk, i) => {
    const moment = state.reloaded.get(i);
    const fine = Boolean(moment?.reason);
    const marks = [fine && "fine", state.pinned.has(i) && "pinned", state.excluded.has(i) && "excluded"].filter(Boolean);
    const level = fine ? "read in detail" : "gist";
    const score = moment?.score == null ? "" : `, score ${moment.score.toFixed(3)}`;
    const words = `${clock(chunk.start)} to ${clock(chunk.end)}, ${level}${score}${marks.includes("pinned") ? ", pinned" : ""}${marks.includes("excluded") ? ", excluded" : ""}`;
    const bar = make("button", { type: "button", className: marks.join(" "), title: words, ariaLabel: words, onclick: () => select(i) });
    bar.style.flexGrow = String(Math.max(0.01, chunk.end - chunk.start));
    bar.style.height = `${12 + 46 * ((moment?.score ?? 0) / top)}px`;
    bar.setAttribute("aria-pressed", String(state.selected === i));
    bar.dataset.chunk = String(i);
    parts.push(bar);
    const next = state.chunks[i + 1];
    if (next && next.start - chunk.end > 0.01) {
      const hole = make("span", { className: "hole", title: `nothing could be read from ${clock(chunk.end)} to ${clock(next.start)}` });
      hole.style.flexGrow = String(next.start - chunk.end);
      parts.push(hole);
    }
  });
  const focused = document.activeElement?.dataset?.chunk;
  $("timeline").replaceChildren(...parts);
  if (focused !== undefined) $("timeline").querySelector(`[data-chunk="${focused}"]`)?.focus();
}
function seek(seconds) {
  if (!$("player").hidden) {
    const player = $("player");
    const go = () => (player.currentTime = seconds);
    if (player.readyState >= 1) go();
    else player.addEventListener("loadedmetadata", go, { once: true });
  }
  history.replaceState(null, "", `#m=${state.id}&t=${Math.floor(seconds)}`);
}
function select(i) {
  state.selected = i;
  const chunk = state.chunks[i];
  $("moment").hidden = false;
  $("thumb").src = `/v1/memories/${state.id}/thumbnails/${i}.jpg`;
  $("thumb").alt = `picture at ${clock(chunk.start)}`;
  $("when").textContent = `${clock(chunk.start)} to ${clock(chunk.end)}`;
  $("pin").setAttribute("aria-pressed", String(state.pinned.has(i)));
  $("exclude").setAttribute("aria-pressed", String(state.excluded.has(i)));
  $("why").hidden = state.last === null;
  seek(chunk.start);
  draw();
}
function mark(set, other) {
  const i = state.selected;
  if (i === null) return;
  if (!set.delete(i)) set.add(i), other.delete(i);
  $("again").hidden = state.last === null;
  select(i);
}
$("pin").onclick = () => mark(state.pinned, state.excluded);
$("exclude").onclick = () => mark(state.excluded, state.pinned);
$("why").onclick = () => state.last && ask(state.last, { why: state.chunks[state.selected].start, again: true });
document.addEventListener("keydown", (event) => {
  if (["INPUT", "TEXTAREA"].includes(event.target.tagName) || event.ctrlKey || event.metaKey) return;
  if (event.key === "p") mark(state.pinned, state.excluded);
  if (event.key === "x") mark(state.excluded, state.pinned);
  if (["ArrowLeft", "ArrowRight"].includes(event.key) && event.target.dataset?.chunk !== undefined) {
    const i = Number(event.target.dataset.chunk) + (event.key === "ArrowRight" ? 1 : -1);
    $("timeline").querySelector(`[data-chunk="${i}"]`)?.focus();
    event.preventDefault();
  }
});

// Questions
const ranges = (set) => [...set].sort((a, b) => a - b).map((i) => [state.chunks[i].start, state.chunks[i].end]);
async function ask(question, { why = null, again = false } = {}) {
  if (state.busy) return;
  const id = state.id;  // another video may be opened before the answer is there
  state.busy = true;
  problem("");
  $("send").disabled = true;
  const answer = make("p", { className: "answer" });
  const chips = make("div"), cost = make("p", { className: "cost", textContent: "looking ..." });
  const card = make("article", {}, make("h2", { textContent: question }), answer, chips, cost);
  $("dialogue").append(card);
  card.scrollIntoView({ block: "nearest" });
  const turns = again ? state.turns.slice(0, -1) : state.turns;
  const messages = turns.flatMap(([asked, said]) => [{ role: "user", content: asked }, { role: "assistant", content: said }]);
  messages.push({ role: "user", content: question });
  messages[0].content = [{ type: "video_url", video_url: { url: `memory:${id}` } }, { type: "text", text: messages[0].content }];
  const x2l = {};
  if (state.pinned.size) x2l.pinned = ranges(state.pinned);
  if (state.excluded.size) x2l.excluded = ranges(state.excluded);
  if (why !== null) x2l.why = [why];
  try {
    const reply = await post("/v1/chat/completions", { model: state.model, messages, stream: true, x2l });
    let told = null;
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      answer.textContent += event.choices?.[0]?.delta?.content ?? "";
      told = event.x2l ?? told;
    }
    const said = [...turns, [question, answer.textContent.trim() || "-"]];
    keep(id, said);
    if (state.id === id) {
      if (told) show(told, chips, cost, card);
      state.turns = said;
      state.last = question;
      $("again").hidden = true;
    }
  } catch (error) {
    cost.textContent = "no answer";
    problem(error.message);
  }
  state.busy = false;
  $("send").disabled = false;
}
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}
function show(told, chips, cost, card) {
  state.reloaded = new Map(told.evidence.map((moment) => [moment.chunk, moment]));
  const fine = told.evidence.filter((moment) => moment.reason);
  chips.replaceChildren(
    ...fine.map((moment) =>
      make("button", { type: "button", className: "chip", textContent: `${clock(moment.start)}-${clock(moment.end)}`, title: moment.reason, onclick: () => select(moment.chunk) })));
  const { tokens, full_tokens: full, seconds } = told.cost;
  const took = Object.values(seconds).reduce((sum, value) => sum + value, 0);
  const part = told.incomplete ? `; the video is read up to ${clock(told.covers[1])} so far` : "";
  cost.textContent = `read ${fine.length} of ${told.evidence.length} moments in detail; ${full ? (100 * tokens / full).toFixed(1) : 0} % of the video's tokens; ${took.toFixed(2)} s${part}`;
  for (const { lines } of told.why ?? []) card.append(make("ul", { className: "why" }, ...lines.map((line) => make("li", { textContent: line }))));
  draw();
}
// What was asked outlives a reload of the page, not the tab.
function keep(id, turns) {
  sessionStorage.setItem(`x2l ${id}`, JSON.stringify(turns));
}
function restore() {
  state.turns = JSON.parse(sessionStorage.getItem(`x2l ${state.id}`) ?? "[]");
  for (const [question, said] of state.turns)
    $("dialogue").append(make("article", {}, make("h2", { textContent: question }), make("p", { className: "answer", textContent: said })));
  state.last = state.turns.at(-1)?.[0] ?? null;
}
$("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || state.busy) return;
  $("question").value = "";
  ask(question);
};
$("again").onclick = () => state.last && ask(state.last, { again: true });
$("player").ontimeupdate = () => {
  const at = $("player").currentTime;
  const i = state.chunks.findIndex((chunk) => chunk.start <= at && at < chunk.end);
  for (const bar of $("timeline").querySelectorAll("button")) bar.toggleAttribute("data-now", Number(bar.dataset.chunk) === i);
};

async function follow() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const id = wanted.get("m");
  if (id && (id !== state.id || wanted.has("t"))) await open(id, wanted.has("t") ? Number(wanted.get("t")) || 0 : null);
}
window.addEventListener("hashchange", follow);
$("login").onsubmit = async (event) => {
  event.preventDefault();
  try {
    await call("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${$("key").value}` } });
    $("login").hidden = true;
    problem("");
    await begin();
  } catch (error) {
    problem(error.message);
  }
};
async function begin() {
  try {
    state.model = (await json("/v1/models")).data[0].id;
    $("model").textContent = `model ${state.model}`;
    await refresh();
    await follow();
    if (state.id === null && !uploads && state.memories.length) await open(state.memories[0].id);
    watch();
  } catch (error) {
    problem(error.message);
  }
}
begin();
