"use strict";
// Everything shown comes from a model, a tool or a file: it is only ever set as textContent.

const PAGE_GROUPS = 40;
const byId = (id) => document.getElementById(id);
const state = { head: null, chunks: new Map(), shown: [], groups: [], page: 0, chosen: -1, tokens: true, deep: null };

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function chunkOf(index) {
  const number = Math.floor(index / state.head.chunk);
  if (!state.chunks.has(number)) state.chunks.set(number, unpack(`chunk-${number}`));
  return state.chunks.get(number);
}

async function rolloutAt(index) {
  return (await chunkOf(index))[index % state.head.chunk];
}

function el(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, action] of Object.entries(value)) node.addEventListener(event, action);
    else if (name === "odd") node.style.setProperty("--odd", value);
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const number = (value, digits = 2) => (value === null || value === undefined ? "–" : Number(value).toFixed(digits));
const outcomeOf = (row) => (row.error || row.reward === null ? "error" : row.solved ? "solved" : row.reward > 0 ? "partly" : "zero");
const stageOf = (row) => row.stage || "no stage";

// --- lists ---

function matches(row, index) {
  const wanted = byId("outcome").value;
  if (byId("run").value !== "" && row.run !== Number(byId("run").value)) return false;
  if (byId("stage").value && stageOf(row) !== byId("stage").value) return false;
  if (byId("category").value && row.category !== byId("category").value) return false;
  if (wanted === "hinted" ? !row.hints : wanted === "drifted" ? !row.drifted : wanted && outcomeOf(row) !== wanted) return false;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const text = `${row.id} ${row.category} ${row.stage} ${row.model} ${row.stop} ${row.words}`.toLowerCase();
  return words.every((word) => text.includes(word)) || (state.deep !== null && state.deep.has(index));
}

function refresh(keepPage) {
  state.shown = state.head.rollouts.map((row, index) => [row, index]).filter(([row, index]) => matches(row, index));
  const groups = new Map();
  for (const [row, index] of state.shown) {
    const key = JSON.stringify([row.run, row.stage, row.dial, row.task]);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(index);
  }
  state.groups = [...groups.values()];
  if (!keepPage) state.page = 0;
  state.page = Math.max(0, Math.min(state.page, Math.ceil(state.groups.length / PAGE_GROUPS) - 1));
  drawOverview();
  drawGroups();
}

function drawOverview() {
  const parts = new Map();
  for (const [row] of state.shown) {
    const key = JSON.stringify([row.run, stageOf(row)]);
    if (!parts.has(key)) parts.set(key, { run: row.run, stage: stageOf(row), rows: [] });
    parts.get(key).rows.push(row);
  }
  const head = el("tr", {}, ["run and stage", "rollouts", "solved", "reward", "hints", "errors"].map((name) => el("th", {}, name)));
  const lines = [...parts.values()].map(({ run, stage, rows }) => {
    const rewards = rows.map((row) => row.reward).filter((value) => value !== null);
    const sum = (name) => rows.reduce((total, row) => total + Number(row[name]), 0);
    const pick = () => { byId("run").value = String(run); byId("stage").value = stage; refresh(); };
    const cells = [`${state.head.runs[run].name} · ${stage}`, rows.length, sum("solved"),
      number(rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null), sum("hints"), sum("error")];
    return el("tr", { class: "pick", on: { click: pick } }, cells.map((cell) => el("td", {}, String(cell))));
  });
  byId("overview").replaceChildren(el("table", {}, head, lines));
}

function drawGroups() {
  const first = state.page * PAGE_GROUPS;
  byId("groups").replaceChildren(...state.groups.slice(first, first + PAGE_GROUPS).map(groupOf));
  if (!state.groups.length) byId("groups").append(el("p", { class: "soft" }, "No rollout passes the filters."));
  const pages = Math.max(1, Math.ceil(state.groups.length / PAGE_GROUPS));
  const turn = (step) => () => { state.page += step; drawGroups(); };
  byId("pager").replaceChildren(
    el("button", { type: "button", disabled: state.page === 0, on: { click: turn(-1) } }, "‹"),
    el("span", { class: "soft" }, `page ${state.page + 1} of ${pages}, ${state.groups.length} groups, ${state.shown.length} rollouts`),
    el("button", { type: "button", disabled: state.page + 1 >= pages, on: { click: turn(1) } }, "›"),
  );
}

function groupOf(indices) {
  const row = state.head.rollouts[indices[0]];
  const chips = indices.map((index) => {
    const one = state.head.rollouts[index];
    const kind = `chip ${outcomeOf(one)}${index === state.chosen ? " chosen" : ""}`;
    const label = outcomeOf(one) === "error" ? one.stop : number(one.reward);
    return el("button", { type: "button", class: kind, "data-index": index, title: one.id, on: { click: () => open(index) } }, label);
  });
  const about = `${row.category} · dial ${row.dial}${row.stage ? ` · stage ${row.stage}` : ""}`;
  return el("div", { class: "group" }, el("div", { class: "name" }, row.task), el("div", { class: "soft small" }, about), el("div", { class: "chips" }, chips));
}

// --- one rollout ---

async function open(index) {
  state.chosen = index;
  const row = state.head.rollouts[index], rollout = await rolloutAt(index);
  if (state.chosen !== index) return;
  const facts = [["reward", number(row.reward)], ["ended by", row.stop], ["model", row.model], ["dial", row.dial], ["calls", row.calls],
    ["failures", row.failures], ["hints", row.hints], ["tokens", `${rollout.usage.input_tokens} in, ${rollout.usage.output_tokens} out`],
    ["seconds", number(rollout.timings.total_s, 1)]];
  byId("rollout").replaceChildren(...[
    el("h2", { class: "title" }, row.id),
    el("div", { class: "facts" }, facts.map(([name, value]) => el("span", {}, `${name} `, el("b", {}, String(value))))),
    rollout.error ? el("p", { class: "bad" }, rollout.error) : null,
    tapeOf(rollout.tape),
    ...rollout.turns.map((turn, place) => turnOf(turn, place, rollout.n_turns)),
  ].filter(Boolean));
  byId("rollout").scrollTop = 0;
  for (const chip of document.querySelectorAll(".chip")) chip.classList.toggle("chosen", Number(chip.dataset.index) === index);
  document.querySelector(".chip.chosen")?.scrollIntoView({ block: "nearest" });
}

function tapeOf(tape) {
  if (!tape) return null;
  const text = `tape: ${tape.branches} branches, ${tape.sampled_tokens} sampled tokens, ${tape.on_policy_tokens} on-policy, ${tape.drifted} calls drifted`;
  return el("p", { class: tape.broken ? "bad small" : "soft small" }, tape.note ? `${text}; ${tape.note}` : text);
}

function turnOf(turn, place, total) {
  const score = turn.score;
  const worth = score ? `score ${number(score.value)} (state ${number(score.state)}, response ${number(score.response)})` : "not scored";
  const kind = !score ? "soft" : score.value === 1 ? "good" : score.value > 0 ? "warn" : "bad";
  return el("details", { class: "turn", open: true },
    el("summary", {}, `turn ${place + 1} of ${total} `, el("span", { class: kind }, worth)),
    el("div", { class: "body" }, said("user", "user", turn.user), turn.steps.map(stepOf), whyOf(turn)));
}

function said(kind, who, text) {
  return el("div", { class: `say ${kind}` }, el("div", { class: "who" }, who), el("pre", {}, text));
}

function stepOf(step, place) {
  const notes = [`model, step ${place + 1}`, `${step.seconds} s`];
  if (step.finish) notes.push(step.finish);
  if (step.constrained) notes.push("limited by a grammar: off-policy");
  if (step.opens && step.branch > 0) notes.push("prompt drifted: new branch");
  return el("section", { class: "step" }, said("reply", notes.join(" · "), step.reply || "(says nothing)"), tokensOf(step), step.calls.map(callOf));
}

function tokensOf(step) {
  if (!step.tokens) return null;
  const label = `${step.context} context tokens, mask 0`;
  const context = step.context_text === null ? el("span", { class: "context" }, label)
    : el("details", { class: "context" }, el("summary", {}, label), el("pre", {}, step.context_text));
  const tokens = step.tokens.map((token, place) => {
    const logprob = step.logprobs[place];
    const odd = Math.min(1, -logprob / 5).toFixed(3);
    const title = `mask 1, logprob ${number(logprob, 3)}, p ${number(Math.exp(logprob), 3)}${step.constrained ? ", off-policy" : ""}`;
    return el("span", { class: step.constrained ? "token limited" : "token", odd, title }, typeof token === "number" ? `${token} ` : token);
  });
  const more = step.more_tokens ? el("span", { class: "soft" }, ` and ${step.more_tokens} more`) : null;
  return el("div", { class: state.tokens ? "tokens" : "tokens hidden" }, context, " ", tokens, more);
}

function callOf(call) {
  const line = `${call.name}(${Object.entries(call.args).map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(", ")})`;
  const failure = call.failure ? el("span", { class: "bad" }, ` ${call.failure.kind}`) : null;
  const hint = call.hint ? el("span", { class: "warn" }, ` hint by ${call.hint.rule}, level ${call.hint.level}`) : null;
  const problem = call.hint_error ? el("span", { class: "bad" }, ` ${call.hint_error}`) : null;
  return el("div", { class: call.failure ? "call failed" : "call" },
    el("div", { class: "who" }, line, failure, hint, problem), el("pre", {}, difference(call.raw, call.content)));
}

// What the model saw, with what was added to the tool's own answer marked.
function difference(raw, content) {
  if (raw === content) return [raw];
  for (const own of [raw, JSON.stringify(raw).slice(1, -1)]) { // a hint may be put around the answer, quoted
    const at = own ? content.indexOf(own) : -1;
    if (at >= 0) return [el("ins", {}, content.slice(0, at)), own, el("ins", {}, content.slice(at + own.length))];
  }
  const limit = Math.min(raw.length, content.length);
  let start = 0, end = 0;
  while (start < limit && raw[start] === content[start]) start += 1;
  while (end < limit - start && raw[raw.length - 1 - end] === content[content.length - 1 - end]) end += 1;
  const removed = raw.slice(start, raw.length - end), added = content.slice(start, content.length - end);
  return [raw.slice(0, start), removed ? el("del", {}, removed) : null, added ? el("ins", {}, added) : null, raw.slice(raw.length - end)];
}

function whyOf(turn) {
  const evidence = turn.evidence;
  if (!evidence) return null;
  const items = [];
  if (!evidence.judged) items.push(el("li", { class: "soft" }, "nothing was asked for in this turn"));
  if (!evidence.answered) items.push(el("li", { class: "bad" }, "calls were needed and none was made"));
  for (const [title, checks] of [["state", evidence.state_checks], ["result", evidence.response_checks]]) {
    for (const [name, holds] of Object.entries(checks)) {
      const why = evidence.differences[name];
      items.push(el("li", { class: holds ? "good" : "bad" }, `${holds ? "✓" : "✗"} ${title} ${name}`, why ? el("pre", {}, why) : null));
    }
  }
  const changes = Object.entries(evidence.changes);
  if (!items.length && !changes.length) return null;
  return el("div", { class: "checks" },
    el("div", { class: "who" }, turn.score && turn.score.value < 1 ? "why the score is not 1" : "checks"), el("ul", {}, items),
    changes.length ? el("div", { class: "who" }, "what this turn changed") : null,
    changes.map(([name, text]) => el("div", {}, el("span", { class: "small" }, name), el("pre", {}, text))));
}

// --- controls ---

async function deepSearch() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  state.deep = new Set();
  if (words.length) {
    byId("pager").replaceChildren(el("span", { class: "soft" }, "searching the texts …"));
    for (let index = 0; index < state.head.rollouts.length; index += 1) {
      const text = JSON.stringify(await rolloutAt(index)).toLowerCase();
      if (words.every((word) => text.includes(word))) state.deep.add(index);
    }
  }
  refresh();
}

function step(by) {
  const order = state.groups.flat(), at = order.indexOf(state.chosen);
  const next = at < 0 ? 0 : Math.max(0, Math.min(order.length - 1, at + by));
  if (!order.length) return;
  const page = Math.floor(state.groups.findIndex((group) => group.includes(order[next])) / PAGE_GROUPS);
  if (page !== state.page) { state.page = page; drawGroups(); }
  open(order[next]);
}

function turnPage(by) {
  state.page = Math.max(0, Math.min(Math.ceil(state.groups.length / PAGE_GROUPS) - 1, state.page + by));
  drawGroups();
}

function theme() {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

function toggleTokens() {
  state.tokens = !state.tokens;
  for (const node of document.querySelectorAll(".tokens")) node.classList.toggle("hidden", !state.tokens);
}

function toggleTurns() {
  const turns = [...document.querySelectorAll("details.turn")], anyOpen = turns.some((turn) => turn.open);
  for (const turn of turns) turn.open = !anyOpen;
}

const KEYS = {
  j: () => step(1), k: () => step(-1), n: () => turnPage(1), p: () => turnPage(-1), t: toggleTokens, o: toggleTurns,
  d: theme, "/": () => byId("search").focus(), "?": () => byId("keys").showModal(),
};

function onKey(event) {
  if (event.key === "Escape") byId("search").blur();
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
}

function fill(id, title, values) {
  byId(id).replaceChildren(el("option", { value: "" }, title), ...values.map(([value, name]) => el("option", { value }, name)));
  byId(id).addEventListener("change", () => refresh());
}

async function start() {
  state.head = await unpack("head");
  const rows = state.head.rollouts, distinct = (of) => [...new Set(rows.map(of))].sort().map((value) => [value, value]);
  fill("run", "all runs", state.head.runs.map((run, place) => [String(place), run.name]));
  fill("stage", "all stages", distinct(stageOf));
  fill("category", "all categories", distinct((row) => row.category));
  byId("outcome").addEventListener("change", () => refresh());
  byId("search").addEventListener("input", () => { state.deep = null; refresh(); });
  byId("search").addEventListener("keydown", (event) => { if (event.key === "Enter") deepSearch(); });
  byId("theme").addEventListener("click", theme);
  byId("help").addEventListener("click", () => byId("keys").showModal());
  document.addEventListener("keydown", onKey);
  refresh();
  if (state.groups.length) await open(state.groups[0][0]);
  document.documentElement.dataset.ready = "yes";
}

start();
