// The board, the pictures and the cells of the report. Whatever comes from the tables is text: see `html`.
const started = performance.now();
const $ = window.jQuery;
const byId = (id) => document.getElementById(id);

// ---- Text and markup

class Markup {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
}
const escaped = (value) => String(value).replace(/[&<>"'`]/g, (sign) => `&#${sign.charCodeAt(0)};`);
const asMarkup = (value) =>
  value instanceof Markup ? value.text : Array.isArray(value) ? value.map(asMarkup).join("") : value == null || value === false ? "" : escaped(value);
/** Markup with all that is put into it escaped, but for other markup. */
const html = (parts, ...values) => new Markup(parts.reduce((text, part, number) => text + asMarkup(values[number - 1]) + part));
const icon = (state) => html`<span class="icon ${state}" aria-hidden="true"></span>`;
const words = (name) => ({ failure: "failing", not_run: "no result" })[name] ?? name.replaceAll("_", " ");

// ---- Data

async function read() {
  const bytes = Uint8Array.from(atob(byId("data").textContent), (sign) => sign.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
const NUMBERS = { inf: Infinity, "-inf": -Infinity, nan: NaN };
const isNumber = (column) => column.type === "double" || column.type === "int64";
const number = (value) => (typeof value === "string" ? NUMBERS[value] : value);

const data = await read();
const columns = Object.fromEntries(data.columns.map((column) => [column.name, column]));
const cells = Object.fromEntries(data.columns.map((column) => {
  const packed = data.cells[column.name];
  const values = packed.codes ? packed.codes.map((code) => (code === null ? null : packed.words[code])) : packed;
  return [column.name, isNumber(column) ? values.map(number) : values];
}));
const count = cells.model.length;
const all = [...Array(count).keys()];
const value = (name, cell) => (name in cells ? cells[name][cell] : null);
const idOf = (cell) => ["device", "build", "mode", "model"].map((name) => encodeURIComponent(cells[name][cell])).join("/");
const cellOf = new Map(all.map((cell) => [idOf(cell), cell]));
const findingsOf = new Map();
for (const finding of data.findings) {
  if (finding.cell === null) continue;
  findingsOf.set(finding.cell, [...(findingsOf.get(finding.cell) ?? []), finding]);
}
const unique = (name) => [...new Set(cells[name])].filter((each) => each !== null);
const builds = unique("build"), modes = unique("mode"), namesBuilds = builds.some((build) => build !== "default");
const SEVERITY = Object.fromEntries(Object.keys(data.meanings.states).map((state, rank) => [state, rank]));

// ---- Figures as text

const FIXED = { speedup: 2, speedup_ci_low: 2, speedup_ci_high: 2, compression_ratio: 2, machine_drift: 3, eager_drift: 3, compiled_drift: 3, noise_floor: 3, top1_agreement: 3 };
function figure(name, found) {
  if (found === null || found === undefined) return "";
  if (typeof found === "boolean") return found ? "yes" : "no";
  if (Array.isArray(found)) return found.join(name === "input_size" || name === "shape" ? " × " : ", ");
  if (typeof found !== "number") return String(found);
  if (!Number.isFinite(found)) return Number.isNaN(found) ? "NaN" : found > 0 ? "∞" : "−∞";
  if (name.endsWith("_bytes")) return found < 1e6 ? `${(found / 1e3).toFixed(1)} kB` : found < 1e9 ? `${(found / 1e6).toFixed(1)} MB` : `${(found / 1e9).toFixed(2)} GB`;
  if (name in FIXED) return found.toFixed(FIXED[name]);
  if (Number.isInteger(found)) return found.toLocaleString("en");
  if (found !== 0 && (Math.abs(found) < 1e-3 || Math.abs(found) >= 1e5)) return found.toExponential(2);
  return found.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(found) || 1))));
}
const definition = (name) => {
  const column = columns[name];
  return column ? `${name}: ${column.description}${column.unit ? ` (${column.unit})` : ""}` : data.meanings.columns[name] ? `${name}: ${data.meanings.columns[name]}` : name;
};
const status = (word) => {
  if (word === null) return "";
  const state = word === "pass" ? "pass" : word === "pass_due_to_skip" || word === "not_applicable" ? "skipped" : word === "not_run" ? "not_run" : "failure";
  return html`<span class="status ${state}" title="${data.meanings.statuses[word] ?? ""}">${icon(state)}${word}</span>`;
};

// ---- The list: a row a cell. Its search is the filter of everything.

const FIRST = ["state", "model", "mode", ...(namesBuilds ? ["build"] : []), "accuracy_by_rule" in columns ? "accuracy_by_rule" : "accuracy", "strict", "margin", "strict_margin", "performance", "speedup", "verdict",
  "eager_ms", "compiled_ms", "compile_cold_s", "compile_warm_s", "compression_ratio", "graph_breaks", "kinds"];
const UNLISTED = ["command", "log"];
const listed = [...FIRST, ...data.columns.map((column) => column.name).filter((name) => !FIRST.includes(name) && !UNLISTED.includes(name))].filter((name) => name in columns);

function shownInList(name, cell) {
  const found = value(name, cell);
  if (name === "state") return html`<span class="status ${found}" title="${data.meanings.states[found]}">${icon(found)}<span class="quiet">${words(found)}</span></span>`;
  if (name === "model") return html`<a href="#cell=${idOf(cell)}"><bdi>${found}</bdi></a>`;
  if (["accuracy", "accuracy_by_rule", "performance"].includes(name)) return status(found);
  if (name === "kinds") return words(found ?? "");
  if (name === "speedup" && found !== null && value("speedup_ci_low", cell) !== null)
    return html`<span class="quiet">${figure(name, value("speedup_ci_low", cell))}–${figure(name, value("speedup_ci_high", cell))}</span>&ensp;${figure(name, found)}`;
  if (name.endsWith("margin") && found > 1) return html`<span class="beyond">${figure(name, found)}</span>`;
  return html`<bdi>${figure(name, found)}</bdi>`;
}

function orthogonal(name) {
  return (cell, type) => {
    if (type === "display") return asMarkup(shownInList(name, cell));
    const found = value(name, cell);
    if (name === "state" && type === "sort") return SEVERITY[found];
    if (found === null) return isNumber(columns[name]) ? (type === "sort" ? -Infinity : "") : "";
    return isNumber(columns[name]) && type !== "sort" && !Number.isFinite(found) ? "" : typeof found === "boolean" ? figure(name, found) : found;
  };
}

const PAGE = 100;
byId("list").innerHTML = asMarkup(html`<table><thead><tr>${listed.map((name) => html`<th data-tip="${definition(name)}">${words(name)}</th>`)}</tr></thead></table>`);
const list = $("#list table").DataTable({
  data: all.map((cell) => cell),
  columns: listed.map((name) => ({
    data: null,
    name,
    render: (_, type, cell) => orthogonal(name)(cell, type),
    type: isNumber(columns[name]) ? "num" : "string",
    className: name === "model" ? "name" : isNumber(columns[name]) ? "dt-right" : "",
    visible: FIRST.includes(name),
  })),
  columnControl: ["searchDropdown"],
  order: [],
  autoWidth: false,
  pageLength: PAGE,
  layout: { topStart: null, topEnd: null, bottomStart: "info", bottomEnd: count > PAGE ? "paging" : null },
  language: { info: "_START_–_END_ of _TOTAL_ cells", infoEmpty: "", infoFiltered: "", emptyTable: "There are no cells.", zeroRecords: "No cell is like that." },
});
const filter = { states: new Set(), mode: "", build: "", kind: "", others: false };
list.search.fixed("tools", (_, cell) =>
  (filter.states.size === 0 || filter.states.has(value("state", cell))) &&
  (!filter.mode || value("mode", cell) === filter.mode) &&
  (!filter.build || value("build", cell) === filter.build) &&
  (!filter.kind || (findingsOf.get(cell) ?? []).some((finding) => finding.kind === filter.kind)) &&
  (filter.others || value("requested", cell) !== false));
const selection = () => list.rows({ search: "applied", order: "applied" }).data().toArray();

// ---- The matrix: a row a model, a column a mode and build

const METRICS = ["speedup", "margin", "strict_margin", "compile_cold_s", "compile_warm_s", "compiled_ms", "compression_ratio", "graph_breaks", "machine_drift"].filter((name) => name in columns);
let metric = METRICS.includes("speedup") && cells.speedup.some((each) => each !== null) ? "speedup" : (METRICS.find((name) => cells[name].some((each) => each !== null)) ?? null);
const ways = builds.flatMap((build) => modes.map((mode) => ({ build, mode }))).filter((way) => all.some((cell) => cells.build[cell] === way.build && cells.mode[cell] === way.mode));
const wayOf = new Map(ways.map((way, place) => [`${way.build}/${way.mode}`, place]));
const rowOf = new Map();
for (const cell of all) {
  const model = cells.model[cell];
  if (!rowOf.has(model)) rowOf.set(model, { model, cells: ways.map(() => null) });
  rowOf.get(model).cells[wayOf.get(`${cells.build[cell]}/${cells.mode[cell]}`)] = cell;
}
let selected = new Set(all);

/** How strong the colour of a figure is, from -1 (bad) to 1 (good). */
function heat(name, found) {
  if (found === null || !Number.isFinite(found)) return 0;
  const clipped = (strength) => Math.max(-1, Math.min(1, strength));
  if (name === "speedup" || name === "compression_ratio") return clipped(Math.log2(found));
  if (name.endsWith("margin")) return -clipped(found) * 0.9;
  if (name === "graph_breaks") return -clipped(found / 5);
  if (name === "machine_drift") return -clipped(Math.abs(Math.log2(found)) * 4);
  const known = (ranges[name] ??= cells[name].filter((each) => each !== null && each > 0).sort((a, b) => a - b));
  const [low, high] = [known[Math.floor(known.length * 0.05)], known[Math.floor(known.length * 0.95)]];
  return high > low ? -clipped(Math.log(found / low) / Math.log(high / low)) * 0.7 : 0;
}
const ranges = {};

function tile(cell) {
  if (cell === null) return "";
  const state = value("state", cell), found = value(metric, cell);
  const kind = (value("kinds", cell) ?? state).split(", ")[0];
  const text = state === "failure" || state === "not_run" || (state === "skipped" && found === null) ? words(kind) : figure(metric ?? "", found);
  const strength = state === "failure" ? 0 : heat(metric, found);
  const tint = strength < 0 ? "--slower" : "--faster";
  const label = `${cells.model[cell]}, ${cells.mode[cell]}: ${words(state)}${value("kinds", cell) ? `, ${words(value("kinds", cell))}` : ""}`;
  return asMarkup(html`<a class="tile ${state}${selected.has(cell) ? "" : " aside"}" href="#cell=${idOf(cell)}" aria-label="${`${label}${found === null ? "" : `, ${words(metric)} ${figure(metric, found)}`}`}" style="--tint:var(${tint});--heat:${Math.round(Math.abs(strength) * 42)}%">${state === "pass" ? "" : icon(state)}<span>${text}</span></a>`);
}

byId("matrix").append(document.createElement("table"));
byId("matrix").firstChild.style.minWidth = `${(innerWidth < 640 ? 150 : 230) + 96 * ways.length}px`;
const matrix = $("#matrix table").DataTable({
  data: [...rowOf.values()],
  columns: [
    { data: "model", title: "model", render: { display: (model) => asMarkup(html`<bdi title="${model}">${model}</bdi>`) } },
    ...ways.map((way, place) => ({
      data: null,
      title: asMarkup(html`<bdi>${way.mode}</bdi>${namesBuilds ? html`<br><bdi class="quiet">${way.build}</bdi>` : ""}`),
      type: "num",
      orderSequence: ["asc", "desc"],
      render: (_, type, row) => {
        const cell = row.cells[place];
        if (type === "display") return tile(cell);
        if (cell === null) return Infinity;
        if (value("state", cell) === "failure") return -Infinity;
        const found = value(metric, cell);
        return found === null || Number.isNaN(found) ? 1e300 : found;
      },
    })),
  ],
  order: [],
  autoWidth: false,
  pageLength: PAGE,
  layout: { topStart: null, topEnd: null, bottomStart: rowOf.size > PAGE ? "info" : null, bottomEnd: rowOf.size > PAGE ? "paging" : null },
  language: { info: "_START_–_END_ of _TOTAL_ models", infoEmpty: "", infoFiltered: "", zeroRecords: "No cell is like that." },
});
matrix.search.fixed("selected", (_, row) => row.cells.some((cell) => cell !== null && selected.has(cell)));

function show() {
  const shown = selection();
  selected = new Set(shown);
  matrix.rows().invalidate("data").draw();
  byId("selected").textContent = `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")} cells`;
  for (const figure of data.figures) pending.add(figure.name);
  drawVisible();
}

// ---- Tools

function chips() {
  const counts = {};
  for (const cell of all) if (filter.others || value("requested", cell) !== false) counts[value("state", cell)] = (counts[value("state", cell)] ?? 0) + 1;
  byId("states").innerHTML = asMarkup(Object.keys(SEVERITY).filter((state) => counts[state]).map((state) =>
    html`<button type="button" data-state="${state}" aria-pressed="${filter.states.has(state)}" data-tip="${data.meanings.states[state]}">${icon(state)}${counts[state].toLocaleString("en")} ${words(state)}</button>`));
}
const options = (names, text = (name) => name) => names.map((name) => html`<option value="${name}">${text(name)}</option>`);
byId("selects").innerHTML = asMarkup([
  modes.length > 1 && html`<select id="mode" aria-label="Mode"><option value="">all modes</option>${options(modes)}</select> `,
  builds.length > 1 && html`<select id="build" aria-label="Build"><option value="">all builds</option>${options(builds)}</select> `,
  html`<select id="kind" aria-label="Kind"><option value="">all kinds</option>${options([...new Set(data.findings.filter((each) => each.cell !== null).map((each) => each.kind))], words)}</select> `,
  cells.requested.includes(false) && html`<label data-tip="Cells that this folder has results of, and that the last command did not ask for"><input type="checkbox" id="others"> not requested</label>`,
]);
byId("shown").innerHTML = asMarkup(options(METRICS, words));
if (metric) byId("shown").value = metric;
else byId("shown-label").hidden = true;
byId("columns").lastElementChild.innerHTML = asMarkup(listed.map((name) =>
  html`<label data-tip="${definition(name)}"><input type="checkbox" data-column="${name}" ${FIRST.includes(name) ? new Markup("checked") : ""}>${name}</label>`));

byId("states").addEventListener("click", (event) => {
  const state = event.target.closest("button")?.dataset.state;
  if (!state) return;
  if (!filter.states.delete(state)) filter.states.add(state);
  refilter();
});
for (const name of ["mode", "build", "kind"]) byId(name)?.addEventListener("change", (event) => {
  filter[name] = event.target.value;
  refilter();
});
byId("others")?.addEventListener("change", (event) => { filter.others = event.target.checked; refilter(); });
byId("search").addEventListener("input", later((event) => list.search(event.target.value).draw(), 120));
byId("shown").addEventListener("change", (event) => { metric = event.target.value; matrix.rows().invalidate("data").draw(); });
byId("columns").addEventListener("change", (event) => list.column(`${event.target.dataset.column}:name`).visible(event.target.checked));
byId("as-matrix").addEventListener("click", () => view("matrix"));
byId("as-list").addEventListener("click", () => view("list"));

function refilter() {
  chips();
  list.draw();
}
function view(name) {
  for (const each of ["matrix", "list"]) {
    byId(each).hidden = each !== name;
    byId(`as-${each}`).setAttribute("aria-pressed", each === name);
  }
  byId("columns").hidden = name === "matrix";
  byId("shown-label").hidden = name === "list" || !metric;
}
function later(action, wait) {
  let timer;
  return (...rest) => { clearTimeout(timer); timer = setTimeout(() => action(...rest), wait); };
}

// ---- Pictures, drawn when they come into sight

const pending = new Set(), views = new Map();
const colour = (name) => {
  const probe = document.body.appendChild(Object.assign(document.createElement("i"), { hidden: true }));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};
const coloured = (spec) => JSON.parse(JSON.stringify(spec).replace(/var\((--[\w-]+)\)/g, (_, name) => colour(name)));
function theme() {
  const narrow = innerWidth < 640;
  const [ink, quiet, line] = ["--ink", "--quiet", "--line"].map(colour), font = getComputedStyle(document.body).fontFamily;
  return {
    background: null, font, view: { stroke: null },
    axis: { labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11, titleFontSize: 11.5, titleFontWeight: 400, titlePadding: 8 },
    axisY: { labelPadding: 6, labelLimit: narrow ? 120 : 260 },
    legend: { labelColor: ink, titleColor: quiet, labelFontSize: 11.5, titleFontSize: 11.5, titleFontWeight: 400, orient: "top", symbolStrokeWidth: 0, symbolSize: 60, columnPadding: 14, offset: 6, ...(narrow ? { columns: 2 } : {}) },
  };
}
const SVG_ROWS = 2000; // more marks are drawn on a canvas
const ERRORS_ONLY = 1; // of what Vega writes to the console
async function draw(place, figure, rows) {
  views.get(place)?.finalize();
  place.classList.toggle("empty", rows.length === 0);
  if (rows.length === 0) return place.replaceChildren();
  const spec = coloured(figure.spec);
  spec.datasets = { ...spec.datasets, [figure.rows]: rows };
  if (spec.height?.step) spec.height = spec.height.step * Math.min(rows.length, spec.usermeta.lines);
  const drawn = await window.vegaEmbed(place, spec, { ast: true, actions: false, config: theme(), logLevel: ERRORS_ONLY, renderer: rows.length > SVG_ROWS ? "canvas" : "svg" });
  drawn.view.addEventListener("click", (_, item) => { if (item?.datum && "cell" in item.datum) location.hash = `cell=${idOf(item.datum.cell)}`; });
  views.set(place, drawn);
}
function drawCells(figure) {
  const needed = [...figure.needs, ...figure.reads].filter((name) => name in cells);
  const rows = selection().filter((cell) => figure.needs.every((name) => cells[name][cell] !== null) && (!figure.counted || (value("counted", cell) && !value("stale", cell))));
  return draw(byId(`figure-${figure.name}`).lastElementChild, figure, rows.map((cell) => ({ cell, ...Object.fromEntries(needed.map((name) => [name, cells[name][cell]])) })));
}
const visible = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.isIntersecting ? visible.add(entry.target.id) : visible.delete(entry.target.id);
  drawVisible();
}, { rootMargin: "200px" });
const drawVisible = later(() => {
  for (const figure of data.figures) if (visible.has(`figure-${figure.name}`) && pending.delete(figure.name)) drawCells(figure);
}, 60);
function drawRest() { // so that they are there when the page is printed
  const figure = data.figures.find((each) => pending.delete(each.name));
  if (figure) drawCells(figure).then(() => requestIdleCallback(drawRest));
}
setTimeout(drawRest, 3000);
for (const figure of data.figures) watcher.observe(byId(`figure-${figure.name}`));

// ---- A cell

let open = null, cameFrom = null;
const facts = (cell, names) => html`<dl class="figures-of">${names.filter((name) => value(name, cell) !== null).map((name) =>
  html`<dt tabindex="0" data-tip="${definition(name)}">${words(name)}</dt><dd>${shownInList(name === "model" ? "" : name, cell)}</dd>`)}</dl>`;
function table(rows, names, leaf) {
  const known = names.filter((name) => name in rows), size = rows[known[0]]?.length ?? 0;
  const numeric = (name) => rows[name].some((each) => typeof each === "number");
  return html`<div class="scroll"><table><thead><tr>${known.map((name) => html`<th class="${numeric(name) ? "right" : ""}" tabindex="0" data-tip="${`${name}: ${data.meanings.columns[name] ?? ""}`}">${words(name)}</th>`)}</tr></thead><tbody>
    ${[...Array(size).keys()].map((row) => html`<tr>${known.map((name) => {
      const found = number(NUMBERS[rows[name][row]] === undefined ? null : rows[name][row]) ?? rows[name][row];
      return html`<td class="${name === leaf ? "leaf" : numeric(name) ? "right" : ""}">${name.endsWith("margin") && found > 1 ? html`<span class="beyond">${figure(name, found)}</span>` : name === "status" ? status(found) : name === leaf ? String(found).split(".").map((part, place) => html`${place ? html`.<wbr>` : ""}${part}`) : figure(name, found)}</td>`;
    })}</tr>`)}</tbody></table></div>`;
}
function cellPage(cell) {
  const more = data.details[cell], found = findingsOf.get(cell) ?? [], state = value("state", cell);
  const others = more ? Object.keys(more.columns) : [];
  return html`
    <header>${icon(state)}<h2 id="cell-title"><bdi>${cells.model[cell]}</bdi></h2><span class="spacer"></span>
      <button type="button" data-do="previous" aria-label="The cell before" data-tip="The cell before, on the board (k)">↑</button><button type="button" data-do="next" aria-label="The next cell" data-tip="The next cell on the board (j)">↓</button>
      <button type="button" data-do="link" data-tip="Copy a link to this cell">Link</button><button type="button" data-do="close" aria-label="Close" data-tip="Close (Esc)">✕</button>
      <span class="where quiet"><bdi>${cells.mode[cell]}</bdi> · <bdi>${cells.build[cell]}</bdi> · ${cells.device[cell]}${value("stale", cell) ? " · stale: measured with options or software that differ from today's" : ""}${value("requested", cell) === false ? " · not requested by the last command" : ""}</span></header>
    ${found.map((each) => html`<div class="finding ${each.severity}">${icon(each.severity)}<b>${words(each.kind)}</b>${each.check_name ? html` <span class="quiet">${each.check_name}</span>` : ""}: ${data.meanings.kinds[each.kind]}${each.reason ? html`<br><span class="words">${each.reason_class ? html`<b tabindex="0" data-tip="${data.meanings.reason_classes[each.reason_class]}">${words(each.reason_class)}</b>: ` : ""}<bdi>${each.reason}</bdi></span>` : ""}</div>`)}
    ${found.length === 0 ? html`<p class="fine">${icon(state)} ${data.meanings.states[state]}.</p>` : ""}
    <div class="pair"><div><h3>Accuracy</h3>${facts(cell, ["accuracy_by_rule", "passed_by", "accuracy", "strict", "margin", "strict_margin", "strict_message", "worst_leaf", "strict_worst_leaf", "leaves", "leaves_failed", "comparison", "reference", "top1_agreement"])}</div>
    <div><h3>Performance</h3>${facts(cell, ["performance", "speedup", "verdict", "noise_floor", "samples", "eager_ms", "compiled_ms", "timed_output_margin", "compile_cold_s", "compile_warm_s", "break_even_iterations", "eager_peak_bytes", "compiled_peak_bytes", "compression_ratio", "graph_breaks", "recompiles", "machine_drift"])}</div></div>
    ${data.of_cell.map((figure) => more?.[figure.rows] ? html`<div class="of-cell" id="of-cell-${figure.name}" data-figure="${figure.name}"><h3>${figure.title}</h3><p class="quiet fine">${figure.caption}</p><div class="drawing"></div></div>` : "")}
    ${more?.leaves ? html`<h3>Worst tensors</h3>${table(more.leaves, ["leaf", "margin", "strict_margin", "error_ratio", "eager_rmse", "compiled_rmse", "allowed_error", ...("eager_rmse" in more.leaves ? [] : ["max_abs_error", "cosine"]), "message", "strict_message"], "leaf")}` : ""}
    ${more?.attempts ? html`<h3>Attempts</h3>${table(more.attempts, ["check_name", "attempt", "status", "stage", "cause", "message", "wall_s", "peak_rss_bytes", "began_at", "host"])}` : ""}
    ${more?.log ? html`<h3>End of the log</h3><pre tabindex="0" id="log"><bdi>${more.log}</bdi></pre>` : ""}
    ${value("log", cell) ? html`<p class="fine quiet">Log: ${value("log", cell)}</p>` : ""}
    ${value("command", cell) ? html`<div class="with-button"><h3>The command that repeats it</h3><button type="button" data-do="copy">Copy</button></div><pre tabindex="0" id="command">${value("command", cell)}</pre>` : ""}
    ${more ? html`<details class="all-columns"><summary>All columns</summary><dl class="figures-of">${[...data.columns.map((column) => column.name).filter((name) => name !== "command" && value(name, cell) !== null).map((name) => [name, value(name, cell)]), ...others.map((name) => [name, more.columns[name]])].map(([name, found]) => html`<dt tabindex="0" data-tip="${definition(name)}">${name}</dt><dd><bdi>${figure(name, found)}</bdi></dd>`)}</dl></details>`
      : html`<p class="quiet">This page has the details of the ${Object.keys(data.details).length} gravest cells; those of this one are in the tables beside it.</p>`}`;
}
function openCell(cell) {
  const drawer = byId("cell");
  if (open === null) cameFrom = document.activeElement;
  open = cell;
  drawer.innerHTML = asMarkup(cellPage(cell));
  drawer.hidden = false;
  drawer.scrollTop = 0;
  if (byId("log")) byId("log").scrollTop = byId("log").scrollHeight;
  drawer.focus({ preventScroll: true });
  drawOfCell();
}
function drawOfCell() {
  for (const place of document.querySelectorAll(".of-cell")) {
    const figure = data.of_cell.find((each) => each.name === place.dataset.figure), rows = data.details[open][figure.rows];
    const needed = [...figure.needs, ...figure.reads].filter((name) => name in rows), size = rows[needed[0]]?.length ?? 0;
    const complete = [...Array(size).keys()].filter((row) => figure.needs.every((name) => typeof rows[name]?.[row] === "number"));
    place.hidden = complete.length === 0;
    draw(place.lastElementChild, figure, complete.map((row) => Object.fromEntries(needed.map((name) => [name, rows[name][row]]))));
  }
}
function closeCell() {
  if (open === null) return;
  open = null;
  byId("cell").hidden = true;
  byId("cell").replaceChildren();
  cameFrom?.focus?.({ preventScroll: true });
}
function leave() {
  history.replaceState(null, "", location.pathname + location.search + "#board");
  closeCell();
}
function step(by) {
  const order = selection(), place = order.indexOf(open), next = order[place + by];
  if (place >= 0 && next !== undefined) location.replace(`#cell=${idOf(next)}`);
}
const copy = (button, text) => (navigator.clipboard?.writeText(text) ?? Promise.reject())
  .then(() => "Copied", () => "The browser forbids it").then((said) => { button.textContent = said; });
byId("cell").addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  const actions = { close: leave, next: () => step(1), previous: () => step(-1), link: () => copy(button, location.href), copy: () => copy(button, value("command", open)) };
  if (button) actions[button.dataset.do]();
});

// ---- Links, keys, light and dark, definitions

function follow() {
  const [name, ...rest] = location.hash.slice(1).split("="), target = rest.join("=");
  if (name === "cell" && cellOf.has(normal(target))) return openCell(cellOf.get(normal(target)));
  closeCell();
  if (name === "kind") {
    filter.kind = target;
    byId("kind").value = target;
    refilter();
    byId("board").scrollIntoView();
  }
}
const normal = (id) => { try { return id.split("/").map(decodeURIComponent).map(encodeURIComponent).join("/"); } catch { return id; } };
window.addEventListener("hashchange", follow);
document.addEventListener("click", (event) => { if (event.target.closest("a[href^='#']")?.hash === location.hash) follow(); });

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") open !== null ? leave() : typing && event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
  if (open !== null && (event.key === "j" || event.key === "k")) step(event.key === "j" ? 1 : -1);
  const move = MOVES[event.key], box = event.target.closest("#matrix td");
  if (!move || !box) return;
  event.preventDefault();
  const row = move[0] < 0 ? box.parentElement.previousElementSibling : move[0] > 0 ? box.parentElement.nextElementSibling : box.parentElement;
  row?.children[box.cellIndex + move[1]]?.querySelector("a")?.focus();
});

byId("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (document.documentElement.style.colorScheme === "" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.style.colorScheme = dark ? "light" : "dark";
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
function redraw() {
  for (const figure of data.figures) pending.add(figure.name);
  drawVisible();
  if (open !== null) drawOfCell();
}

const tip = byId("tip");
function showTip(event) {
  const about = event.target.closest?.("[data-tip]");
  tip.hidden = !about;
  document.querySelector("[aria-describedby=tip]")?.removeAttribute("aria-describedby");
  if (!about) return;
  about.setAttribute("aria-describedby", "tip");
  tip.textContent = about.dataset.tip;
  const box = about.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = box.bottom + 6 + size.height < innerHeight;
  tip.style.left = `${Math.max(6, Math.min(box.left, innerWidth - size.width - 6))}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(6, box.top - size.height - 6)}px`;
}
for (const name of ["pointerover", "focusin"]) document.addEventListener(name, showTip);
document.addEventListener("scroll", () => { tip.hidden = true; }, true);

window.addEventListener("beforeprint", () => { if (count <= 2000) for (const each of [list, matrix]) each.page.len(-1).draw(false); });
window.addEventListener("afterprint", () => { for (const each of [list, matrix]) each.page.len(PAGE).draw(false); });

// ---- Start

chips();
view("matrix");
list.on("search.dt draw.dt", later(show, 0));
list.draw();
show();
follow();
Object.assign(document.documentElement.dataset, { ready: "yes", readyMs: Math.round(performance.now()), scriptMs: Math.round(performance.now() - started) });
