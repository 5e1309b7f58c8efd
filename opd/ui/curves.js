/*
 * Curves of runs, drawn by plotly. A plot is made once and updated in place, so a zoom is kept while points
 * arrive; one that nobody sees is drawn when it comes into sight.
 *
 * A panel is { name, title, words, unit, range, traces }, and a trace { key, label, colour, look }: the
 * metric, its name, a CSS variable, and one of LOOKS. opd/view/panels.json has those of one run.
 */

/** Metrics by step, as rows arrive; a step that comes again replaces its earlier row. */
class Rows {
  constructor() {
    this.all = [];
  }

  add(fresh) {
    for (const row of fresh) {
      const last = this.all.at(-1)?.step ?? -1;
      if (row.step > last) this.all.push(row);
      else this.all[this.all.findIndex(({ step }) => step >= row.step)] = row;
    }
  }

  /** Whether a metric was measured at any step. */
  has(key) {
    return this.all.some((row) => row[key] !== undefined);
  }

  /** Points of a metric: { x, y }, averaged over the last `window` of them. */
  points(key, { window = 1, axis = "step" } = {}) {
    const there = this.all.filter((row) => row[key] !== undefined);
    const places = this.places(axis);
    let sum = 0;
    const y = there.map((row, i) => {
      sum += row[key] - (i >= window ? there[i - window][key] : 0);
      return window === 1 ? row[key] : sum / Math.min(i + 1, window);
    });
    return { x: there.map((row) => places.get(row.step)), y, steps: there.map((row) => row.step) };
  }

  /** Where each step stands on an axis: itself, or all tokens or seconds of training until then. */
  places(axis) {
    let total = 0;
    return new Map(
      this.all.map((row) => {
        total += axis === "tokens" ? row.tokens ?? 0 : axis === "seconds" ? trainingSeconds(row) : 0;
        return [row.step, axis === "step" ? row.step : total];
      }),
    );
  }
}

/** What training took of a step; evaluations are not counted. */
function trainingSeconds(row) {
  return (row.seconds_sample ?? 0) + (row.seconds_teacher ?? 0) + (row.seconds_update ?? 0);
}

/** Resolve CSS variables of the page, which differ by day and by night. */
function colourReader(root) {
  const probe = document.createElement("span");
  probe.hidden = true;
  root.append(probe);
  const known = {};
  return {
    of(name) {
      probe.style.color = `var(--${name})`;
      return (known[name] ??= getComputedStyle(probe).color);
    },
    done: () => probe.remove(),
  };
}

function curveLayout(root, colours, panel, width) {
  const axis = {
    gridcolor: colours.of("line"), zerolinecolor: colours.of("line"), linecolor: colours.of("line"), automargin: true,
  };
  const height = panel.range ? { range: panel.range } : { rangemode: "tozero" };
  return {
    margin: { l: 8, r: 8, t: 8, b: 8 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: getComputedStyle(root).fontFamily, size: 12, color: colours.of("muted") },
    showlegend: false,
    hovermode: "x unified",
    hoverdistance: -1,
    barmode: "stack",
    bargap: 0.15,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // there a drag scrolls the page
    hoverlabel: { bgcolor: colours.of("sheet"), bordercolor: colours.of("line"), font: { color: colours.of("ink") } },
    xaxis: { ...axis, rangemode: "tozero", ...width, title: { text: width.title ?? "step", standoff: 4 } },
    yaxis: { ...axis, tickformat: panel.unit, ...height },
  };
}

const LOOKS = {
  raw: (colour) => ({ mode: "lines", line: { color: colour, width: 1.5 }, hoverinfo: "skip" }),
  mean: (colour) => ({ mode: "lines", line: { color: colour, width: 2.5 } }),
  measured: (colour) => ({ mode: "lines+markers", line: { color: colour, width: 2.5 }, marker: { size: 6 } }),
  reference: (colour) => ({ mode: "lines", line: { color: colour, width: 2, dash: "dash" } }),
  floor: () => ({ mode: "lines", line: { width: 0 }, hoverinfo: "skip" }),
  band: (colour) => ({ mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: colour, hoverinfo: "skip" }),
  part: (colour) => ({ type: "bar", marker: { color: colour } }),
};

/** Which curves are but bounds, in words; `curves` are pairs of a name and what bound it is, or undefined. */
function boundNote(curves) {
  const names = {};
  for (const [name, bound] of curves) if (bound) (names[bound] ??= []).push(name);
  return Object.entries(names).map(([bound, own]) => `${own.join(", ")}: ${bound}`).join("; ");
}

/** The figures of some panels in one place of the page. */
class Board {
  /**
   * `plotly` is its address; `curvesOf(panel, colours)` gives the plotly traces of a panel, `marksOf(panel)` places
   * on its axis to mark, `axis()` the axis that all share, `boundsOf(panel)` what boundNote takes, `measured(panel)`
   * whether there is anything to draw: else it is not shown; `onPoint(step)` hears of a click.
   */
  constructor(root, place, panels, { plotly, curvesOf, measured, marksOf = () => [], boundsOf = () => [], axis = () => ({}), onPoint = () => {} }) {
    Object.assign(this, { root, plotly, curvesOf, measured, marksOf, boundsOf, axis, onPoint, seen: new Set(), stale: new Set(), identity: "" });
    this.plots = panels.map((panel) => this.makeFigure(place, panel));
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        this.seen[isIntersecting ? "add" : "delete"](target);
        if (isIntersecting && this.stale.has(target)) this.draw(target);
      }
    });
    for (const plot of this.plots) this.observer.observe(plot);
    this.redraw = () => this.update();
    new MutationObserver(this.redraw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.redraw);
  }

  makeFigure(place, panel) {
    const figure = document.createElement("figure");
    figure.hidden = true;
    const caption = document.createElement("figcaption");
    const title = Object.assign(document.createElement("b"), { textContent: panel.title });
    caption.append(title, ` ${panel.words} `);
    const labelled = panel.traces.filter(({ label, look }) => label && look !== "raw");
    for (const { label, colour } of labelled.length > 1 ? labelled : []) {
      const key = Object.assign(document.createElement("span"), { className: "key", textContent: `${label} ` });
      key.style.setProperty("--key", `var(--${colour})`);
      caption.append(key);
    }
    const bound = Object.assign(document.createElement("span"), { className: "bound" });
    caption.append(bound);
    const plot = Object.assign(document.createElement("div"), { className: "curve", panel, bound });
    plot.dataset.curve = panel.name;
    figure.append(caption, plot);
    place.append(figure);
    return plot;
  }

  /** Draw all plots anew, at once or when they are seen; `identity` names what is shown: another one, no zoom. */
  update(identity = this.identity) {
    this.identity = identity;
    if (!identity) return;
    for (const plot of this.plots) {
      plot.parentElement.hidden = !this.measured(plot.panel);
      if (this.seen.has(plot)) this.draw(plot);
      else this.stale.add(plot);
    }
  }

  async draw(plot) {
    this.stale.delete(plot);
    try {
      await loadPlotly(this.plotly);
    } catch {
      this.stale.add(plot);
      return;
    }
    const { panel, bound } = plot;
    bound.textContent = boundNote(this.boundsOf(panel));
    const colours = colourReader(this.root);
    const layout = { ...curveLayout(this.root, colours, panel, this.axis()), uirevision: this.identity };
    layout.shapes = this.marksOf(panel).map((x) => ({
      type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: colours.of("bad"), width: 1.5, dash: "dot" },
    }));
    const first = !plot.data;
    Plotly.react(plot, this.curvesOf(panel, colours), layout, { displayModeBar: false, responsive: true });
    colours.done();
    if (first) {
      plot.on("plotly_click", ({ points }) => {
        const { data, pointNumber } = points.at(-1);
        this.onPoint(data.steps[pointNumber]);
      });
    }
  }
}

/** The plotly traces of one run's panel. */
function curvesOfRun(panel, colours, rows, window) {
  return panel.traces.map(({ key, label, colour, look }) => {
    const points = rows.points(key, { window: look === "mean" ? window : 1 });
    const trace = { type: "scatter", name: label, ...points, ...LOOKS[look](colours.of(colour)) };
    if (points.x.length === 1 && look !== "part") trace.mode = "markers"; // no line yet
    return { cliponaxis: look === "part", hovertemplate: `%{y:${panel.unit ?? ".4~g"}}`, ...trace };
  });
}

const IDLE_MS = 10_000; // how often a page asks whether a run that ended has been taken up again

/**
 * Ask again and again while the page is looked at; `ask` says after how many milliseconds, 0: never again. One that
 * fails is told to the console, and asked again as rarely as of a run that ended.
 */
class Poll {
  constructor(root, ask) {
    Object.assign(this, { root, ask, running: false, wanted: false });
    document.addEventListener("visibilitychange", () => !document.hidden && this.wanted && this.start());
  }

  /** Begin, or ask at once if it is running. */
  async start() {
    this.wanted = true;
    this.wake?.();
    if (this.running) return;
    this.running = true;
    while (this.wanted && this.root.isConnected) {
      const seen = !document.hidden && this.root.offsetParent !== null;
      const pause = seen ? await this.tryToAsk() : 1000;
      this.wanted = pause > 0;
      if (!this.wanted) break;
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, pause);
      });
    }
    this.running = false;
  }

  async tryToAsk() {
    try {
      return await this.ask();
    } catch (error) {
      console.error(error);
      return IDLE_MS;
    }
  }
}
