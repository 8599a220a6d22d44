// What a report's page does in a browser: it draws plots, sorts and filters tables of runs, and
// highlights the chosen runs in all of them.
"use strict";
(() => {
const FIRST = 50;  // rows of a table that are shown at first; page.py's style hides the others
const NARROW = matchMedia("(max-width: 40rem)");
const DARK = matchMedia("(prefers-color-scheme: dark)");
const MARK = "#d1495b";  // colour of the chosen points
const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i;

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// --- the chosen runs ---

let chosen = new Set();
const shows = [];  // functions that show what is chosen
const rowOf = new Map();  // run: its row

function choose(runs) {
  const again = runs.length === chosen.size && runs.every((run) => chosen.has(run));
  chosen = new Set(again ? [] : runs);
  for (const show of shows) show();
}

function chosenBar() {
  const text = make("span", {}), clear = make("button", {type: "button"}, "clear (Esc)");
  const bar = make("div", {class: "chosen-runs about", role: "status"}, text, clear);
  bar.hidden = true;
  clear.addEventListener("click", () => choose([]));
  addEventListener("keydown", (event) => { if (event.key === "Escape") choose([]); });
  document.body.append(bar);
  shows.push(() => {
    bar.hidden = chosen.size === 0;
    const parts = [...chosen].map((run) => {
      const row = rowOf.get(run), files = row?.querySelector(".files");
      const name = row?.cells[0].textContent ?? run;
      return make("div", {}, `${name} `, ...(files ? [files.cloneNode(true)] : []));
    });
    text.replaceChildren(...parts);
  });
}

// --- tables ---

const collator = new Intl.Collator(undefined, {numeric: true});

function valuesOf(rows, column) {
  const texts = rows.map((row) => row.cells[column].textContent.trim());
  const isNumeric = texts.every((text) => text === "" || NUMBER.test(text));
  const compare = isNumeric ? (a, b) => a - b : collator.compare;
  return {texts, compare};
}

function sorted(rows, column, direction) {
  if (direction === "none") return rows;
  const {texts, compare} = valuesOf(rows, column), sign = direction === "ascending" ? 1 : -1;
  const places = rows.map((_, place) => place).sort((a, b) => {
    if ((texts[a] === "") !== (texts[b] === "")) return texts[a] === "" ? 1 : -1;  // empty: last
    return sign * compare(texts[a], texts[b]) || a - b;
  });
  return places.map((place) => rows[place]);
}

function enliven(table) {
  const original = [...table.tBodies[0].rows], headings = [...table.tHead.rows[0].cells];
  const runsOf = new Map(original.map((row) => [row, row.dataset.run.split(" ")]));
  let rows = original, words = [], limit = FIRST;
  const texts = new Map();
  const field = make("input", {type: "search", placeholder: "filter", "aria-label":
    "Filter the rows: all words must occur"});
  const count = make("span", {role: "status"});
  const more = make("button", {type: "button"}, "show all");
  const fits = (row) => {
    if (!words.length) return true;
    if (!texts.has(row)) texts.set(row, `${row.textContent} ${row.dataset.run}`.toLowerCase());
    return words.every((word) => texts.get(row).includes(word));
  };
  const show = () => {
    let found = 0, shown = 0;
    for (const row of rows) {
      const isChosen = runsOf.get(row).some((run) => chosen.has(run)), isFound = fits(row);
      found += isFound;
      row.hidden = !(isChosen || (isFound && found <= limit));
      shown += !row.hidden;
      row.classList.toggle("chosen", isChosen);
      row.setAttribute("aria-current", isChosen);
    }
    count.textContent = `${shown} of ${rows.length} rows`;
    more.hidden = found <= limit;
  };
  const click = (row, target) => {
    if (!target.closest("a, button") && !String(getSelection())) choose(runsOf.get(row));
  };
  for (const row of original) {
    row.tabIndex = 0;
    for (const run of runsOf.get(row)) rowOf.set(run, row);  // of later tables: those of runs
    row.addEventListener("click", (event) => click(row, event.target));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target === row) choose(runsOf.get(row));
    });
  }
  headings.forEach((heading, column) => {
    const button = make("button", {type: "button"}, ...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = ["none", "ascending", "descending"];
      const next = order[(order.indexOf(heading.getAttribute("aria-sort")) + 1) % 3];
      for (const one of headings) one.setAttribute("aria-sort", one === heading ? next : "none");
      rows = sorted(original, column, next);
      table.tBodies[0].append(...rows);
      show();
    });
  });
  field.addEventListener("input", () => {
    words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    show();
  });
  more.addEventListener("click", () => { limit = Infinity; show(); });
  if (rows.length > 10) table.parentNode.before(make("div", {class: "about"}, field, count, more));
  table.classList.add("ready");
  shows.push(show);
  show();
}

// --- plots ---

const plots = [];

function template(given) {
  const style = getComputedStyle(document.documentElement);
  const [ink, paper, line] = ["--ink", "--paper", "--line"].map((n) => style.getPropertyValue(n));
  const axis = {gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true,
    exponentformat: "e"};
  return {...given, layout: {
    ...given?.layout, font: {color: ink, family: "system-ui, sans-serif", size: 12},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
    hoverlabel: {bgcolor: paper, bordercolor: line, font: {color: ink}, align: "left"},
    margin: {l: 50, r: 20, t: 30, b: 40},
  }};
}

function onlyRun(trace) {  // the run that a whole trace shows, if that is one
  if (typeof trace.meta === "string") return trace.meta;
  const runs = Array.isArray(trace.customdata) ? trace.customdata : [];
  return runs.length > 1 && runs.every((run) => run === runs[0]) ? runs[0] : null;
}

function runsAt(trace, place) {
  if (onlyRun(trace)) return [onlyRun(trace)];
  return Array.isArray(trace.customdata) ? [trace.customdata[place]].flat() : [];
}

function highlighted(trace) {
  if (!chosen.size) return trace;
  if (onlyRun(trace)) {
    const isChosen = chosen.has(onlyRun(trace)), width = (trace.line?.width ?? 2) + 1.5;
    return isChosen ? {...trace, line: {...trace.line, width}} : {...trace, opacity: 0.2};
  }
  if (!Array.isArray(trace.customdata)) return trace;
  const hits = trace.customdata.map((_, n) => runsAt(trace, n).some((run) => chosen.has(run)));
  if (trace.type === "parcoords") {
    const colours = [[0, "rgba(138, 148, 160, .3)"], [1, MARK]];
    return {...trace, line: {color: hits.map(Number), colorscale: colours, cmin: 0, cmax: 1}};
  }
  return {...trace, selectedpoints: hits.flatMap((hit, n) => (hit ? [n] : [])),
    selected: {marker: {color: MARK, opacity: 1}}, unselected: {marker: {opacity: 0.25}}};
}

function smoothed(values, weight) {  // exponential moving average, less its bias at the start
  let mean = 0, sum = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    sum = weight * sum + (1 - weight);
    return mean / sum;
  });
}

function draw(plot) {
  if (!plot.isSeen) return;
  const {area, given, group} = plot, layout = {...given.layout, autosize: true};
  delete layout.width;
  delete layout.height;
  layout.template = template(layout.template);
  if (NARROW.matches) {
    layout.legend = {...layout.legend, orientation: "h", x: 0, y: -0.2, xanchor: "left",
      yanchor: "top", font: {size: 11}};
  }
  let data = given.data.map(highlighted);
  if (group) {
    layout.showlegend = false;
    layout.yaxis = {...layout.yaxis, type: group.isLog ? "log" : "linear"};
    data = data.map((trace) => ({...trace, visible: !group.hidden.has(trace.meta),
      y: smoothed(trace.y, group.smoothing)}));
  }
  Plotly.react(area, data, layout, {responsive: true, displaylogo: false,
    displayModeBar: group || NARROW.matches ? false : undefined});
  if (plot.isDrawn) return;
  plot.isDrawn = true;
  area.on("plotly_click", (event) => {
    const runs = event.points.flatMap((one) => runsAt(one.data, one.pointNumber));
    if (runs.length) choose([...new Set(runs)]);
  });
}

async function unpackPlotly() {
  const packed = document.getElementById("plotly")?.textContent;
  if (!packed) return;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", {}, await new Response(unzipped).text()));
}

function readPlots() {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      seen.unobserve(entry.target);
      const plot = plots.find((one) => one.figure === entry.target);
      plot.isSeen = true;
      draw(plot);
    }
  }, {rootMargin: "300px"});  // drawing takes time, so only what is looked at
  for (const figure of document.querySelectorAll("figure.plot")) {
    const area = figure.querySelector(".area");
    const given = JSON.parse(figure.querySelector("script").textContent);
    const {width, height} = given.layout;
    if (width) area.style.minWidth = `${width}px`;
    if (height) area.style.height = `${height}px`;
    plots.push({figure, area, given, group: null});
    seen.observe(figure);
  }
  const all = () => plots.forEach(draw);
  shows.push(all);
  for (const query of [NARROW, DARK]) query.addEventListener("change", all);
}

function control(bar) {  // the legend of all curves, and their switches
  const mine = plots.filter((plot) => plot.figure.closest(".curves"));
  const state = {hidden: new Set(), isLog: false, smoothing: 0};
  const traces = new Map(mine.flatMap((plot) => plot.given.data).map((one) => [one.meta, one]));
  const again = () => mine.forEach(draw);
  const keys = [...traces].map(([run, trace]) => {
    const name = rowOf.get(run)?.cells[0].textContent ?? run;
    const key = make("button", {type: "button", "aria-pressed": "true", "data-run": run}, name);
    key.style.setProperty("--key", trace.line.color);
    key.addEventListener("click", () => {
      if (!state.hidden.delete(run)) state.hidden.add(run);
      key.setAttribute("aria-pressed", !state.hidden.has(run));
      again();
    });
    shows.push(() => key.classList.toggle("chosen", chosen.has(run)));
    return key;
  });
  const log = make("input", {type: "checkbox"});
  log.addEventListener("change", () => { state.isLog = log.checked; again(); });
  const slider = make("input", {type: "range", min: 0, max: 0.95, step: 0.05, value: 0});
  slider.addEventListener("input", () => { state.smoothing = Number(slider.value); again(); });
  for (const plot of mine) plot.group = state;
  bar.append(make("label", {}, log, "log axis"), make("label", {}, "smoothing", slider), ...keys);
}

document.querySelectorAll("table.runs").forEach(enliven);
chosenBar();
unpackPlotly().then(() => {
  readPlots();
  document.querySelectorAll(".keys").forEach(control);
  for (const show of shows) show();
});
})();
