/* The choices above the text and what the colours and verdicts mean; thresholds and forks are chosen here. */

import { make, makeChoice, partsOf } from "./dom.js";
import { ABSENT, SIGNALS } from "./signals.js";
import { UNITS } from "./units.js";

const FILTERS = { "": "all", fork: "forks", disagreement: "disagreements", blunder: "blunders" };

/** Where it stands, the choice of the view, its name and what it does. */
const TOGGLES = [
  [".fit", "fit", "fit", "Fit the colours to what is shown: the last step begins at the 99th percentile"],
  [".toggles", "cumulative", "cumulative", "Draw the running sum into the graph"],
  [".toggles", "tabled", "table", "The tokens as a plain sortable table"],
];

/** Each verdict's rule; a list is a threshold to edit: its name, the largest value that makes sense, and its step. */
const RULES = {
  blunder: ["blame at least ", ["blunder", 1], ", from 0 to 1: the teacher knew much better, and the student meant it"],
  mistake: ["blame at least ", ["mistake", 1]],
  inaccuracy: ["blame at least ", ["inaccuracy", 1]],
  slip: ["both gave it less than ", ["slip", 1, 0.001], " though the teacher knew better: the luck of sampling, not counted"],
  great: ["the teacher’s first choice, but not the student’s"],
  brilliant: [
    "the teacher gave it at least ", ["brilliantGain", 1], " more than the student, who gave it less than ",
    ["brilliantStudent", 1],
  ],
  forced: ["no real choice: both models’ first choice, student entropy below ", ["forcedEntropy", 5], " nats"],
};

export class Legend {
  constructor(view, root) {
    this.view = view;
    this.part = partsOf(root);
    this.signals = new Map();
    this.filters = new Map();
    this.thresholds = new Map(); // name -> its field
    this.build();
  }

  build() {
    const { part, view } = this;
    const name = (what) => `${view.name}-${what}`;
    const offer = (place, type, group, text, act, title = "") => {
      const { input, label: choice } = makeChoice(type, name(group), text, act);
      choice.title = title;
      place.append(choice);
      return input;
    };
    for (const [signal, { label: text }] of Object.entries(SIGNALS)) {
      this.signals.set(signal, offer(part(".signals"), "radio", "signal", text, () => view.colourBy(signal)));
    }
    for (const [unit, meaning] of Object.entries(UNITS)) {
      const input = offer(part(".units"), "radio", "unit", unit, () => view.set({ granularity: unit }), meaning);
      input.checked = unit === view.granularity;
    }
    for (const [filter, text] of Object.entries(FILTERS)) {
      const input = offer(part(".filters"), "radio", "filter", text, () => view.filterBy(filter));
      input.checked = filter === view.filter;
      this.filters.set(filter, input);
    }
    for (const [place, key, text, title] of TOGGLES) {
      offer(part(place), "checkbox", key, text, (on) => view.set({ [key]: on }), title);
    }
    this.buildVerdicts();
    part(".reset").addEventListener("click", () => view.judgeBy(view.legend.thresholds));
  }

  buildVerdicts() {
    const { part, view } = this;
    const input = (verdict, name, max, step = 0.01) => {
      const field = make("input", "threshold");
      Object.assign(field, { type: "number", min: 0, max, step });
      field.ariaLabel = `Threshold of ${verdict}: ${name}`;
      this.thresholds.set(name, field);
      field.addEventListener("change", () => view.judgeBy(this.readThresholds()));
      return field;
    };
    const rows = Object.entries(RULES).map(([verdict, rule]) => {
      const words = rule.map((part) => (typeof part === "string" ? part : input(verdict, ...part)));
      return make("div", `is-${verdict}`, make("dt", "", view.verdictWords(view.verdictNames.indexOf(verdict))), make("dd", "", ...words));
    });
    const choice = make("select");
    choice.ariaLabel = "What a fork is";
    const rule = make("span");
    choice.append(...view.legend.forks.map(({ name }) => make("option", "", `by ${name.replaceAll("_", " ")}`)));
    choice.selectedIndex = view.forkDefinition;
    const say = () => (rule.textContent = view.legend.forks[view.forkDefinition].rule);
    choice.addEventListener("change", () => {
      view.set({ forkDefinition: choice.selectedIndex });
      say();
    });
    say();
    part(".verdicts").append(...rows, make("div", "is-fork", make("dt", "", "fork ◆"), make("dd", "", choice, " ", rule)));
    this.showThresholds();
  }

  /** The thresholds in the fields; an unreadable one keeps its value, a lesser fault never needs a larger blame. */
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
    this.part(".reset").hidden = Object.entries(legend.thresholds).every(([name, value]) => thresholds[name] === value);
  }

  /** Which signals there are, which is shown, and in what colours. */
  update() {
    const { part, view } = this;
    const absent = (signal) => view.panes.length > 0 && view.panes.every((pane) => pane.review.absent.includes(signal));
    for (const [signal, input] of this.signals) {
      input.checked = signal === view.signal;
      input.disabled = absent(signal);
      input.parentElement.title = input.disabled ? ABSENT : "";
    }
    const { formula, ramp, signed: both, unit } = SIGNALS[view.signal];
    part(".formula").textContent = formula;
    const swatch = (name, step, text) => make("span", `swatch heat ${name}-${step}`, text);
    const swatches = view.steps.map((from, i) => swatch(ramp(1), i + 1, String(from)));
    if (both) swatches.unshift(...view.steps.map((from, i) => swatch(ramp(-1), i + 1, `−${from}`)).reverse());
    part(".scale").replaceChildren(...swatches, make("span", "unit", unit));
    const reviews = view.panes.map((pane) => pane.review);
    if (view.signal === "penalty" && reviews.some(({ report }) => report.graded < report.tokens)) {
      const hatch = make("span", "swatch ungraded", "not graded");
      hatch.title = "The teacher has another tokenizer and does not read these tokens as they stand.";
      part(".scale").append(hatch);
    }
    // Where the teacher graded spans there is no verdict to explain.
    const unjudged = reviews.length > 0 && !reviews.some(({ judged }) => judged);
    part(".verdicts").toggleAttribute("data-unjudged", unjudged);
    for (const name of ["disagreement", "blunder"]) this.filters.get(name).disabled = unjudged;
    part(".scale").title = view.fit
      ? "Fitted to what is shown: colours of two pictures cannot be compared."
      : "Fixed scale: colours of any two pictures can be compared.";
  }
}
