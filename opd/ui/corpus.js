/*
 * Many trajectories at once. `element`, `props`, `server` and `watch` are given to this script by Gradio; words.js
 * of the token review component stands before it.
 *
 * On the page it talks with the token review component only: "opd-shown" tells what is shown there, "opd-open"
 * opens a place in it (opd/ui/token_review.js). The server is asked for the open tab, while it is open.
 */

const ROWS_PER_PAGE = 100;
const GROWTH_MS = 800; // a growing set is not asked for more often
const TYPING_MS = 200;
const POINTING_MS = 120;
const SPARK = { height: 26, ceiling: 8 }; // nats at full height
const FLOOR = 1e-3; // nats: the map's axes are logarithmic, and what is less stands at their beginning

const root = element.querySelector(".opd-corpus");
const find = (selector) => root.querySelector(selector);
const { legend } = props;
const fold = find("details");
const tabs = [...root.querySelectorAll("[role=tab]")];
let shown = null; // what the component tells
let tab = "table";
let turn = 0; // late answers to older questions are dropped
let growth = null; // the timer of refreshSoon

// ------------------------------------------------------------------------------------------------ words and pictures

const figure = (value, digits = 2) => (Number.isFinite(value) ? number(value, digits) : "–");
const share = (value) => (Number.isFinite(value) ? percent(value) : "–");
const say = (words) => (find(".status").textContent = words);

/** Say where a place is: “3 · 45”, with its student where there are several. */
function placeWords({ group, sample, index }) {
  const student = shown.labels.length > 1 ? `${shown.labels[group]}, ` : "";
  return `${student}${sample + 1}${index === undefined ? "" : ` · ${index + 1}`}`;
}

/** One bar for each value, up and red for positive ones, down and blue for negative ones. */
function sparkline(values) {
  const svgPart = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const middle = SPARK.height * 0.72; // most penalties are positive
  const bars = (sign) =>
    values
      .map((value, x) => {
        const tall = Math.sqrt(Math.min(1, Math.max(0, sign * value) / SPARK.ceiling));
        return tall ? `M${x + 0.5} ${middle}V${middle - sign * tall * (sign > 0 ? middle : SPARK.height - middle)}` : "";
      })
      .join("");
  const svg = svgPart("svg", { class: "spark", viewBox: `0 0 ${Math.max(values.length, 12)} ${SPARK.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(
    svgPart("path", { class: "ground", d: `M0 ${middle}H${values.length}`, "stroke-width": 0.75 }),
    svgPart("path", { class: "dislike", d: bars(1), "stroke-width": 0.8 }),
    svgPart("path", { class: "like", d: bars(-1), "stroke-width": 0.8 }),
  );
  return svg;
}

function mark({ correct, finished }) {
  if (correct === null) return make("span", "mark", finished ? "–" : shown.growing ? "…" : "unfinished");
  return make("span", correct ? "mark right" : "mark wrong", correct ? "✓ right" : "✗ wrong");
}

/** A text on one line. */
const line = (text) => text.replaceAll("\n", "");

const around = ({ left, token, right }) =>
  make("span", "around", make("span", "left", line(left)), make("b", "", label(token, 24)), make("span", "", line(right)));

function verdictWords({ verdict }) {
  if (verdict === null) return "–";
  const name = legend.verdicts[verdict];
  return `${name} ${legend.glyphs[name] ?? ""}`.trim();
}

/** Show a place in the component above. */
function open({ group, sample, index = null }) {
  document.dispatchEvent(new CustomEvent("opd-open", { detail: { key: shown.key, group, sample, token: index } }));
}

// ------------------------------------------------------------------------------------------------ tables

/**
 * A table that headings sort; the sort is stable, so that headings pressed before break the ties.
 *
 * A column is { name, head, value, cell }: what a row is sorted by, and what it shows (a node or a text). words: it is
 * left-aligned; rising: its least value comes first, where others begin with the largest; minor and lesser columns go
 * where there is no room. act(row) is called when a row is pressed.
 */
class SortableTable {
  constructor(element, columns, act) {
    Object.assign(this, { columns, act, sorts: [], rows: [], page: 0 });
    this.body = make("tbody");
    this.heads = columns.map((column) => {
      const cell = make("th", classesOf(column), makeButton("", column.head, () => this.sortBy(column)));
      cell.scope = "col";
      return cell;
    });
    this.frame = make("div", "frame", make("table", "", make("thead", "", make("tr", "", ...this.heads)), this.body));
    this.where = make("span", "where");
    this.previous = makeButton("", "‹ previous", () => this.turnTo(this.page - 1));
    this.next = makeButton("", "next ›", () => this.turnTo(this.page + 1));
    this.pages = make("p", "pages", this.previous, this.where, this.next);
    element.append(this.frame, this.pages);
  }

  show(rows) {
    this.rows = rows;
    this.frame.hidden = !rows.length;
    this.arrange();
  }

  /** Leave columns out, by name. */
  hide(names) {
    this.hidden = names;
    this.columns.forEach(({ name }, i) => (this.heads[i].hidden = names.includes(name)));
  }

  sortBy(column) {
    const [last] = this.sorts;
    const descending = last?.column === column ? !last.descending : !column.rising;
    this.sorts = [{ column, descending }, ...this.sorts.filter((sort) => sort.column !== column)];
    this.page = 0;
    this.arrange();
  }

  arrange() {
    this.order = [...this.rows];
    for (const { column, descending } of this.sorts.toReversed()) {
      this.order.sort((a, b) => compare(column.value(a), column.value(b), descending));
    }
    this.columns.forEach((column, i) => {
      if (this.sorts[0]?.column !== column) this.heads[i].removeAttribute("aria-sort");
      else this.heads[i].ariaSort = this.sorts[0].descending ? "descending" : "ascending";
    });
    this.turnTo(this.page);
  }

  turnTo(page) {
    const pages = Math.max(1, Math.ceil(this.order.length / ROWS_PER_PAGE));
    this.page = Math.max(0, Math.min(page, pages - 1));
    const first = this.page * ROWS_PER_PAGE;
    const rows = this.order.slice(first, first + ROWS_PER_PAGE);
    this.body.replaceChildren(...rows.map((row) => this.makeRow(row)));
    this.pages.hidden = pages === 1;
    this.where.textContent = `${first + 1} to ${first + rows.length} of ${this.order.length.toLocaleString("en")}`;
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page === pages - 1;
  }

  makeRow(row) {
    const cells = this.columns.map((column) => {
      const cell = make("td", classesOf(column), column.cell(row));
      cell.hidden = this.hidden?.includes(column.name) ?? false;
      return cell;
    });
    const made = make("tr", "", ...cells);
    made.addEventListener("click", () => {
      for (const other of this.body.rows) other.classList.toggle("opened", other === made);
      this.act(row);
    });
    return made;
  }
}

const classesOf = ({ name, words, minor, lesser }) =>
  [name, words && "words", minor && "minor", lesser && "lesser"].filter(Boolean).join(" ");

/** Compare two values; what is not there comes last either way. */
function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const way = typeof a === "string" ? a.localeCompare(b) : a - b;
  return descending ? -way : way;
}

/** The button of a row for the keyboard; pressing it is pressing its row. */
function rowButton(text, name) {
  const button = makeButton("", text, () => {});
  button.ariaLabel = name;
  return button;
}

const numeric = (name, head, digits, more = {}) => ({
  name, head, value: (row) => row[name], cell: (row) => figure(row[name], digits), ...more,
});

const tokenColumns = () => [
  {
    name: "place", head: "#", words: true, rising: true,
    value: ({ group, sample, index }) => group * 1e12 + sample * 1e7 + index,
    cell: (row) => rowButton(placeWords(row), `Open trajectory ${row.sample + 1} at token ${row.index + 1}`),
  },
  { name: "context", head: "token in its text", words: true, rising: true, value: ({ token }) => token, cell: around },
  numeric("penalty", "penalty", 2),
  numeric("drop", "D", 2, { lesser: true }),
  {
    name: "verdict", head: "verdict", words: true, minor: true,
    value: ({ verdict }) => verdict, cell: verdictWords,
  },
  {
    name: "preferred", head: "teacher’s choice", words: true, rising: true, minor: true,
    value: ({ preferred }) => preferred,
    cell: ({ preferred, probability }) =>
      probability === null
        ? "–"
        : make("span", "", make("code", "", label(preferred, 20)), make("span", "probability", ` ${share(probability)}`)),
  },
];

const trajectories = new SortableTable(
  find("#corpus-table .table"),
  [
    {
      name: "place", head: "#", words: true, rising: true,
      value: ({ sample }) => sample,
      cell: ({ sample, parent }) => {
        const branch = parent === null ? "" : `, a branch of ${parent + 1}`;
        return rowButton(`${sample + 1}${parent === null ? "" : ` ↳ ${parent + 1}`}`, `Open trajectory ${sample + 1}${branch}`);
      },
    },
    { name: "student", head: "student", words: true, rising: true, value: ({ group }) => group, cell: ({ group }) => shown.labels[group] },
    { name: "prompt", head: "prompt", words: true, rising: true, lesser: true, value: ({ prompt }) => prompt, cell: ({ prompt }) => line(prompt) },
    { name: "answer", head: "answer", words: true, value: ({ correct }) => (correct === null ? null : Number(correct)), cell: mark },
    {
      name: "picture", head: "penalties", words: true,
      value: ({ spark }) => Math.max(0, ...spark), cell: ({ spark }) => sparkline(spark),
    },
    {
      name: "agreement", head: "agreement", value: ({ agreement }) => agreement,
      cell: ({ agreement, choices }) => (agreement === null ? "–" : `${share(agreement)} of ${choices}`),
    },
    numeric("penalty", "penalty", 2, { lesser: true }),
    numeric("kl", "reverse KL", 2, { minor: true }),
    numeric("blunders", "blunders", 0, { minor: true }),
    numeric("forks", "forks", 0, { minor: true }),
    numeric("tokens", "tokens", 0),
    {
      name: "worst", head: "worst token", words: true, minor: true,
      value: ({ worst }) => worst && worst.penalty,
      cell: ({ worst }) => {
        if (!worst) return "–";
        const button = makeButton("", "", (event) => {
          event.stopPropagation(); // the row would open its beginning
          open(worst);
        });
        button.append(make("code", "", label(worst.token, 16)), ` ${figure(worst.penalty)}`);
        button.title = `Open token ${worst.index + 1}`;
        return button;
      },
    },
  ],
  open,
);
const worst = new SortableTable(find("#corpus-worst .table"), tokenColumns(), open);
const swaps = new SortableTable(
  find("#corpus-swaps .table"),
  [
    { name: "place", head: "student", words: true, rising: true, value: ({ token }) => token, cell: (row) => rowButton(label(row.token, 24), `List where ${swapWords(row)}`) },
    { name: "preferred", head: "teacher’s choice", words: true, rising: true, value: ({ preferred }) => preferred, cell: ({ preferred }) => make("code", "", `→ ${label(preferred, 24)}`) },
    numeric("count", "times", 0),
    numeric("drop", "mean D", 2, { lesser: true }),
    numeric("penalty", "penalty", 1, { lesser: true }),
    { name: "share", head: "share", value: (row) => row.share, cell: (row) => share(row.share) },
  ],
  (swap) => list("swaps", `${swapWords(swap)}, ${swap.count === 1 ? "once" : `${swap.count} times`}, ${share(swap.share)} of the penalty`, swap.places),
);

const swapWords = ({ token, preferred }) => `“${label(token, 24)}” → “${label(preferred, 24)}”`;

// ------------------------------------------------------------------------------------------------ what is picked

const selections = Object.fromEntries(
  ["swaps", "map"].map((name) => {
    const box = find(`#corpus-${name} .selection`);
    box.append(find("template").content.cloneNode(true));
    return [name, { box, table: new SortableTable(box.querySelector(".table"), tokenColumns(), open), turn: 0 }];
  }),
);

/** List tokens with their contexts beside a table or the map. `places`: [group, sample, index]. */
async function list(name, words, places) {
  const { box, table } = selections[name];
  const mine = ++selections[name].turn;
  const tokens = await server.tokens(shown.key, places.slice(0, legend.listed));
  if (mine !== selections[name].turn) return;
  box.hidden = false;
  box.querySelector("h4").textContent = tokens ? words : GONE;
  table.show(tokens ?? []);
  if (name === "map") resizeMap();
  box.scrollIntoView({ block: "nearest" });
}

function unlist(name) {
  selections[name].turn += 1;
  selections[name].box.hidden = true;
  if (name !== "map") return;
  press(null);
  resizeMap();
}

/** Close all lists, as when other tokens are asked for. */
function unlistAll() {
  for (const name of Object.keys(selections)) unlist(name);
}

// ------------------------------------------------------------------------------------------------ the map

const map = { element: find(".plot"), data: null, drawn: false };

const place = (i) => [...map.data.addresses[map.data.trajectory[i]], map.data.index[i]];

/** List points of the map, those with the largest KL first. */
function listPoints(points, words) {
  const ranked = [...points].sort((a, b) => map.data.kl[b] - map.data.kl[a]);
  const rest = points.length > legend.listed ? `, the ${legend.listed} with the largest reverse KL` : "";
  return list("map", `${words}: ${counted(points.length, "token")}${rest}`, ranked.map(place));
}

async function showMap(data) {
  map.data = data;
  find(".thinned").textContent =
    data.index.length < data.found
      ? `Shown are ${data.index.length.toLocaleString("en")} of ${data.found.toLocaleString("en")} tokens, evenly chosen.`
      : "";
  map.buttons.forEach((button, i) => {
    button.querySelector(".figure").textContent = ` ${counted(data.counts[i], "token")}, ${share(data.shares[i])} of the KL`;
    button.disabled = !data.quadrant.includes(i);
  });
  try {
    await loadPlotly(legend.plotly);
  } catch {
    say("The plot could not be loaded. The buttons list its tokens all the same.");
    return;
  }
  if (map.data === data && isOpen("map")) drawMap();
}

function readColours() {
  const probe = make("span");
  probe.hidden = true;
  root.append(probe);
  const names = ["ink", "muted", "line", "dislike", "like"];
  const colours = Object.fromEntries(
    names.map((name) => {
      probe.style.color = `var(--${name})`;
      return [name, getComputedStyle(probe).color];
    }),
  );
  probe.remove();
  return colours;
}

function drawMap() {
  const { data } = map;
  const colours = readColours();
  const kindOf = legend.verdicts.map((name) =>
    legend.minded.includes(name) ? "dislike" : ["brilliant", "great"].includes(name) ? "like" : "muted",
  );
  const kinds = data.verdict.map((verdict) => kindOf[verdict]);
  const trace = {
    type: make("canvas").getContext("webgl") ? "scattergl" : "scatter",
    mode: "markers",
    hoverinfo: "none",
    x: data.entropy.map((value) => Math.max(value, FLOOR)),
    y: data.kl.map((value) => Math.max(value, FLOOR)),
    marker: {
      size: kinds.map((kind) => (kind === "muted" ? 5 : 7)),
      symbol: kinds.map((kind) => (kind === "dislike" ? "diamond" : "circle")),
      color: kinds.map((kind) => colours[kind]),
      opacity: 0.65,
      line: { width: 0 },
    },
    // By colour: where many lie on each other, faint ones would add up.
    unselected: { marker: { color: colours.line, opacity: 0.65 } },
    selectedpoints: null,
  };
  const top = (values) => Math.log10(1.6 * values.reduce((most, value) => Math.max(most, value), 2));
  const axis = (title, values) => ({
    type: "log",
    title: { text: title, standoff: 6 },
    range: [Math.log10(FLOOR) - 0.3, top(values)],
    tickvals: [FLOOR, 0.01, 0.1, 1, 10],
    ticktext: ["≤ 0.001", "0.01", "0.1", "1", "10"],
    gridcolor: colours.line,
    zeroline: false,
    automargin: true,
  });
  const [sure, agreed] = legend.borders;
  const border = (x0, x1, y0, y1, xref, yref) => ({
    type: "line", x0, x1, y0, y1, xref, yref, line: { color: colours.muted, width: 1, dash: "dot" },
  });
  const name = (quadrant, x, y) => ({
    text: legend.quadrants[quadrant], x, y, xref: "paper", yref: "paper", showarrow: false,
    xanchor: x ? "right" : "left", yanchor: y ? "top" : "bottom", font: { size: 13, color: colours.ink },
  });
  Plotly.react(
    map.element,
    [trace],
    {
      margin: { l: 8, r: 8, t: 8, b: 8 },
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      font: { family: getComputedStyle(root).fontFamily, size: 12, color: colours.muted },
      showlegend: false,
      hovermode: "closest",
      // A finger must still be able to scroll the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "lasso",
      xaxis: axis("student entropy, nats", data.entropy),
      yaxis: axis("reverse KL, nats", data.kl),
      shapes: [border(sure, sure, 0, 1, "x", "paper"), border(0, 1, agreed, agreed, "paper", "y")],
      selections: [],
      annotations: [name(0, 0, 0), name(1, 0, 1), name(2, 1, 0), name(3, 1, 1)],
    },
    { displayModeBar: false, responsive: true },
  );
  if (!map.drawn) listenToMap();
  map.drawn = true;
}

function listenToMap() {
  map.element.on("plotly_selected", (event) => {
    if (!event?.points?.length) return;
    press(null);
    listPoints(event.points.map(({ pointIndex }) => pointIndex), "Drawn round");
  });
  map.element.on("plotly_deselect", () => unlist("map"));
  map.element.on("plotly_click", ({ points: [{ pointIndex }] }) => {
    const [group, sample, index] = place(pointIndex);
    open({ group, sample, index });
  });
  map.element.on("plotly_hover", ({ points: [{ pointIndex }] }) => {
    clearTimeout(map.hover);
    map.hover = setTimeout(() => pointAt(pointIndex), POINTING_MS);
  });
}

/** Say below the map which token the pointer is on. */
async function pointAt(point) {
  const { data } = map;
  const [token] = (await server.tokens(shown.key, [place(point)])) ?? [];
  if (!token || map.data !== data) return;
  const figures = `entropy ${figure(token.entropy)}, reverse KL ${figure(token.kl)}, ${verdictWords(token)}`;
  find(".pointed").replaceChildren(`${placeWords(token)}  `, around(token), `  ${figures}`);
}

function resizeMap() {
  if (map.drawn && isOpen("map")) Plotly.Plots.resize(map.element);
}

/** Light points of the map, or all where `points` is null; what was drawn round goes. */
function selectPoints(points) {
  if (map.drawn) Plotly.update(map.element, { selectedpoints: [points] }, { selections: [] });
}

/** Mark the button of a quadrant as pressed, or none. */
function press(quadrant) {
  map.buttons.forEach((button, i) => (button.ariaPressed = String(i === quadrant)));
}

map.buttons = legend.quadrants.map((name, quadrant) => {
  const button = makeButton("", name, () => {
    press(quadrant);
    const points = [...map.data.quadrant.keys()].filter((i) => map.data.quadrant[i] === quadrant);
    selectPoints(points);
    listPoints(points, name);
  });
  button.append(make("span", "figure"));
  return button;
});
find(".quadrants").append(...map.buttons);
press(null);

// ------------------------------------------------------------------------------------------------ asking

const GONE = "These trajectories are no longer at hand. Please sample or open them anew.";
const NOTHING = {
  table: "No trajectory is like that.",
  worst: "No token like that has a penalty.",
  swaps: "There is nothing like that to swap.",
  map: "No token is like that.",
};

const DRAW = {
  table({ rows, prompts }) {
    trajectories.hide([...(shown.labels.length > 1 ? [] : ["student"]), ...(prompts ? [] : ["prompt"])]);
    trajectories.show(rows);
    return rows.length;
  },
  worst({ rows }) {
    worst.show(rows);
    return rows.length;
  },
  swaps({ rows, found }) {
    find(".cut").textContent = rows.length < found ? `Shown are the first ${rows.length} of ${found.toLocaleString("en")}.` : "";
    swaps.show(rows);
    return rows.length;
  },
  map(data) {
    showMap(data);
    return data.found;
  },
};

const field = (name) => find(`[name=${name}]`);

function question() {
  const least = field("drop").valueAsNumber;
  return {
    group: field("group").value === "" ? null : Number(field("group").value),
    correct: { right: true, wrong: false }[field("correct").value] ?? null,
    verdicts: field("verdicts").value,
    text: field("text").value.trim(),
    drop: Number.isFinite(least) ? least : legend.drop,
  };
}

const isOpen = (name) => tab === name && fold.open && !root.hidden;

async function refresh() {
  if (!shown || !fold.open || root.hidden) return;
  const mine = ++turn;
  const asked = tab;
  // A server function that fails resolves to undefined.
  const data = await server.tab(shown.key, asked, question());
  if (mine !== turn) return;
  find(`#corpus-${asked}`).hidden = !data;
  if (!data) say(GONE);
  else say(DRAW[asked](data) ? "" : NOTHING[asked]);
}

/** Ask again a moment later, however often this is called meanwhile. */
function refreshSoon() {
  growth ??= setTimeout(() => {
    growth = null;
    refresh();
  }, GROWTH_MS);
}

function choose(name) {
  tab = name;
  for (const button of tabs) {
    const mine = button.id === `corpus-tab-${name}`;
    button.ariaSelected = String(mine);
    button.tabIndex = mine ? 0 : -1;
    document.getElementById(button.getAttribute("aria-controls")).hidden = !mine;
  }
  refresh();
}

/** Follow what the component shows: { key, growing, labels, reviews, words }; words: how much there is. */
function follow(told) {
  const before = shown;
  shown = told;
  root.hidden = told.reviews < 2;
  find(".count").textContent = told.words;
  if (before?.labels.join() !== told.labels.join()) offerGroups(told.labels);
  if (before?.key === told.key) {
    refreshSoon();
    return;
  }
  unlistAll();
  refresh();
}

function offerGroups(labels) {
  const options = ["all students", ...labels].map((text, i) => {
    const option = make("option", "", text);
    option.value = i ? String(i - 1) : "";
    return option;
  });
  field("group").replaceChildren(...options);
  field("group").hidden = labels.length < 2;
}

// ------------------------------------------------------------------------------------------------ listening

for (const button of tabs) {
  button.addEventListener("click", () => choose(button.id.replace("corpus-tab-", "")));
  button.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs.at((tabs.indexOf(button) + step) % tabs.length);
    next.focus();
    next.click();
  });
}
for (const [name, { box }] of Object.entries(selections)) {
  box.querySelector("header button").addEventListener("click", () => {
    unlist(name);
    if (name === "map") selectPoints(null);
  });
}
let typing = null;
for (const name of ["group", "correct", "verdicts", "text", "drop"]) {
  field(name).addEventListener("input", () => {
    unlistAll();
    clearTimeout(typing);
    typing = setTimeout(refresh, ["text", "drop"].includes(name) ? TYPING_MS : 0);
  });
}
field("drop").value = legend.drop;
find(".most").textContent = String(legend.listed);
find(".minded").textContent = String(legend.drop);
fold.addEventListener("toggle", refresh);
const recolour = () => map.drawn && isOpen("map") && drawMap();
new MutationObserver(recolour).observe(document.body, { attributes: true, attributeFilter: ["class"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
document.addEventListener("opd-shown", ({ detail }) => follow(detail));
choose(tab);
document.dispatchEvent(new CustomEvent("opd-ask")); // the component may have been there before
