"use strict";
const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const labels = JSON.parse(byId("labels").textContent);
const layers = facts.layers;
const runs = [facts, ...(facts.compared || [])];
const layerOf = runs.map((run) => new Map(run.layers.map((layer) => [layer.name, layer])));
const several = runs.length > 1;

// -- SVG

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const SHAPES = {
  circle: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  square: (r) => `M${-r * 0.9} ${-r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}z`,
  diamond: (r) => `M0 ${-r * 1.25}L${r * 1.25} 0L0 ${r * 1.25}L${-r * 1.25} 0z`,
  triangle: (r) => `M0 ${-r * 1.2}L${r * 1.15} ${r * 0.9}H${-r * 1.15}z`,
};
const NAMES = Object.keys(SHAPES);
const series = (i) => ({ cls: `s${i % 6}`, shape: NAMES[i % NAMES.length] });

// -- plots: each is drawn from its description, again when its width changes

const drawn = new Map();
function plot(id, what) {
  drawn.set(id, what);
  draw(id);
}
function draw(id) {
  const place = byId(id), what = drawn.get(id), caption = place.parentElement.querySelector("figcaption");
  const width = Math.max(place.clientWidth, 200), height = what.nothing ? 84 : innerWidth <= 700 ? 260 : 300;
  const image = svg("svg", { width, height, role: "img", "aria-label": what.text });
  const legend = document.createElement("div");
  legend.className = "legend";
  const title = document.createElement("div");
  title.className = "title";
  title.textContent = what.title || "";
  place.replaceChildren(title, legend, image);
  caption.textContent = what.text;
  if (what.nothing) {
    image.append(svg("text", { class: "annotation", x: width / 2, y: height / 2 }, ...wrapped(what.nothing, width)));
    return;
  }
  const box = { left: 66, right: width - 12, top: 10, bottom: height - 42 };
  const x = axis(what.x, [box.left, box.right]), y = axis(what.y, [box.bottom, box.top]);
  for (const [at, text] of y.ticks) {
    image.append(svg("path", { class: "grid", d: `M${box.left} ${at}H${box.right}` }));
    image.append(svg("text", { class: "tick", x: box.left - 6, y: at + 4, "text-anchor": "end" }, text));
  }
  let free = -Infinity;
  for (const [at, text] of x.ticks) {
    image.append(svg("path", { class: "grid", d: `M${at} ${box.top}V${box.bottom}` }));
    if (at - 3.5 * text.length < free) continue; // no number on another
    image.append(svg("text", { class: "tick", x: at, y: box.bottom + 16, "text-anchor": "middle" }, text));
    free = at + 3.5 * text.length + 6;
  }
  image.append(svg("path", { class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
  image.append(svg("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, what.x.label));
  const middle = (box.top + box.bottom) / 2;
  image.append(svg("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, what.y.label));
  const path = (points) => "M" + points.map(([a, b]) => `${x.at(a).toFixed(1)} ${y.at(b).toFixed(1)}`).join("L");
  for (const band of what.bands || []) {
    const points = [...band.low, ...[...band.high].reverse()];
    image.append(svg("path", { class: `band ${band.cls}`, d: `${path(points)}z` }));
  }
  for (const { cls, bars } of what.bars || []) {
    for (const [from, to, value, tip] of bars) {
      const left = x.at(from), right = x.at(to), top = Math.min(y.at(value), box.bottom);
      image.append(svg("rect", { class: `mark ${cls}`, x: left, y: top, width: Math.max(right - left, 0.6), height: box.bottom - top, "data-tip": tip }));
    }
  }
  for (const line of what.lines || []) {
    if (line.points.length) image.append(svg("path", { class: `line ${line.cls}`, d: path(line.points), "stroke-dasharray": line.dash }));
  }
  for (const at of what.rules || []) image.append(svg("path", { class: "rule", d: `M${x.at(at)} ${box.top}V${box.bottom}` }));
  const hits = [];
  for (const { cls, shape, open, points } of what.marks || []) {
    for (const [a, b, tip] of points) {
      const transform = `translate(${x.at(a).toFixed(1)} ${y.at(b).toFixed(1)})`;
      image.append(svg("path", { class: `${open ? "open" : "mark"} ${cls}`, d: SHAPES[shape](open ? 5 : 4), transform }));
      if (tip) hits.push(svg("path", { class: "hit", d: SHAPES.circle(9), transform, "data-tip": tip }));
    }
  }
  image.append(...hits);
  for (const { name, cls, shape, open, band, line } of what.legend || []) {
    const key = svg("svg", { width: 22, height: 12, "aria-hidden": "true" });
    if (band) key.append(svg("rect", { class: `band ${cls}`, x: 0, y: 1, width: 22, height: 10 }));
    if (line) key.append(svg("path", { class: `line ${cls}`, d: "M0 6H22", "stroke-dasharray": line === true ? undefined : line }));
    if (shape) key.append(svg("path", { class: `${open ? "open" : "mark"} ${cls}`, d: SHAPES[shape](4), transform: "translate(11 6)" }));
    const entry = document.createElement("span");
    entry.append(key, name);
    legend.append(entry);
  }
}
function wrapped(text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1).length + word.length > width / 7) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines.map((line, i) => svg("tspan", { x: width / 2, dy: i ? "1.3em" : 0 }, line));
}
function axis({ range, log, ticks, format = short }, [from, to]) {
  const of = log ? Math.log : (v) => v;
  const [low, high] = range.map(of);
  const at = (v) => from + (to - from) * (high > low ? (of(v) - low) / (high - low) : 0.5);
  const shown = (ticks || (log ? decades(...range) : steps(...range))).filter((v) => of(v) >= low - 1e-9 && of(v) <= high + 1e-9);
  return { at, ticks: shown.map((v) => [at(v), format(v)]) };
}
function steps(low, high) {
  const raw = (high - low) / 6 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power, found = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-9) + 1e-12; k++) found.push(k * step);
  return found;
}
function decades(low, high) { // 1, 2 and 5 of each where there are few
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high)), found = [];
  for (let k = from; k <= to; k++) for (const m of to - from > 3 ? [1] : [1, 2, 5]) found.push(m * 10 ** k);
  return found;
}
function short(v) {
  const size = Math.abs(v);
  if (size >= 1e6) return `${+(v / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(v / 1e3).toPrecision(3)}k`;
  return v !== 0 && size < 1e-4 ? v.toExponential(0) : String(+v.toPrecision(4));
}
let widths = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth === widths) return;
  widths = document.body.clientWidth;
  for (const id of drawn.keys()) draw(id);
}).observe(document.body);

// what is under the pointer, in words
const tip = byId("tip");
function point(event) {
  const marked = event.target.closest && event.target.closest("[data-tip]");
  tip.hidden = !marked;
  if (!marked) return;
  tip.textContent = marked.dataset.tip;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 6))}px`;
  tip.style.top = `${event.clientY > innerHeight / 2 ? event.clientY - tip.offsetHeight - 12 : event.clientY + 16}px`;
}
for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, point);
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });

// -- the overview

const NUMBERS = { label: "layer number (input to output)", range: [0.4, layers.length + 0.6], ticks: everyFew(layers.length) };
function everyFew(count) {
  const step = Math.max(1, Math.ceil(count / 12));
  return Array.from({ length: Math.ceil(count / step) }, (_, i) => 1 + i * step);
}
/** [[number, layer]] of a run's layers where a figure is known; the numbers are the first run's. */
const known = (run, key) => layers.map((l) => [l.number, layerOf[run].get(l.name)]).filter(([, l]) => l && l[key] !== null);
function extremes(found, key, unit, digits) {
  const sorted = [...found].sort((a, b) => a[1][key] - b[1][key]), [low, high] = [sorted[0][1], sorted.at(-1)[1]];
  return `${low[key].toFixed(digits)} ${unit} at ${low.name} to ${high[key].toFixed(digits)} ${unit} at ${high.name}`;
}
function overview() {
  const noise = runs.map((_, i) => known(i, "sqnr_db").filter(([, l]) => l.bits));
  if (noise.some((found) => found.length)) {
    const values = noise.flat().map(([, l]) => l.sqnr_db), lines = [], marks = [], legend = [];
    const say = ([n, l], i) => [n, l.sqnr_db, `${l.name}\n${l.sqnr_db.toFixed(1)} dB, cosine ${l.cosine === null ? "?" : l.cosine.toFixed(5)}\n${l.bits} bits${several ? `, ${labels[i]}` : ""}`];
    noise.forEach((found, i) => {
      if (!found.length) return;
      lines.push({ cls: several ? series(i).cls : "sg", dash: i ? "6 3" : undefined, points: found.map(([n, l]) => [n, l.sqnr_db]) });
      const bits = [...new Set(found.map(([, l]) => l.bits))].sort((a, b) => a - b);
      for (const [k, each] of (several ? [null] : bits).entries()) {
        const style = several ? series(i) : series(each === 7 ? 0 : k + 1);
        marks.push({ ...style, points: found.filter(([, l]) => several || l.bits === each).map((one) => say(one, i)) });
        if (several || bits.length > 1) legend.push({ ...style, line: several ? (i ? "6 3" : true) : undefined, name: several ? labels[i] : `${each} bits` });
      }
    });
    const low = Math.min(...values), high = Math.max(...values), space = Math.max(1, 0.06 * (high - low));
    const words = noise.map((found, i) => (found.length ? `${several ? `${labels[i]}: ` : ""}${extremes(found, "sqnr_db", "dB", 1)}` : "")).filter(Boolean);
    plot("depth", { x: NUMBERS, y: { label: "SQNR, dB", range: [low - space, high + space] }, lines, marks, legend, text: `From ${words.join("; ")}.` });
  } else plot("depth", { nothing: "no figures in the table: report --calibration DATA measures them", text: "No figures." });
  if (!byId("times")) return;
  const kinds = [["ms_fp32", 0, "TVM float32", "sg"], ...runs.map((_, i) => ["ms", i, several ? labels[i] : "this network", series(i).cls])]
    .map(([key, i, name, cls]) => ({ key, i, name, cls, found: known(i, key) })).filter(({ found }) => found.length);
  const wide = 0.84 / kinds.length, values = kinds.flatMap(({ key, found }) => found.map(([, l]) => l[key]));
  const bars = kinds.map(({ key, name, cls, found }, j) => ({
    cls, bars: found.map(([n, l]) => [n - 0.42 + j * wide, n - 0.42 + (j + 1) * wide, l[key], `${l.name}\n${name} ${l[key].toFixed(4)} ms`]),
  }));
  const words = kinds.map(({ key, name, found }) => `${name}: ${extremes(found, key, "ms", 4)}`);
  plot("times", { x: NUMBERS, y: { label: "ms", range: [0, 1.05 * Math.max(...values, 1e-9)] }, bars, legend: kinds.map(({ name, cls }) => ({ name, cls, shape: "square" })), text: `${words.join("; ")}.` });
}

// -- one layer

const squared = facts.objective !== "cosine"; // or hessian, which weighs it
const score = (s) => (squared ? -s : s);
const MEASURE = squared ? "relative squared error" : "cosine";
function curve(id, title, c) {
  if (!c) {
    const why = facts.objective === null ? "not recorded: quantize --record FILE, report --record FILE" : "not in the record: not searched, or found by a search without --record that was resumed";
    return plot(id, { title, nothing: why, text: `${title}: none.` });
  }
  const points = (list) => c.range.map((r, i) => [r, score(list[i])]), start = c.range.indexOf(1);
  const chosen = (Array.isArray(c.chosen) ? [...c.chosen] : [c.chosen]).sort((a, b) => a - b), at = chosen[chosen.length >> 1];
  const near = c.range.reduce((b, r, i) => (Math.abs(r - at) < Math.abs(c.range[b] - at) ? i : b), 0);
  const every = [...c.score, ...(c.low || []), ...(c.high || [])].map(score).filter((v) => !squared || v > 0);
  const low = Math.min(...every), high = Math.max(...every), space = squared ? 1.1 : 0.05 * (high - low || 1e-6);
  const bands = c.low ? [{ cls: "s0", low: points(c.low), high: points(c.high) }] : [];
  const marks = [{ cls: "s1", shape: "diamond", points: [[at, score(c.score[near]), `chosen: ${at.toFixed(3)}\n${score(c.score[near]).toPrecision(4)}`]] }];
  if (start >= 0) marks.unshift({ cls: "sg", shape: "circle", open: true, points: [[1, score(c.score[start]), `start\n${score(c.score[start]).toPrecision(4)}`]] });
  plot(id, {
    title, bands, marks, lines: [{ cls: "s0", points: points(c.score) }],
    x: { label: "range of the scale / range at the start", log: true, ticks: [0.5, 0.6, 0.7, 0.8, 1, 1.25, 1.5, 2], range: [Math.min(...c.range, at), Math.max(...c.range, at)] },
    y: { label: MEASURE, log: squared, range: squared ? [low / space, high * space] : [low - space, high + space] },
    legend: [...(c.low ? [{ name: "10\u201390 %", cls: "s0", band: true }] : []), { name: c.low ? "mean" : "score", cls: "s0", line: true },
      ...(start >= 0 ? [{ name: "start", cls: "sg", shape: "circle", open: true }] : []), { name: "chosen", cls: "s1", shape: "diamond" }],
    text: `${title}. Chosen: ${at.toFixed(3)} of the range at the start, ${MEASURE} ${score(c.score[near]).toPrecision(4)}${start >= 0 ? `; at the start ${score(c.score[start]).toPrecision(4)}` : ""}.`,
  });
}
function histogram(id, title, h, label) {
  if (!h) return plot(id, { title, nothing: "no samples: report --calibration DATA", text: `${title}: none.` });
  const low = Math.min(h.edges[0], h.clip[0]), high = Math.max(h.edges.at(-1), h.clip[1]), space = 0.03 * (high - low), share = (100 * h.clipped).toFixed(3);
  const bars = h.counts.map((n, i) => [h.edges[i], h.edges[i + 1], n, `${h.edges[i].toPrecision(3)} to ${h.edges[i + 1].toPrecision(3)}: ${n}`]).filter(([, , n]) => n);
  plot(id, {
    title: `${title}: ${share} % clipped`, bars: [{ cls: "s0", bars }], rules: h.clip,
    x: { label, range: [low - space, high + space] }, y: { label: "count", log: true, range: [0.8, 1.3 * Math.max(...h.counts, 1)] },
    text: `${title}, drawn from ${h.edges[0].toPrecision(3)} to ${h.edges.at(-1).toPrecision(3)}; the scale holds ${h.clip[0].toPrecision(3)} to ${h.clip[1].toPrecision(3)} (dashed), ${share} % lie outside.`,
  });
}
function show(index) {
  const l = layers[index];
  byId("choice").value = String(index);
  byId("torow").href = address("row", l.name);
  for (const row of body.rows) row.classList.toggle("chosen", row.dataset.layer === String(index));
  for (const node of byId("graph").querySelectorAll("[data-name]")) node.classList.toggle("chosen", node.dataset.name === l.name);
  const words = [["kernel", l.kernel]];
  if (l.why) words.push(["why", l.why]);
  if (l.proof) words.push(["proof", l.proof]);
  for (const [name, why] of Object.entries(l.refused)) words.push([`not ${name}`, why]);
  if (l.saturation) words.push(["saturation", l.saturation.text]);
  runs.forEach((_, i) => {
    const each = layerOf[i].get(l.name), mine = several ? `error, ${labels[i]}` : "error";
    if (each && each.sqnr_db !== null) words.push([mine, `SQNR ${each.sqnr_db.toFixed(1)} dB${each.cosine === null ? "" : `, cosine ${each.cosine.toFixed(5)}`}${several ? `, ${each.bits || "no"} bits` : ""}`]);
  });
  words.push(["work", `${l.macs.toLocaleString("en")} multiply-accumulates, ${l.macs_percent.toFixed(1)} %`]);
  byId("words").replaceChildren(...words.flatMap(([k, v]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = k; dd.textContent = v;
    return [dt, dd];
  }));
  curve("weight_curve", "Search of the weight scales: mean, median and spread of the channels", l.curves.weights);
  curve("activation_curve", "Search of the input's scale", l.curves.activations);
  histogram("weights", "Weights", l.histograms.weights, "weight / largest its channel's scale holds");
  histogram("activations", "Input", l.histograms.activations, "value");
}

// -- addresses: #layer=NAME is a layer below, #row=NAME its row of the table

const address = (kind, name) => `#${kind}=${encodeURIComponent(name)}`;
function follow() {
  const found = /^#(layer|row)=(.*)$/.exec(location.hash);
  let name = null;
  try { name = found && decodeURIComponent(found[2]); } catch { /* no name of ours */ }
  const index = layers.findIndex((l) => l.name === name);
  show(index >= 0 ? index : layers.indexOf(worst));
  if (index < 0) return;
  if (found[1] === "layer") return byId("detail").scrollIntoView({ behavior: "instant", block: "start" });
  const row = body.querySelector(`tr[data-layer="${index}"]`);
  if (row.hidden) {
    byId("search").value = ""; byId("filter").value = "all";
    sift();
  }
  row.scrollIntoView({ behavior: "instant", block: "center" });
  row.querySelector("a").focus({ preventScroll: true });
}
addEventListener("hashchange", follow);
byId("choice").addEventListener("change", (event) => { location.hash = address("layer", layers[Number(event.target.value)].name); });

// -- the table

const table = byId("layers"), body = table.tBodies[0];
table.tHead.addEventListener("click", (event) => {
  const th = event.target.closest("th");
  if (!th) return;
  const column = th.cellIndex, up = th.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.v;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is unknown comes last
    const order = x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y, "en", { numeric: true });
    return up ? order : -order;
  });
  body.append(...rows);
});
const KINDS = {
  all: () => true, integer: (l) => l.bits !== null, float: (l) => l.bits === null,
  error: (l) => l.sqnr_db !== null && l.sqnr_db < 20, slower: (l) => l.bits !== null && l.ms !== null && l.ms_fp32 !== null && l.ms > l.ms_fp32,
  unsafe: (l) => Boolean(l.saturation) && !l.saturation.safe,
};
function sift() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean), kind = byId("filter").value;
  const fits = KINDS[kind] || ((l) => `bits${l.bits}` === kind);
  let count = 0;
  for (const row of body.rows) {
    const l = layers[Number(row.dataset.layer)], text = `${l.name} ${l.op} ${l.kernel} ${l.why}`.toLowerCase();
    row.hidden = !(fits(l) && words.every((word) => text.includes(word)));
    count += !row.hidden;
  }
  byId("shown").textContent = `${count} of ${layers.length} layers`;
}
byId("search").addEventListener("input", sift);
byId("filter").addEventListener("change", sift);

// -- files to keep

function save(name, type, text) {
  const link = document.createElement("a"), url = URL.createObjectURL(new Blob([text], { type }));
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
const stem = facts.model.replace(/[^\w.-]+/g, "_") || "report";
const COLUMNS = ["number", "name", "op", "weight", "output", "groups", "macs", "macs_percent", "bits", "kernel", "why", "proof", "cosine", "sqnr_db", "ms", "ms_fp32", "weight_scale"];
function cell(value) {
  if (value === null || value === undefined) return "";
  let text = Array.isArray(value) ? value.join("x") : String(value);
  if (typeof value === "string" && /^[=+@-]/.test(text)) text = `'${text}`; // a name is no formula of a spreadsheet
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
function csv() {
  const rows = runs.flatMap((run, i) => run.layers.map((l) => [...(several ? [labels[i]] : []), ...COLUMNS.map((key) => l[key])]));
  return [[...(several ? ["table"] : []), ...COLUMNS], ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
byId("save_csv").addEventListener("click", () => save(`${stem}.csv`, "text/csv", csv()));
byId("save_json").addEventListener("click", () => save(`${stem}.json`, "application/json", JSON.stringify(facts)));

// -- the graph

const worse = (limits) => (value) => limits.filter((limit) => value < limit).length;
const more = (limits) => (value) => limits.filter((limit) => value >= limit).length;
const COLOURS = {
  error: {
    of: (l) => l.sqnr_db, text: (v) => `${v.toFixed(1)} dB`, bin: worse([40, 30, 20, 10]),
    bins: ["40 dB and more", "30 to 40 dB", "20 to 30 dB", "10 to 20 dB", "below 10 dB"], fill: (i) => `var(--warm${i + 1})`,
  },
  bits: {
    of: (l) => l.bits || 32, text: (v) => (v === 32 ? "float" : `${v} bits`), bin: (v) => (v === 32 ? 0 : v >= 8 ? 1 : 2),
    bins: ["float", "8 bits", "7 bits"], fill: (i) => `var(--${["float", "eight", "seven"][i]})`,
  },
  time: {
    of: (l) => l.ms, text: (v) => `${v.toFixed(4)} ms`, bin: (v, total) => more([0.01, 0.03, 0.1, 0.2])(v / total),
    bins: ["below 1 % of the layers' time", "1 to 3 %", "3 to 10 %", "10 to 20 %", "20 % and more"], fill: (i) => `var(--cool${i + 1})`,
  },
};
const picture = facts.graph, WIDE = 176, HIGH = 38;
let zoom = 1;
const boxes = new Map();
function network() {
  const place = byId("graph"), count = picture.nodes.length;
  const image = svg("svg", { viewBox: `0 0 ${picture.width} ${picture.height}`, role: "group" });
  image.setAttribute("aria-label", `${count} nodes, of which ${layers.length} are layers: each is a link to its row, from the input down`);
  for (const line of picture.edges) {
    let d = `M${line[0][0]} ${line[0][1]}`;
    for (let i = 1; i < line.length; i++) {
      const [x0, y0] = line[i - 1], [x1, y1] = line[i], m = (y0 + y1) / 2;
      d += x0 === x1 ? `V${y1}` : `C${x0} ${m} ${x1} ${m} ${x1} ${y1}`;
    }
    image.append(svg("path", { class: "edge", d }));
  }
  for (const node of picture.nodes) {
    const g = svg(node.layer ? "a" : "g", { transform: `translate(${node.x} ${node.y})`, "data-name": node.name, class: node.integer || node.ops[0] === "input" ? undefined : "float" });
    if (node.layer) g.setAttribute("href", address("row", node.name));
    const second = svg("text", { class: "small", y: 13 });
    g.append(svg("rect", { x: -WIDE / 2, y: -HIGH / 2, width: WIDE, height: HIGH, rx: 5 }), svg("text", { y: -3 }, cut(node.name, 25)), second);
    image.append(g);
    boxes.set(node, { g, second });
  }
  place.replaceChildren(image);
  paint();
  fit();
}
const cut = (text, length) => (text.length <= length ? text : `${text.slice(0, 7)}\u2026${text.slice(text.length - length + 8)}`);
function paint() {
  const kind = COLOURS[byId("colour").value], run = Number((byId("coloured") || { value: 0 }).value);
  const total = runs[run].layers.reduce((sum, l) => sum + (l.ms || 0), 0), used = new Set();
  for (const [node, { g, second }] of boxes) {
    const l = layerOf[run].get(node.name), value = l ? kind.of(l) : null, ops = node.ops.join(" + ");
    const fill = node.layer && value !== null ? kind.bin(value, total) : null;
    g.firstChild.style.setProperty("--fill", fill === null ? "var(--card)" : kind.fill(fill));
    if (fill !== null) used.add(fill);
    const words = fill === null ? ops : `${ops}, ${kind.text(value)}`;
    second.textContent = cut(words, 29);
    g.dataset.tip = `${node.name}\n${words}${l && l.kernel ? `\n${l.kernel}` : ""}`;
    if (node.layer) g.setAttribute("aria-label", `${node.name}: ${words}`);
  }
  const legend = kind.bins.map((name, i) => {
    const entry = document.createElement("span"), box = document.createElement("i");
    box.style.background = kind.fill(i);
    entry.append(box, name);
    return entry;
  });
  byId("legend").replaceChildren(...legend);
  if (!used.size) byId("legend").textContent = "not known of any layer: the report was made without it";
}
function resize(to) {
  const place = byId("graph"), image = place.firstChild, middle = [(place.scrollLeft + place.clientWidth / 2) / zoom, (place.scrollTop + place.clientHeight / 2) / zoom];
  zoom = Math.min(3, Math.max(0.15, to));
  image.setAttribute("width", picture.width * zoom);
  image.setAttribute("height", picture.height * zoom);
  place.scrollTo(middle[0] * zoom - place.clientWidth / 2, middle[1] * zoom - place.clientHeight / 2);
}
function fit() { // to the width, as far as the names can be read
  resize(Math.min(1, Math.max(0.75, (byId("graph").clientWidth - 4) / picture.width)));
  const first = picture.nodes[0];
  if (first) byId("graph").scrollTo(first.x * zoom - byId("graph").clientWidth / 2, 0);
}
byId("larger").addEventListener("click", () => resize(zoom * 1.3));
byId("smaller").addEventListener("click", () => resize(zoom / 1.3));
byId("fit").addEventListener("click", fit);
byId("graph").addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return; // without it the page or the graph scrolls
  event.preventDefault();
  resize(zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
}, { passive: false });
byId("colour").addEventListener("change", paint);
if (byId("coloured")) byId("coloured").addEventListener("change", paint);

const errors = layers.filter((l) => l.bits && l.sqnr_db !== null);
const worst = errors.length ? errors.reduce((a, b) => (b.sqnr_db < a.sqnr_db ? b : a)) : layers[0];
overview();
network();
sift();
follow();
document.body.dataset.ready = "yes";
