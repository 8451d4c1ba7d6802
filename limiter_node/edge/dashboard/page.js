// Shows what `v1/fleet/events` tells once a second: a document of the whole fleet (`edge.fleet_feed.fleet_document`).
// Client keys are anybody's text: everything goes into the page as text, nothing as markup.
"use strict";

const SECONDS_SHOWN = 300;
const ALLOWED = 0, DENIED = 1, DEGRADED = 2, FORWARDED = 3, BACKENDS = 4; // fields of a second
const MULTIPLIER = 0, ADMITTED = 1, TURNED_AWAY = 2, LATENCY_MS = 3, ERROR_RATE = 4; // of a backend in it

const find = (selector, within = document) => within.querySelector(selector);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const percents = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const count = (value) => (value === undefined ? "" : (value < 100 ? tenths : whole).format(value));
const ratio = (part, total) => (total > 0 ? percents.format(part / total) : "–");
const ms = (value) => (value < 10 ? value.toFixed(2) : whole.format(value)) + " ms";
const quantiles = (told) => (told ? `${ms(told.p50_ms)} / ${ms(told.p99_ms)}` : "–");

const times = []; // of the seconds shown, by this browser's clock
const seconds = [];
const charts = []; // {plot, host, data}: all that are on the page
const cards = new Map(); // of backends, by name

// Tables: rows are kept and their texts changed, so that focus and selection stay where they are.

function fillTable(table, rows) {
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, index) => {
    const row = body.rows[index] || body.insertRow();
    cells.forEach((cell, column) => fillCell(row.cells[column] || row.insertCell(), cell, table, column));
  });
}

function fillCell(place, cell, table, column) {
  const { text, kind = "", act = null } = typeof cell === "object" ? cell : { text: cell };
  let holder = place;
  if (act) {
    holder = place.firstElementChild || place.appendChild(document.createElement("button"));
    holder.onclick = act;
  }
  if (holder.textContent !== text) holder.textContent = text;
  if (place.title !== text) place.title = text;
  place.className = `${table.tHead.rows[0].cells[column].className} ${kind}`;
}

// Charts.

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function axis(more) {
  const grid = { stroke: colour("line"), width: 1 };
  return { stroke: colour("faint"), grid, ticks: grid, ...more };
}

const FREE = { range: (_, low, high) => [0, Math.max(high ?? 0, 1) * 1.1] };
const SHARE = { range: [0, 1.05] };

function addChart(host, title, series, data, scales = { y: FREE }) {
  const chart = { host, data, plot: null };
  const axes = () => Object.keys(scales).map((scale, index) => axis({
    scale, side: index ? 1 : 3, size: 60, grid: index ? { show: false } : { stroke: colour("line"), width: 1 },
    values: (_, ticks) => ticks.map((tick) => (scale === "%" ? percents.format(tick) : count(tick))),
  }));
  chart.draw = () => {
    if (chart.plot) chart.plot.destroy();
    chart.plot = new uPlot({
      width: host.clientWidth, height: 200,
      cursor: { drag: { setScale: false } },
      scales: { x: { time: true }, ...scales },
      axes: [axis({ space: 70, values: "{HH}:{mm}:{ss}" }), ...axes()],
      series: [{ value: "{HH}:{mm}:{ss}" }, ...series.map(({ label, ink, dash, scale = "y", show = count }) => ({
        label, dash, scale, stroke: colour(ink), width: 2, points: { show: false },
        value: (_, value) => (value === null || value === undefined ? "–" : show(value)),
      }))],
    }, data(), host);
    chart.plot.root.setAttribute("aria-hidden", "true");
  };
  host.tabIndex = 0;
  host.setAttribute("role", "img");
  host.setAttribute("aria-roledescription", "chart");
  host.addEventListener("keydown", (event) => readOff(event, chart));
  host.addEventListener("blur", () => chart.plot.setCursor({ left: -1, top: -1 })); // points at nothing
  chart.tell = () => {
    const pointed = chart.plot.cursor.idx ?? null;
    const last = times.length - 1;
    const index = Math.min(pointed ?? last, last);
    const values = data().slice(1).map((column, at) => `${series[at].label} ${count(column[index] ?? 0)}`);
    host.setAttribute("aria-label", `${pointed === null ? title : `${last - index} s ago`}: ${values.join(", ")}`);
  };
  chart.refresh = () => {
    chart.plot.setData(data());
    if (chart.plot.cursor.idx == null) chart.plot.setLegend({ idx: times.length - 1 }); // else what is pointed at
    chart.tell();
  };
  chart.draw();
  new ResizeObserver(() => chart.plot.setSize({ width: host.clientWidth, height: 200 })).observe(host);
  charts.push(chart);
  return chart;
}

function readOff(event, chart) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !times.length) return;
  event.preventDefault();
  const index = Math.min(Math.max((chart.plot.cursor.idx ?? times.length) + step, 0), times.length - 1);
  chart.plot.setCursor({ left: chart.plot.valToPos(times[index], "x"), top: 0 });
  chart.tell();
}

const column = (field) => seconds.map((second) => second[field]);

function drawChecks() {
  addChart(find("#checks-chart"), "Checks per second", [
    { label: "allowed", ink: "allowed" },
    { label: "denied", ink: "denied" },
    { label: "forwarded", ink: "forwarded", dash: [2, 3] },
    { label: "degraded", ink: "degraded", dash: [8, 4] },
  ], () => [times, column(ALLOWED), column(DENIED), column(FORWARDED), column(DEGRADED)]);
}

function drawBackend(name) {
  const article = find("#backend").content.cloneNode(true).firstElementChild;
  find("#backends").append(article);
  find("h3", article).textContent = name;
  const field = (which) => seconds.map((second) => second[BACKENDS][name]?.[which] ?? null);
  addChart(find(".multiplier", article), `Multiplier of ${name}`, [
    { label: "multiplier", ink: "allowed", scale: "%", show: percents.format },
    { label: "admitted /s", ink: "forwarded", dash: [2, 3] },
    { label: "turned away /s", ink: "denied", dash: [8, 4] },
  ], () => [times, field(MULTIPLIER), field(ADMITTED), field(TURNED_AWAY)], { "%": SHARE, y: FREE });
  addChart(find(".signals", article), `Signals of ${name}`, [
    { label: "p90 ms", ink: "allowed" },
    { label: "errors", ink: "degraded", dash: [8, 4], scale: "%", show: percents.format },
  ], () => [times, field(LATENCY_MS), field(ERROR_RATE)], { y: FREE, "%": SHARE });
  return article;
}

// What the page shows of a document.

function showGlance(fleet) {
  const last = seconds.at(-1);
  const total = last[ALLOWED] + last[DENIED];
  const keys = fleet.nodes.reduce((sum, node) => sum + (node.keys ?? 0), 0);
  const parts = [
    ["", "Checks /s", count(total), ""],
    ["allowed", "Allowed /s", count(last[ALLOWED]), ratio(last[ALLOWED], total)],
    ["denied", "Denied /s", count(last[DENIED]), ratio(last[DENIED], total)],
    ["forwarded", "Forwarded /s", count(last[FORWARDED]), ratio(last[FORWARDED], total)],
    ["degraded", "Degraded /s", count(last[DEGRADED]), ratio(last[DEGRADED], total)],
    ["", "Keys in memory", whole.format(keys), fleet.standalone ? "" : "with copies"],
  ];
  const list = find("#glance");
  parts.forEach(([kind, name, value, more], index) => {
    if (!list.children[index]) {
      const part = list.appendChild(document.createElement("div"));
      part.append(document.createElement("dt"), document.createElement("dd"));
      find("dd", part).append("", document.createElement("small"));
    }
    const part = list.children[index];
    part.className = kind;
    find("dt", part).textContent = name;
    find("dd", part).firstChild.data = `${value} `;
    find("small", part).textContent = more;
  });
}

const STATES = { ready: "good", starting: "warn", draining: "warn", connecting: "warn" };

function stateOf(node) {
  const state = node.gone ? `${node.state}, gone` : node.state;
  return { text: node.leads ? `${state} · leader` : state, kind: STATES[node.gone ? "gone" : node.state] ?? "bad" };
}

function showNodes(fleet) {
  fillTable(find("#nodes"), fleet.nodes.map((node) => [
    node.id === fleet.node ? `${node.id} (this one)` : node.id, stateOf(node), node.zone ?? "–",
    percents.format(node.share), count(node.allowed), count(node.denied), count(node.forwarded), count(node.degraded),
    node.answers ? whole.format(node.keys) : "", quantiles(node.durations?.local), quantiles(node.durations?.forwarded),
    node.answers ? ms(node.replication_lag_ms) : "", node.answers ? ms(node.stall_ms) : "",
    { text: node.etcd ?? "", kind: node.etcd === "lost" ? "bad" : "" }, node.version ?? "",
  ]));
}

function troublesOf(fleet) {
  const troubles = [];
  const answering = new Set(fleet.nodes.filter((node) => node.answers).map((node) => node.id));
  for (const node of fleet.nodes) {
    if (!node.answers) troubles.push(`${node.id} does not answer (${node.state})` + (node.gone ? ": its replicas decide its keys" : ""));
    else if (node.state === "fenced") troubles.push(`${node.id} is fenced: too few peers answer it, so it decides none of its keys`);
    if (node.etcd === "lost") troubles.push(`${node.id} does not hear etcd: it goes on with the last rules and ring`);
    if (node.waiting_for?.length) troubles.push(`${node.id} waits for ${node.waiting_for.join(", ")} to hand keys over`);
    const cutOff = node.cut_off_from?.filter((peer) => answering.has(peer)) ?? [];
    if (cutOff.length) troubles.push(`${node.id} cannot reach ${cutOff.join(", ")}`);
  }
  for (const problem of fleet.problems) {
    const where = problem.nodes.length === fleet.nodes.length ? "" : ` (on ${problem.nodes.join(", ")})`;
    troubles.push(`Configuration: ${problem.key}: ${problem.error}; the last good value stays${where}`);
  }
  for (const [name, backend] of Object.entries(fleet.backends)) {
    if (backend.fault) troubles.push(`Backend ${name}: ${backend.fault}`);
    if (backend.multiplier < 1) troubles.push(`Backend ${name} is limited to ${percents.format(backend.multiplier)}: ${backend.reason || backend.state}`);
  }
  return troubles;
}

function showTroubles(fleet) {
  const place = find("#troubles");
  const troubles = troublesOf(fleet);
  if (place.dataset.shown === JSON.stringify(troubles)) return; // a live region is read aloud when it changes
  place.dataset.shown = JSON.stringify(troubles);
  place.hidden = !troubles.length;
  place.replaceChildren(...troubles.map((trouble) => {
    const line = document.createElement("p");
    line.textContent = trouble;
    return line;
  }));
}

function showFlows(fleet) {
  fillTable(find("#flows"), fleet.flows.map((flow) => [
    flow.rule, flow.segment, count(flow.allowed), count(flow.denied),
    ratio(flow.denied, flow.allowed + flow.denied + flow.shadow_denied), count(flow.shadow_denied), count(flow.degraded),
  ]));
  const names = [...new Set(fleet.flows.map((flow) => flow.rule))].sort();
  const list = find("#rules");
  if (list.dataset.shown === names.join()) return;
  list.dataset.shown = names.join();
  list.replaceChildren(...names.map((name) => new Option(name, name)));
}

function showHitters(table, hitters) {
  fillTable(table, hitters.map(({ rule, key, per_s }) => [
    { text: key, act: () => lookUp(rule, key) }, rule, count(per_s),
  ]));
}

function showBackends(fleet) {
  find("#no-backends").hidden = Object.keys(fleet.backends).length > 0;
  for (const [name, backend] of Object.entries(fleet.backends)) {
    if (!cards.has(name)) cards.set(name, drawBackend(name));
    const ages = Object.entries(backend.signal_ages_s).map(([source, age]) => `${source} ${count(age)} s ago`);
    const parts = [
      `${percents.format(backend.multiplier)} · ${backend.state}`, backend.reason,
      backend.rate === null ? "" : `at most ${count(backend.rate)}/s`,
      backend.would_be === null ? "" : `would be ${percents.format(backend.would_be)}`,
      ages.length ? `heard by ${ages.join(", ")}` : "no signal yet",
    ];
    const state = find(".state", cards.get(name));
    state.textContent = parts.filter(Boolean).join(" · ");
    state.className = `state ${backend.multiplier < 1 ? "warn" : ""}`;
  }
  for (const [name, article] of cards) {
    if (name in fleet.backends) continue;
    cards.delete(name);
    for (const chart of charts.filter(({ host }) => article.contains(host))) {
      chart.plot.destroy();
      charts.splice(charts.indexOf(chart), 1);
    }
    article.remove();
  }
}

function show(fleet) {
  if (fleet.seconds.length > 1 || !seconds.length) {
    times.length = seconds.length = 0;
  }
  const now = Math.round(Date.now() / 1000);
  fleet.seconds.forEach((second, index) => {
    times.push(Math.max(now - (fleet.seconds.length - 1 - index), (times.at(-1) ?? 0) + 1));
    seconds.push(second);
  });
  const surplus = Math.max(0, times.length - SECONDS_SHOWN);
  times.splice(0, surplus);
  seconds.splice(0, surplus);
  find("#about").textContent = `seen from ${fleet.node}` + (fleet.standalone ? ", standalone" :
    ` · ${fleet.nodes.filter((node) => node.answers).length} of ${fleet.nodes.length} nodes answer · ring ${fleet.ring_revision}`
    + ` · leader ${fleet.leader ?? "none"}`) + ` · ${fleet.rules} rules`;
  if (!seconds.length) return; // a node that has just started
  if (!charts.length) drawChecks();
  showTroubles(fleet);
  showGlance(fleet);
  showNodes(fleet);
  showFlows(fleet);
  showHitters(find("#busiest"), fleet.busiest);
  showHitters(find("#denied"), fleet.denied);
  showBackends(fleet);
  for (const chart of charts) chart.refresh();
}

// The look-up.

async function lookUp(rule, key) {
  const form = find("#look-up form");
  form.rule.value = rule;
  form.key.value = key;
  find("#look-up").scrollIntoView({ block: "nearest" });
  const place = find("#bucket");
  const bucket = `${encodeURIComponent(rule)}/${encodeURIComponent(key)}`;
  try {
    const answers = await Promise.all([fetch(`v1/keys/${bucket}`), fetch(`v1/explain/${bucket}`)]);
    const [told, why] = await Promise.all(answers.map((answer) => answer.json()));
    if (answers[0].ok && answers[1].ok) showBucket(place, told, why);
    else place.textContent = `${told.title ?? why.title}: ${told.detail ?? why.detail}`;
  } catch {
    place.textContent = "This node does not answer.";
  }
}

function showBucket(place, bucket, why) {
  const verdict = document.createElement("p");
  const allowed = bucket.remaining >= 1;
  verdict.className = allowed ? "good" : "bad";
  verdict.textContent = `A check of cost 1 would be ${allowed ? "allowed" : "denied"} by its own limit: `
    + `${whole.format(bucket.remaining)} of ${whole.format(bucket.limit)} left.`;
  const meter = document.createElement("meter");
  meter.max = bucket.limit;
  meter.optimum = 0;
  meter.low = bucket.limit / 2;
  meter.high = bucket.limit * 0.9;
  meter.value = bucket.used;
  meter.setAttribute("aria-label", `${bucket.used} of ${bucket.limit} used`);
  const list = document.createElement("dl");
  for (const [name, value] of Object.entries({ ...why, ...bucket })) {
    const term = document.createElement("dt");
    const told = document.createElement("dd");
    term.textContent = name.replaceAll("_", " ");
    told.textContent = asText(value);
    list.append(term, told);
  }
  place.replaceChildren(verdict, meter, list);
}

function asText(value) {
  if (value === null) return "none";
  if (Array.isArray(value)) return value.map(asText).join("; ");
  if (typeof value === "number") return String(Number(value.toFixed(3)));
  if (typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, part]) => `${name.replaceAll("_", " ")} ${asText(part)}`).join(", ");
}

// The page itself.

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  localStorage.setItem("theme", theme);
  document.documentElement.dataset.theme = theme;
  find("#theme").textContent = `Theme: ${theme}`;
  for (const chart of charts) chart.draw();
}

function setLive(text, kind) {
  const live = find("#live");
  if (live.textContent !== text) live.textContent = text;
  live.className = `pill ${kind}`;
}

function watch() {
  const events = new EventSource("v1/fleet/events");
  events.onmessage = (event) => {
    setLive("live", "good");
    show(JSON.parse(event.data));
  };
  events.onerror = () => {
    setLive("connection lost, retrying", "bad");
    if (events.readyState === EventSource.CLOSED) setTimeout(watch, 2000); // refused: as many watch as can be told
  };
}

find("#theme").addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) chart.draw();
});
find("#look-up form").addEventListener("submit", (event) => {
  event.preventDefault();
  lookUp(event.target.rule.value, event.target.key.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input")) return;
  event.preventDefault();
  const form = find("#look-up form");
  (form.rule.value ? form.key : form.rule).focus();
});
setTheme(localStorage.getItem("theme") ?? "auto");
watch();
