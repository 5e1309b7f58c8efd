/* The choices above the text and what the colours and verdicts mean; thresholds and forks are chosen here. */

const FILTERS = { "": "all", fork: "forks", disagreement: "disagreements", blunder: "blunders" };

/** Each verdict's rule; a list is a threshold to edit: its name and the largest value that makes sense. */
const RULES = {
  blunder: ["drop D at least ", ["blunder", 1], ": so much likelier was the teacher’s first choice, from 0 to 1"],
  mistake: ["D at least ", ["mistake", 1]],
  inaccuracy: ["D at least ", ["inaccuracy", 1]],
  great: ["the teacher’s first choice, but not the student’s"],
  brilliant: [
    "the teacher gave it at least ", ["brilliantGain", 1], " more than the student, who gave it less than ",
    ["brilliantStudent", 1],
  ],
  forced: ["no real choice: both models’ first choice, student entropy below ", ["forcedEntropy", 5], " nats; left out of the agreement"],
};

class Legend {
  constructor(view, root) {
    this.view = view;
    const find = (selector) => root.querySelector(selector);
    this.parts = {
      signals: find(".signals"), formula: find(".formula"), scale: find(".scale"), fit: find(".fit"),
      units: find(".units"), filters: find(".filters"), toggles: find(".toggles"), verdicts: find(".verdicts"),
      reset: find(".reset"),
    };
    this.signals = new Map();
    this.filters = new Map();
    this.thresholds = new Map(); // name -> its field
    this.build();
  }

  build() {
    const { view, parts } = this;
    const name = (what) => `${view.name}-${what}`;
    for (const [signal, { label: text }] of Object.entries(SIGNALS)) {
      const { input, label: choice } = makeChoice("radio", name("signal"), text, () => view.colourBy(signal));
      this.signals.set(signal, input);
      parts.signals.append(choice);
    }
    for (const [unit, meaning] of Object.entries(UNITS)) {
      const { input, label: choice } = makeChoice("radio", name("unit"), unit, () => view.set({ granularity: unit }));
      input.checked = unit === view.granularity;
      choice.title = meaning;
      parts.units.append(choice);
    }
    for (const [filter, text] of Object.entries(FILTERS)) {
      const { input, label: choice } = makeChoice("radio", name("filter"), text, () => view.filterBy(filter));
      input.checked = filter === view.filter;
      this.filters.set(filter, input);
      parts.filters.append(choice);
    }
    const toggle = (text, title, act) => {
      const { label: choice } = makeChoice("checkbox", name(text), text, act);
      choice.title = title;
      return choice;
    };
    parts.fit.append(
      toggle("fit", "Fit the colours to what is shown: the last step begins at the 99th percentile", (fit) => view.set({ fit })),
    );
    parts.toggles.append(
      toggle("cumulative", "Draw the running sum into the graph", (cumulative) => view.set({ cumulative })),
      toggle("table", "The tokens as a plain sortable table", (tabled) => view.set({ tabled })),
    );
    this.buildVerdicts();
    parts.reset.addEventListener("click", () => view.judgeBy(view.legend.thresholds));
  }

  buildVerdicts() {
    const { view, parts } = this;
    const input = (verdict, name, max) => {
      const field = make("input", "threshold");
      Object.assign(field, { type: "number", min: 0, max, step: 0.01 });
      field.ariaLabel = `Threshold of ${verdict}: ${name}`;
      this.thresholds.set(name, field);
      field.addEventListener("change", () => view.judgeBy(this.readThresholds()));
      return field;
    };
    const rows = Object.entries(RULES).map(([verdict, rule]) => {
      const { glyph } = view.legend.verdicts.find(({ name }) => name === verdict);
      const words = rule.map((part) => (typeof part === "string" ? part : input(verdict, ...part)));
      return make("div", `is-${verdict}`, make("dt", "", `${verdict} ${glyph}`.trim()), make("dd", "", ...words));
    });
    const choice = make("select");
    choice.ariaLabel = "What a fork is";
    const rule = make("span", "");
    view.legend.forks.forEach(({ name }, i) => {
      const option = make("option", "", `by ${name.replaceAll("_", " ")}`);
      option.selected = i === view.forkDefinition;
      choice.append(option);
    });
    const say = () => (rule.textContent = view.legend.forks[view.forkDefinition].rule);
    choice.addEventListener("change", () => {
      view.set({ forkDefinition: choice.selectedIndex });
      say();
    });
    say();
    parts.verdicts.append(...rows, make("div", "is-fork", make("dt", "", "fork ◆"), make("dd", "", choice, " ", rule)));
    this.showThresholds();
  }

  /** The thresholds in the fields; an unreadable one keeps its value, a lesser fault never needs a larger drop. */
  readThresholds() {
    const read = {};
    for (const [name, field] of this.thresholds) {
      const value = field.valueAsNumber;
      read[name] = Number.isFinite(value) && value >= 0 ? value : this.view.thresholds[name];
    }
    read.mistake = Math.min(read.mistake, read.blunder);
    read.inaccuracy = Math.min(read.inaccuracy, read.mistake);
    return read;
  }

  showThresholds() {
    const { thresholds, legend } = this.view;
    for (const [name, field] of this.thresholds) field.value = String(thresholds[name]);
    this.parts.reset.hidden = Object.entries(legend.thresholds).every(([name, value]) => thresholds[name] === value);
  }

  /** Which signals there are, which is shown, and in what colours. */
  update() {
    const { view, parts } = this;
    const absent = (signal) => view.panes.length > 0 && view.panes.every((pane) => pane.review.absent.includes(signal));
    for (const [signal, input] of this.signals) {
      input.checked = signal === view.signal;
      input.disabled = absent(signal);
      input.parentElement.title = input.disabled ? ABSENT : "";
    }
    const { formula, ramp, signed: both, unit } = SIGNALS[view.signal];
    parts.formula.textContent = formula;
    const swatch = (name, step, text) => make("span", `swatch heat ${name}-${step}`, text);
    const swatches = view.steps.map((from, i) => swatch(ramp(1), i + 1, String(from)));
    if (both) swatches.unshift(...view.steps.map((from, i) => swatch(ramp(-1), i + 1, `−${from}`)).reverse());
    parts.scale.replaceChildren(...swatches, make("span", "unit", unit));
    const reviews = view.panes.map((pane) => pane.review);
    if (view.signal === "penalty" && reviews.some(({ report }) => report.graded < report.tokens)) {
      const hatch = make("span", "swatch ungraded", "not graded");
      hatch.title = "The teacher has another tokenizer and does not read these tokens as they stand.";
      parts.scale.append(hatch);
    }
    // Where the teacher graded spans there is no verdict to explain.
    const unjudged = reviews.length > 0 && !reviews.some(({ judged }) => judged);
    parts.verdicts.toggleAttribute("data-unjudged", unjudged);
    for (const name of ["disagreement", "blunder"]) this.filters.get(name).disabled = unjudged;
    parts.scale.title = view.fit
      ? "Fitted to what is shown: colours of two pictures cannot be compared."
      : "Fixed scale: colours of any two pictures can be compared.";
  }
}
