/* The tables of the overview: trajectories, tokens, swaps; and the lists of tokens beside them. */

import { make, makeButton } from "../view/js/dom.js";
import { SortableTable, around, line, numeric, rowButton, wordy } from "../view/js/table.js";
import { figure, label, shareWords } from "../view/js/words.js";

const SPARK = { height: 26, ceiling: 8 }; // nats at full height

/** Say where a place is: “3 · 45”, with its student where there are several. */
export function placeWords({ group, sample, index }, { labels }) {
  const student = labels.length > 1 ? `${labels[group]}, ` : "";
  return `${student}${sample + 1}${index === undefined ? "" : ` · ${index + 1}`}`;
}

export function verdictWords(verdict, { verdicts, glyphs }) {
  return verdict === null ? "–" : `${verdicts[verdict]} ${glyphs[verdicts[verdict]] ?? ""}`.trim();
}

export const swapWords = ({ token, preferred }) => `“${label(token, 24)}” → “${label(preferred, 24)}”`;

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

function answerMark({ correct, finished }, growing) {
  if (correct === null) return make("span", "mark", finished ? "–" : growing ? "…" : "unfinished");
  return make("span", correct ? "mark right" : "mark wrong", correct ? "✓ right" : "✗ wrong");
}

function trajectoryButton({ sample, parent }) {
  if (parent === null) return rowButton(`${sample + 1}`, `Open trajectory ${sample + 1}`);
  return rowButton(`${sample + 1} ↳ ${parent + 1}`, `Open trajectory ${sample + 1}, a branch of ${parent + 1}`);
}

function worstButton({ worst }, open) {
  if (!worst) return "–";
  const button = makeButton("", "", (event) => {
    event.stopPropagation(); // the row would open its beginning
    open(worst);
  });
  button.append(make("code", "", label(worst.token, 16)), ` ${figure(worst.penalty)}`);
  button.title = `Open token ${worst.index + 1}`;
  return button;
}

/** `shown()` is what the component shows; `open(place)` shows a place in it. */
export function trajectoryTable(element, shown, open) {
  return new SortableTable(
    element,
    [
      wordy("place", "#", trajectoryButton, { value: ({ sample }) => sample }),
      wordy("student", "student", ({ group }) => shown().labels[group], { value: ({ group }) => group }),
      wordy("prompt", "prompt", ({ prompt }) => line(prompt), { lesser: true }),
      {
        name: "answer", head: "answer", words: true,
        value: ({ correct }) => (correct === null ? null : Number(correct)), cell: (row) => answerMark(row, shown().growing),
      },
      { name: "picture", head: "penalties", words: true, value: ({ spark }) => Math.max(0, ...spark), cell: ({ spark }) => sparkline(spark) },
      {
        name: "agreement", head: "agreement", value: ({ agreement }) => agreement,
        cell: ({ agreement }) => shareWords(agreement),
      },
      numeric("penalty", "penalty", 2, { lesser: true }),
      numeric("kl", "reverse KL", 2, { minor: true }),
      numeric("blunders", "blunders", 0, { minor: true }),
      numeric("forks", "forks", 0, { minor: true }),
      numeric("tokens", "tokens", 0),
      { name: "worst", head: "worst token", words: true, minor: true, value: ({ worst }) => worst?.penalty, cell: (row) => worstButton(row, open) },
    ],
    { act: open },
  );
}

export function tokenTable(element, legend, shown, open) {
  return new SortableTable(
    element,
    [
      wordy("place", "#", (row) => rowButton(placeWords(row, shown()), `Open trajectory ${row.sample + 1} at token ${row.index + 1}`), {
        value: ({ group, sample, index }) => group * 1e12 + sample * 1e7 + index,
      }),
      wordy("context", "token in its text", around, { value: ({ token }) => token }),
      numeric("penalty", "penalty", 2),
      numeric("blame", "blame", 2, { lesser: true }),
      { name: "verdict", head: "verdict", words: true, minor: true, value: ({ verdict }) => verdict, cell: ({ verdict }) => verdictWords(verdict, legend) },
      wordy("preferred", "teacher’s choice", preferredCell, { minor: true }),
    ],
    { act: open },
  );
}

const preferredCell = ({ preferred, probability }) =>
  probability === null
    ? "–"
    : make("span", "", make("code", "", label(preferred, 20)), make("span", "probability", ` ${shareWords(probability)}`));

export function swapTable(element, act) {
  return new SortableTable(
    element,
    [
      wordy("place", "student", (row) => rowButton(label(row.token, 24), `List where ${swapWords(row)}`), { value: ({ token }) => token }),
      wordy("preferred", "teacher’s choice", ({ preferred }) => make("code", "", `→ ${label(preferred, 24)}`)),
      numeric("count", "times", 0),
      numeric("blame", "mean blame", 2, { lesser: true }),
      numeric("penalty", "penalty", 1, { lesser: true }),
      { name: "share", head: "share", value: (row) => row.share, cell: (row) => shareWords(row.share) },
    ],
    { act },
  );
}

/** Tokens with their contexts, listed beside a table or the map. `fetch` asks the server for places. */
export class TokenList {
  constructor(box, template, makeTable, fetch, onClose) {
    this.box = box;
    this.fetch = fetch;
    this.turn = 0; // late answers to older questions are dropped
    box.append(template.content.cloneNode(true));
    this.table = makeTable(box.querySelector(".table"));
    box.querySelector("header button").addEventListener("click", onClose);
  }

  /** List the tokens at some places; where the server has them no more it says `gone`. */
  async show(words, places, gone) {
    const mine = ++this.turn;
    const tokens = await this.fetch(places);
    if (mine !== this.turn) return;
    this.box.hidden = false;
    this.box.querySelector("h4").textContent = tokens ? words : gone;
    this.table.show(tokens ?? []);
    this.box.scrollIntoView({ block: "nearest" });
  }

  close() {
    this.turn += 1;
    this.box.hidden = true;
  }
}
