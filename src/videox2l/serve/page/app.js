// The page of `x2l serve`: library, player with time line, and dialogue. Plain modules, no build.
import { call, download, events, json, post, upload } from "/page/server.js";

const $ = (id) => document.getElementById(id);
const state = {
  model: "", memories: [],
  id: null, // the video in the player
  asked: [], // ids of the videos that questions are about, oldest first; `id` is one of them
  chunks: [], holes: [], duration: null, complete: true, // of the video in the player
  selected: null, pinned: new Set(), excluded: new Set(), // numbers of its chunks
  turns: [], // {question, said, choices, told}: the dialogue; `told` is the answer with its evidence
  shown: null, // the turn whose evidence the time line shows
  stop: null, // stops the answer that is being written
};

const clock = (seconds) => {
  const s = Math.max(0, Math.floor(seconds)), h = Math.floor(s / 3600);
  const rest = [Math.floor(s / 60) % 60, s % 60].map((n) => String(n).padStart(2, "0")).join(":");
  return h ? `${h}:${rest}` : rest;
};
const percent = (share) => {
  const value = 100 * share;
  if (value > 99.9 && value < 100) return "over 99.9 %";
  return value > 0 && value < 0.1 ? "under 0.1 %" : `${Number(value.toFixed(value < 10 ? 1 : 0))} %`;
};
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const active = (memory) => ["queued", "ingesting"].includes(memory.state);
const memoryOf = (id) => state.memories.find((memory) => memory.id === id);
function nameOf(id) {
  const name = memoryOf(id)?.name ?? id;
  const same = state.memories.filter((memory) => memory.name === name).reverse();
  return same.length > 1 ? `${name} (${same.findIndex((memory) => memory.id === id) + 1})` : name;
}
function problem(text) {
  for (const { id } of state.memories) text = text.replaceAll(id, nameOf(id));
  $("problem").firstChild.textContent = text;
  $("problem").hidden = !text;
}
function failed(error, what = "") {
  if (error.status === 401) {
    $("login").hidden = false;
    $("key").focus();
  }
  problem(what + error.message);
}
$("problem").lastChild.onclick = () => problem("");

// Library
function words(memory) {
  const { frames, expected_frames: all, seconds_left: left } = memory.progress;
  return {
    queued: "waiting", ingesting: `reading ${frames} of ${all ?? "?"} frames${left ? `, ${clock(left)} left` : ""}`,
    failed: "could not be read", cancelled: "stopped before its end", complete: memory.duration ? clock(memory.duration) : "ready",
  }[memory.state];
}
const entries = new Map(); // those that stay as they are keep their element, so that no click is lost
function entry(memory) {
  const name = nameOf(memory.id);
  const look = JSON.stringify([memory, name, memory.id === state.id, state.asked.includes(memory.id), state.memories.length > 1]);
  if (entries.get(memory.id)?.look === look) return entries.get(memory.id).row;
  const picture = memory.chunks
    ? make("img", { src: `/v1/memories/${memory.id}/thumbnails/0.jpg`, alt: "" })
    : make("span", { className: "blank" });
  const text = make("span", {}, make("b", { textContent: name, title: name }), make("small", { textContent: words(memory) }));
  const all = memory.progress.expected_frames;
  if (active(memory)) text.append(make("progress", { max: all ?? 1, value: all ? memory.progress.frames : 0, ariaLabel: `progress of ${name}` }));
  const button = make("button", { type: "button", onclick: () => (problem(""), open(memory.id)) }, picture, text);
  if (memory.id === state.id) button.setAttribute("aria-current", "true");
  const tick = make("input", {
    type: "checkbox", checked: state.asked.includes(memory.id), disabled: !memory.chunks, ariaLabel: `Ask about ${name}`,
    title: "Ask about this video, with others that are ticked", onchange: () => choose(memory.id),
  });
  button.dataset.key = `open ${memory.id}`;
  tick.dataset.key = `ask ${memory.id}`;
  const row = make("li", {}, ...(state.memories.length > 1 ? [tick] : []), button);
  entries.set(memory.id, { look, row });
  return row;
}
function list() {
  const key = document.activeElement?.dataset?.key;
  $("library").replaceChildren(...state.memories.map(entry));
  if (key) $("library").querySelector(`[data-key="${key}"]`)?.focus();
  $("several").hidden = state.memories.length < 2;
  $("empty").hidden = state.memories.length > 0 || $("sending").children.length > 0;
}
async function refresh() {
  state.memories = (await json("/v1/memories")).data;
  list();
  describe();
  const open_ = memoryOf(state.id);
  if (open_ && (open_.chunks !== state.chunks.length || active(open_) === state.complete)) await timeline();
  return state.memories.some(active);
}
let watching = false;
async function watch() {
  if (watching) return;
  watching = true;
  let lost = false;
  for (let more = true; more; ) {
    try {
      more = await refresh();
      if (lost) problem("");
      lost = false;
    } catch (error) {
      failed(error);
      if (error.status) break; // it was refused; else the line is broken, and may come back
      lost = true;
    }
    if (more) await new Promise((done) => setTimeout(done, lost ? 3000 : 700));
  }
  watching = false;
}
async function take(files) {
  problem("");
  for (const file of files) {
    const bar = make("progress", { max: Math.max(1, file.size), value: 0, ariaLabel: `sending ${file.name}` });
    const row = make("li", {}, make("small", { textContent: `sending ${file.name}` }), bar);
    $("sending").append(row);
    $("empty").hidden = true;
    try {
      const memory = await upload(file, (at) => (bar.value = at));
      await refresh();
      await open(memory.id);
    } catch (error) {
      failed(error, `${file.name}: `);
    }
    row.remove();
    watch();
  }
}
$("file").onchange = (event) => take([...event.target.files]).then(() => (event.target.value = ""));
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take([...event.dataTransfer.files]);
  });

// Which videos are asked about, and which one is seen
function choose(id) {
  problem("");
  if (state.id === null) return open(id);
  const asked = inOrder((one) => memoryOf(one).chunks && (one === id) !== state.asked.includes(one));
  if (asked.length) open(asked.includes(state.id) ? state.id : asked[0], { asked });
  else $("library").querySelector(`[data-key="ask ${id}"]`).checked = true; // one is always asked about
}
const inOrder = (wanted) => [...state.memories].reverse().map((memory) => memory.id).filter(wanted); // oldest first
$("every").onclick = () => {
  const asked = inOrder((id) => memoryOf(id).chunks);
  if (asked.length) open(asked.includes(state.id) ? state.id : asked[0], { asked });
};
$("alone").onclick = () => open(state.id, { asked: [state.id] });
function address(seconds = null) {
  const also = state.asked.filter((id) => id !== state.id);
  return `#m=${state.id}${seconds === null ? "" : `&t=${Math.floor(seconds)}`}${also.length ? `&also=${also.join()}` : ""}`;
}
let opening = 0;
async function open(id, { at = null, asked = state.asked.includes(id) ? state.asked : [id] } = {}) {
  const another = state.id !== id, first = state.id === null, turn = ++opening;
  if (another) {
    let memory;
    try {
      memory = await json(`/v1/memories/${id}`);
    } catch (error) {
      return failed(error);
    }
    if (turn !== opening) return; // another video was opened in the meantime
    Object.assign(state, { id, chunks: [], holes: [], duration: null, complete: true, selected: null });
    state.pinned.clear();
    state.excluded.clear();
    $("moment").hidden = true;
    play(memory);
  }
  if (asked.join() !== state.asked.join()) {
    state.asked = asked;
    restore();
  }
  if (address(at) !== location.hash) {
    if (another && !first) history.pushState(null, "", address(at));
    else history.replaceState(null, "", address(at));
  }
  $("stage").hidden = false;
  list();
  describe();
  await timeline(at);
  if (another && !(first && at === null)) $("view").scrollIntoView({ block: "nearest" });
  watch();
}
function play(memory) {
  $("player").hidden = !memory.has_video;
  $("novideo").hidden = memory.has_video;
  $("novideo").textContent = "The video itself is not here; its memory can be asked all the same.";
  if (memory.has_video) $("player").src = `/v1/memories/${memory.id}/video`;
  else $("player").removeAttribute("src");
}
$("player").onerror = () => {
  if (!$("player").getAttribute("src")) return;
  $("player").hidden = true;
  $("novideo").hidden = false;
  const rest = memoryOf(state.id)?.chunks ? "; it can be asked all the same, and moments have a picture." : ".";
  $("novideo").textContent = `This browser cannot play this video${rest}`;
};
function describe() {
  if (state.id === null) return;
  const memory = memoryOf(state.id), many = state.asked.length > 1;
  $("title").textContent = nameOf(state.id);
  document.title = `${nameOf(state.id)} - videox2l`;
  for (const element of document.querySelectorAll("[data-alone]")) element.hidden = many;
  $("why").hidden = many || !state.turns.length;
  $("about").hidden = !many;
  $("about").firstChild.textContent = `About ${state.asked.length} videos: ${state.asked.map(nameOf).join(", ")}.`;
  $("question").placeholder = many ? "Ask about these videos" : "Ask about this video";
  $("take").hidden = !state.turns.some((turn) => turn.told);
  $("take").querySelector("[data-format=srt]").textContent = many ? `Moments of ${nameOf(state.id)} as SRT` : "Moments as SRT";
  const read = state.chunks.length ? `What was read, up to ${clock(state.chunks.at(-1).end)}, can be asked.` : "Nothing of it can be asked.";
  const notes = {
    queued: "This video waits to be read.", ingesting: "This video is being read; what is read can be asked already.",
    failed: `It could not be read: ${memory?.error ?? "the log of the server says why"} ${read}`,
    cancelled: `The reading was stopped. ${read}`,
  };
  const told = [notes[memory?.state], ...(memory?.warnings ?? []).slice(0, 3)].filter(Boolean);
  $("note").textContent = told.join(" ");
  $("ask").hidden = !state.chunks.length && !(memory && (memory.chunks || active(memory))); // nothing will come
  $("note").hidden = !told.length;
}

// The time line
async function timeline(at = null) {
  const id = state.id;
  let told;
  try {
    told = await json(`/v1/memories/${id}/timeline`);
  } catch (error) {
    if (!error.status) return failed(error);
    told = { chunks: [] }; // nothing is ingested yet
  }
  if (state.id !== id) return; // another video was opened in the meantime
  Object.assign(state, { chunks: told.chunks, holes: told.holes ?? [], duration: told.duration ?? null, complete: told.complete ?? false });
  if (at === null) draw();
  else show(at);
  describe();
}
// What the shown answer has of the video in the player, by chunk
function evidence() {
  const turn = state.shown, found = (turn?.told?.answer.evidence ?? []).filter((moment) => (moment.memory || turn.told.memory) === state.id);
  return new Map(found.map((moment) => [moment.chunk, moment]));
}
function gap(kind, start, end, text) {
  const words = `${text} from ${clock(start)} to ${clock(end)}`;
  const element = make("span", { className: kind, title: words, role: "img", ariaLabel: words });
  element.style.flexGrow = String(Math.max(0.01, end - start));
  return element;
}
function draw() {
  const moments = evidence();
  const top = Math.max(1e-9, ...[...(state.shown?.told?.answer.evidence ?? [])].map((moment) => moment.score ?? 0));
  const focus = state.selected ?? 0;
  const parts = [];
  let reached = 0;
  const hole = (until) => until - reached > 0.01 && parts.push(gap("hole", reached, until, "nothing could be read"));
  state.chunks.forEach((chunk, i) => {
    hole(chunk.start);
    reached = chunk.end;
    const moment = moments.get(i);
    const marks = [moment?.reloaded && "fine", state.pinned.has(i) && "pinned", state.excluded.has(i) && "excluded"].filter(Boolean);
    const told = [`${clock(chunk.start)} to ${clock(chunk.end)}`, moment?.reloaded ? `read in detail (${moment.reason})` : "gist"];
    if (moment?.score != null) told.push(`score ${moment.score.toFixed(3)}`);
    told.push(...marks.filter((mark) => mark !== "fine"));
    const words = told.join(", ");
    const bar = make("button", { type: "button", className: marks.join(" "), title: words, ariaLabel: words, tabIndex: i === focus ? 0 : -1, onclick: () => select(i) });
    bar.style.flexGrow = String(Math.max(0.01, chunk.end - chunk.start));
    bar.style.height = `${(moment?.reloaded ? 22 : 12) + 38 * ((moment?.score ?? 0) / top)}px`;
    bar.setAttribute("aria-pressed", String(state.selected === i));
    bar.dataset.chunk = String(i);
    parts.push(bar);
  });
  const last = state.holes.filter(([, end]) => end > reached + 0.01).at(-1);
  if (last) {
    hole(last[1]);
    reached = last[1];
  }
  const unread = !state.complete && state.duration > reached + 0.01;
  if (unread) parts.push(gap("unread", reached, state.duration, "not read"));
  const focused = document.activeElement?.dataset?.chunk;
  $("timeline").replaceChildren(...parts);
  $("timeline").classList.toggle("dense", state.chunks.length > 120);
  if (focused !== undefined) $("timeline").querySelector(`[data-chunk="${focused}"]`)?.focus({ preventScroll: true });
  $("ends").firstChild.textContent = state.chunks.length ? clock(0) : "";
  $("ends").lastChild.textContent = state.chunks.length ? clock(unread ? state.duration : reached) : "";
  document.querySelector("[data-hole]").hidden = !parts.some((part) => part.className === "hole");
  document.querySelector("[data-unread]").hidden = !unread;
  $("legend").hidden = $("hint").hidden = !state.chunks.length;
}
function seek(seconds) {
  const player = $("player"), go = () => (player.currentTime = seconds);
  if (player.readyState >= 1) go();
  else player.addEventListener("loadedmetadata", go, { once: true });
  history.replaceState(null, "", address(seconds));
}
function show(seconds) {
  const i = state.chunks.findIndex((chunk, n) => chunk.start <= seconds && (seconds < chunk.end || n === state.chunks.length - 1));
  if (i < 0) {
    seek(seconds);
    return draw();
  }
  select(i, Math.min(seconds, state.chunks[i].end));
}
function select(i, at = state.chunks[i].start) {
  state.selected = i;
  const chunk = state.chunks[i];
  $("moment").hidden = false;
  $("thumb").hidden = false;
  $("thumb").src = `/v1/memories/${state.id}/thumbnails/${i}.jpg`;
  $("thumb").alt = `picture at ${clock(chunk.start)}`;
  $("when").textContent = `${clock(chunk.start)} to ${clock(chunk.end)}`;
  $("pin").setAttribute("aria-pressed", String(state.pinned.has(i)));
  $("exclude").setAttribute("aria-pressed", String(state.excluded.has(i)));
  $("earlier").disabled = i === 0;
  $("later").disabled = i === state.chunks.length - 1;
  seek(at);
  draw();
}
$("thumb").onerror = () => ($("thumb").hidden = true);
const step = (by) => state.chunks[state.selected + by] && select(state.selected + by);
$("earlier").onclick = () => step(-1);
$("later").onclick = () => step(1);
function mark(set, other) {
  const i = state.selected;
  if (i === null || state.asked.length > 1) return;
  if (!set.delete(i)) set.add(i), other.delete(i);
  $("again").hidden = !state.turns.length;
  select(i);
}
$("pin").onclick = () => mark(state.pinned, state.excluded);
$("exclude").onclick = () => mark(state.excluded, state.pinned);
$("why").onclick = () => repeat({ why: state.chunks[state.selected].start });
$("again").onclick = () => repeat();
const repeat = (more = {}) => state.turns.length && ask(state.turns.at(-1), { ...more, again: true });
document.addEventListener("keydown", (event) => {
  if (["INPUT", "TEXTAREA", "VIDEO"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    $("question").focus();
  }
  if (event.target !== document.body && !event.target.closest("#timeline, #moment, .chip")) return;
  if (event.key.toLowerCase() === "p") mark(state.pinned, state.excluded);
  if (event.key.toLowerCase() === "x") mark(state.excluded, state.pinned);
  if (event.target.dataset.chunk === undefined) return;
  const i = Number(event.target.dataset.chunk), last = state.chunks.length - 1;
  const to = { ArrowLeft: i - 1, ArrowRight: i + 1, PageUp: i - 10, PageDown: i + 10, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const bars = $("timeline").querySelectorAll("button");
  event.target.tabIndex = -1;
  bars[Math.min(last, Math.max(0, to))].tabIndex = 0;
  bars[Math.min(last, Math.max(0, to))].focus();
});
$("player").ontimeupdate = () => {
  const at = $("player").currentTime;
  const i = state.chunks.findIndex((chunk) => chunk.start <= at && at < chunk.end);
  for (const bar of $("timeline").querySelectorAll("button")) bar.toggleAttribute("data-now", Number(bar.dataset.chunk) === i);
};

// Questions
const ranges = (set) => [...set].sort((a, b) => a - b).map((i) => [state.chunks[i].start, state.chunks[i].end]);
function request({ question, choices, abstain }, before, why) {
  const messages = before.flatMap((turn) => [{ role: "user", content: turn.question }, { role: "assistant", content: turn.said }]);
  messages.push({ role: "user", content: question });
  const x2l = { detail: true };
  if (state.asked.length > 1) x2l.memories = state.asked;
  else {
    x2l.memory = state.id;
    if (state.pinned.size) x2l.pinned = ranges(state.pinned);
    if (state.excluded.size) x2l.excluded = ranges(state.excluded);
    if (why !== null) x2l.why = [why];
  }
  if (choices) x2l.choices = choices;
  else if (abstain !== null) x2l.abstain = abstain;
  return { model: state.model, messages, stream: true, x2l };
}
async function ask({ question, choices, abstain }, { why = null, again = false } = {}) {
  if (state.stop) return;
  const asked = state.asked, key = asked.join(); // other videos may be chosen before the answer is there
  const before = again ? state.turns.slice(0, -1) : state.turns;
  const turn = { question, choices, abstain, said: "", told: null };
  problem("");
  state.stop = new AbortController();
  $("send").textContent = "Stop";
  const card = make("article", { ariaBusy: "true" });
  fill(card, turn, "looking ...");
  $("dialogue").append(card);
  card.scrollIntoView({ block: "nearest" });
  try {
    const reply = await post("/v1/chat/completions", request(turn, before, why), { signal: state.stop.signal });
    for await (const event of events(reply)) {
      turn.said += event.choices?.[0]?.delta?.content ?? "";
      card.querySelector(".answer").textContent = turn.said;
      turn.told = event.x2l ?? turn.told;
    }
    turn.said = turn.told?.answer.text || turn.said.trim() || "-";
    const turns = [...before, turn];
    keep(key, turns);
    if (state.asked.join() === key) {
      Object.assign(state, { turns, shown: turn });
      $("again").hidden = true;
      draw();
      describe();
    }
    fill(card, turn);
  } catch (error) {
    const stopped = error.name === "AbortError";
    fill(card, turn, stopped ? "stopped" : "no answer");
    if (!stopped) failed(error);
    $("question").value ||= question;
  }
  card.ariaBusy = "false";
  card.scrollIntoView({ block: "nearest" });
  state.stop = null;
  $("send").textContent = "Ask";
}
// What a turn looks like, also while it is not over
function fill(card, turn, waiting = "") {
  const { told } = turn;
  card.replaceChildren(make("h3", { textContent: turn.question }));
  if (told && told.answer.draft !== null) {
    card.append(make("p", { className: "answer unshown", textContent: "The video does not show this." }));
    card.append(make("p", { className: "aside", textContent: `Too unsure to be an answer: "${told.answer.draft}"` }));
  } else card.append(make("p", { className: "answer", textContent: turn.said }));
  if (!told) return card.append(...(waiting ? [make("p", { className: "cost", textContent: waiting })] : []));
  const { answer } = told;
  if (answer.thought) card.append(make("details", {}, make("summary", { textContent: "Thought" }), make("p", { textContent: answer.thought })));
  if (answer.choices.length) card.append(bars(answer), make("p", { className: "aside", textContent: "likelihood per token, as a share of these choices" }));
  card.append(make("div", { role: "group", ariaLabel: "Moments read in detail" }, ...answer.evidence.filter((moment) => moment.reloaded).map((moment) => chip(turn, moment))));
  card.append(make("p", { className: "cost", textContent: cost(told) }));
  for (const { lines } of told.why) card.append(make("ul", { className: "why" }, ...lines.map((line) => make("li", { textContent: line }))));
}
// Likelihoods per token of the choices, as shares of all of them
function bars(answer) {
  const best = Math.max(...answer.choices.map((choice) => choice.mean));
  const weights = answer.choices.map((choice) => Math.exp(choice.mean - best));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const rows = answer.choices.map((choice, i) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${(100 * weights[i]) / sum}%`;
    const title = `log likelihood ${choice.log_likelihood.toFixed(2)}, ${choice.mean.toFixed(2)} per token`;
    const row = make("li", { title }, make("span", { textContent: choice.text }), make("span", { className: "track" }, bar), make("span", { textContent: percent(weights[i] / sum) }));
    row.classList.toggle("best", choice.text === answer.text);
    return row;
  });
  return make("ul", { className: "choices", ariaLabel: "Likelihood of each choice, per token" }, ...rows);
}
function chip(turn, moment) {
  const id = moment.memory || turn.told.memory;
  const text = `${clock(moment.start)}-${clock(moment.end)}`;
  const button = make("button", { type: "button", className: "chip", title: moment.reason }, ...(turn.told.memories.length > 1 ? [make("b", { textContent: nameOf(id) }), " "] : []), text);
  button.onclick = async () => {
    state.shown = turn;
    await open(id, { at: moment.start });
    $("view").scrollIntoView({ block: "nearest" });
  };
  return button;
}
function cost({ answer, memories, incomplete, covers }) {
  const { tokens, full_tokens: full, seconds } = answer.cost;
  const took = Object.values(seconds).reduce((sum, value) => sum + value, 0);
  const fine = answer.evidence.filter((moment) => moment.reloaded).length, many = memories.length > 1;
  const parts = [
    `read ${fine} of ${answer.evidence.length} moments in detail`,
    `${full ? percent(tokens / full) : "0 %"} of the video${many ? "s'" : "'s"} tokens`, `${took < 0.1 ? took.toFixed(2) : took.toFixed(1)} s`,
  ];
  if (answer.confidence && !answer.choices.length) parts.push(`${percent(Math.exp(answer.confidence.log_likelihood))} sure of each token`);
  if (answer.finish === "length") parts.push("cut off where the longest answer ends");
  if (incomplete) parts.push(many ? "some of these videos are not read to their end yet" : `the video is read up to ${clock(covers[1])} so far`);
  return parts.join("; ");
}
// What was asked outlives a reload of the page, not the tab. Where that is too much, the oldest turns lose their evidence.
function keep(key, turns) {
  for (let bare = 0; bare <= turns.length; bare++)
    try {
      return sessionStorage.setItem(`x2l turns ${key}`, JSON.stringify(turns.map((turn, i) => (i < bare ? { ...turn, told: null } : turn))));
    } catch {
      continue;
    }
}
function restore() {
  state.turns = JSON.parse(sessionStorage.getItem(`x2l turns ${state.asked.join()}`) ?? "[]");
  state.shown = state.turns.findLast((turn) => turn.told) ?? null;
  $("again").hidden = true;
  $("dialogue").replaceChildren(...state.turns.map((turn) => {
    const card = make("article");
    fill(card, turn);
    return card;
  }));
}
$("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || state.stop) return;
  $("question").value = "";
  ask({ question, choices: $("choices").value.trim(), abstain: $("abstain").value === "" ? null : Number($("abstain").value) });
};
$("send").onclick = (event) => {
  if (!state.stop) return;
  event.preventDefault(); // no question is needed to stop one
  state.stop.abort();
};

// What is taken away
for (const button of $("take").querySelectorAll("button"))
  button.onclick = async () => {
    const { format } = button.dataset, several = state.asked.length > 1 && format !== "srt";
    const answers = state.turns.filter((turn) => turn.told).map((turn) => turn.told.answer);
    const name = several ? "videos" : nameOf(state.id).replace(/\.\w+$/, "");
    const path = several ? "/v1/report" : `/v1/memories/${state.id}/report`;
    try {
      problem("");
      await download(path, { answers, format, ...(several ? { memories: state.asked } : {}) }, `${name}.${format}`);
    } catch (error) {
      failed(error);
    }
  };

async function follow() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const id = wanted.get("m"), at = wanted.has("t") ? Math.max(0, Number(wanted.get("t")) || 0) : null;
  if (!id) return false;
  const ids = [id, ...(wanted.get("also") ?? "").split(",")];
  const asked = inOrder((one) => ids.includes(one));
  await open(id, { at, asked: asked.includes(id) ? asked : [id] });
  return true;
}
window.addEventListener("hashchange", () => (problem(""), follow()));
$("login").onsubmit = async (event) => {
  event.preventDefault();
  try {
    await call("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${$("key").value}` } });
    $("login").hidden = true;
    problem("");
    await begin();
  } catch (error) {
    failed(error);
  }
};
async function begin() {
  try {
    state.model = (await json("/v1/models")).data[0].id;
    $("model").textContent = `model ${state.model}`;
    await refresh();
    if (!(await follow()) && state.id === null && state.memories.length) await open(state.memories[0].id);
    watch();
  } catch (error) {
    failed(error);
  }
}
begin();
